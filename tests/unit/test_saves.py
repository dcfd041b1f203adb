"""Saves of scvi-tools come in and go out; whatever else a file holds is refused and never run."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from golden import SHARED, needs_shared
from saves.make import cells
from small import CPU, SCANVI, SCVI

from atlasmap.bundle import load, save
from atlasmap.data.prepare import checked_dataset, prepare_query
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.errors import AtlasmapError
from atlasmap.exchange.archive import read_archive
from atlasmap.exchange.exporting import write_save
from atlasmap.exchange.importing import Cells, bundle_of, latent_in
from atlasmap.exchange.saves import read_save, variant_of
from atlasmap.exchange.weights import unused, weights_out
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.query import map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent
from atlasmap.settings import DataConfig, ScviSettings, SurgerySettings, TrainSettings

SAVES = Path(__file__).parent / "saves"


def archive(path: Path, pickled: bytes, compression=zipfile.ZIP_STORED, **parts: bytes) -> Path:
    """A file in the form of torch.save."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("model/data.pkl", pickled)
        for name, data in parts.items():
            file.writestr(f"model/data/{name}", data)
    return path


def refused(path: Path, code: str) -> str:
    """What is said of a file that must be refused."""
    with pytest.raises(AtlasmapError) as error:
        read_archive(path)
    assert error.value.code == code, error.value
    assert error.value.expected and error.value.mend
    return error.value.found


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_calls_are_refused_by_name_and_do_not_run(tmp_path):
    mark = tmp_path / "ran"
    calls = {
        "posix.system": Call(os.system, f"touch {mark}"),
        "eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Call(exec, f"open({str(mark)!r}, 'w')"),
        "open": Call(open, str(mark), "w"),
        "__import__": Call(__import__, "this"),
        "getattr": Call(getattr, "", "join"),
        "functools.partial": partial(print, "ran"),
        "loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {mark}"))),
        "pandas.io.pickle.read_pickle": Call(pd.read_pickle, str(mark)),
        "pandas.core.computation.eval.eval": Call(pd.eval, "1"),
        "numpy.load": Call(np.load, str(mark)),
        "torch.serialization.load": Call(torch.load, str(mark)),
        "torch.serialization._get_layout": Call(torch.serialization._get_layout, "x"),
        "collections.Counter": Call(__import__("collections").Counter, [1]),
    }
    for name, call in calls.items():
        for protocol in range(2, 6):
            content = {"model_state_dict": {}, "attr_dict": {"x": [call]}}
            path = archive(tmp_path / "x.pt", pickle.dumps(content, protocol))
            assert name in refused(path, "SAVE_UNTRUSTED"), name
    assert not mark.exists()


@pytest.mark.parametrize(
    "pickled, code",
    [
        (b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.", "SAVE_UNTRUSTED"),  # OBJ
        (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "SAVE_BROKEN"),  # INST
        (b"\x80\x02\x82\x01.", "SAVE_BROKEN"),  # EXT1
        (b"\x80\x02cnumpy\nndarray\n)R.", "SAVE_BROKEN"),  # a name that is an argument only
        (b"\x80\x02cnumpy\nndarray\n}b.", "SAVE_BROKEN"),  # a state for it
        (b"\x80\x02ccollections\nOrderedDict\n)R}b0]X\x01\x00\x00\x00xR.", "SAVE_BROKEN"),
        (b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.", "SAVE_BROKEN"),  # 2 GB of bytes
        (b"\x80\x02]q\x00h\x01.", "SAVE_BROKEN"),  # remembers what was not said
        (b"\x80\x02.", "SAVE_BROKEN"),
        (b"\x80\x02]", "SAVE_BROKEN"),
        (b"", "SAVE_BROKEN"),
    ],
)
def test_other_pickles_are_refused(tmp_path, pickled, code):
    refused(archive(tmp_path / "x.pt", pickled), code)


def test_shared_tuples_and_depth_cost_nothing(tmp_path):
    doubling = b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b"."  # a tuple of 2^200 leaves
    assert len(read_archive(archive(tmp_path / "x.pt", doubling))) == 2
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert len(read_archive(archive(tmp_path / "y.pt", deep))) == 1


def test_arrays_beyond_their_bytes_are_refused(tmp_path):
    pickled = pickle.dumps(np.array([1.5]), 2)
    path = tmp_path / "x.pt"
    assert read_archive(archive(path, pickled)).tolist() == [1.5]
    shape, code = b"K\x01K\x01\x85", b"X\x02\x00\x00\x00f8"
    assert pickled.count(shape) == pickled.count(code) == 1
    for old, new in [
        (shape, b"K\x01K\x02\x85"), (shape, b"K\x01J\xff\xff\xff\x7f\x85"),
        (shape, b"K\x01J\xff\xff\xff\xff\x85"), (code, code[:5] + b"V8"), (code, code[:5] + b"O8"),
    ]:  # fmt: skip
        refused(archive(path, pickled.replace(old, new)), "SAVE_BROKEN")


def test_keys_are_texts_small_numbers_or_none(tmp_path):
    known = {None: 1, np.int64(3): 2, -4: 3, "a": 4}
    assert read_archive(archive(tmp_path / "x.pt", pickle.dumps(known, 2))) == known
    for key in (2**40, np.int64(2**40), 1.5, (1,), b"a"):
        refused(archive(tmp_path / "x.pt", pickle.dumps({key: 1}, 2)), "SAVE_BROKEN")


def tensor_pickle(size: tuple, stride: tuple, offset: int = 0, n: int = 4, kind="Float") -> bytes:
    """One tensor over a storage of `n` numbers."""

    class Stored:
        def __reduce_ex__(self, _):
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if thing is storage:
                return "storage", getattr(torch, f"{kind}Storage"), "0", "cuda:0", n
            return None

    storage, out = [], io.BytesIO()
    Pickler(out, 2).dump(Stored())
    return out.getvalue()


def test_tensors_stay_inside_their_storage(tmp_path):
    numbers = np.arange(4, dtype=np.float32).tobytes()
    path = tmp_path / "x.pt"
    seen = read_archive(archive(path, tensor_pickle((2, 2), (1, 2)), **{"0": numbers}))
    assert seen.tolist() == [[0, 2], [1, 3]] and seen.device == CPU
    for size, stride, offset in [
        ((2, 2), (2, 1), 1), ((5,), (1,), 0), ((2,), (4,), 0), ((4,), (-1,), 3),
        ((10**9,), (0,), 0), ((2, 2), (1,), 0), ((-1,), (1,), 0),
    ]:  # fmt: skip
        refused(archive(path, tensor_pickle(size, stride, offset), **{"0": numbers}), "SAVE_BROKEN")
    refused(archive(path, tensor_pickle((2,), (1,), n=2), **{"0": numbers}), "SAVE_BROKEN")
    refused(archive(path, tensor_pickle((2,), (1,))), "SAVE_BROKEN")


def array_as_storage(dtype: str, shape: tuple) -> bytes:
    """A tensor that names a pickled array, and no storage, as its memory."""

    class Stored:
        def __reduce_ex__(self, _):
            array = np.empty(shape, dtype)
            return torch._utils._rebuild_tensor_v2, (array, 0, (4,), (1,), False, {})

    return pickle.dumps(Stored(), 2)


@pytest.mark.parametrize("dtype, shape", [("f8", (4, 0)), ("O", (4, 0)), ("f4", (4,))])
def test_only_storages_are_memory(tmp_path, dtype, shape):
    """(4, 0) has no bytes and four rows: read as a storage it would be somebody else's memory."""
    refused(archive(tmp_path / "x.pt", array_as_storage(dtype, shape)), "SAVE_BROKEN")


def test_what_small_files_can_make_large_is_refused(tmp_path, monkeypatch):
    from atlasmap.exchange import archive as module

    monkeypatch.setattr(module, "SPARE", 100_000)
    path, numbers = tmp_path / "x.pt", np.zeros(1000, np.float32).tobytes()
    big = tensor_pickle((100, 100, 100), (1, 1, 1), n=1000)  # one storage over and over
    refused(archive(path, big, **{"0": numbers}), "SAVE_BROKEN")
    text = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000
    latin = b"X\x06\x00\x00\x00latin1q\x01"
    encoded = b"\x80\x02]" + text + b"q\x00a" + latin + b"a"
    encoded += b"c_codecs\nencode\nh\x00h\x01\x86Ra" * 500 + b"."
    assert "can hold" in refused(archive(path, encoded), "SAVE_BROKEN")
    containers = b"\x80\x02]" + b"}a" * 50_000 + b"."
    assert "can hold" in refused(archive(path, containers), "SAVE_BROKEN")


def test_values_that_double_are_never_written_out(tmp_path):
    doubled = b")" + b"q\x00h\x00\x86" * 60  # a tuple of 2^60 leaves
    text = b"X\x01\x00\x00\x00a"
    for pickled in (
        b"\x80\x02}" + doubled + text + b"s.",  # as a key
        b"\x80\x02c_codecs\nencode\n" + text + doubled + b"\x86R.",  # as an encoding
        b"\x80\x02ccollections\nOrderedDict\n" + doubled + b"R.",
        b"\x80\x02" + doubled + b"Q.",  # as a storage
    ):
        refused(archive(tmp_path / "x.pt", pickled), "SAVE_BROKEN")
    colliding = b"\x80\x02}" + b"".join(
        b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"Ns" for k in range(1, 50)
    )
    refused(archive(tmp_path / "x.pt", colliding + b"."), "SAVE_BROKEN")


@pytest.mark.parametrize("code", ["(0001,)f8", "(9,9", "V8", "f8,f8", "O4", "U9999999", "f0"])
def test_dtypes_are_plain_or_refused(tmp_path, code):
    pickled = pickle.dumps(np.array([1.5]), 2)
    plain = b"X\x02\x00\x00\x00f8"
    other = b"X" + struct.pack("<I", len(code)) + code.encode()
    assert pickled.count(plain) == 1
    refused(archive(tmp_path / "x.pt", pickled.replace(plain, other)), "SAVE_BROKEN")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = archive(tmp_path / "x.pt", b"\x80\x02N.")
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    path.write_bytes(bytes(data))
    refused(path, "SAVE_BROKEN")


def test_zip_bombs_and_broken_zips_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    zeros = b"\x80\x02" + b"]0" * 5_000_000 + b"N."
    assert "compressed" in refused(archive(path, zeros, zipfile.ZIP_DEFLATED), "SAVE_BROKEN")
    archive(path, b"\x80\x02N.")
    whole = path.read_bytes()
    # a directory that says a part is larger than the file
    at = whole.index(b"PK\x01\x02") + 20
    big = whole[:at] + struct.pack("<II", 2**30, 2**30) + whole[at + 8 :]
    path.write_bytes(big)
    refused(path, "SAVE_BROKEN")
    for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "SAVE_BROKEN")
    path.write_bytes(whole.replace(b"\x80\x02N.", b"\x80\x02\x88."))
    assert "CRC" in refused(path, "SAVE_BROKEN")
    refused(tmp_path / "none.pt", "SAVE_MISSING")


@pytest.fixture
def written(reference, scanvi, tmp_path):
    """A save that we wrote, its bundle, and the reference in latent space."""
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    latent = reference_latent(reference, scanvi, split, CPU)
    write_save(scanvi, tmp_path / "save", latent)
    return tmp_path / "save", scanvi, latent


def test_altered_pickles_never_do_anything_else(written, tmp_path):
    with zipfile.ZipFile(written[0] / "model.pt") as file:
        name = next(n for n in file.namelist() if n.endswith("data.pkl"))
        pickled = file.read(name)
        parts = {n.rsplit("/", 1)[1]: file.read(n) for n in file.namelist() if "/data/" in n}
    rng, outcomes = random.Random(0), set()
    for _ in range(300):
        altered = bytearray(pickled)
        for _ in range(rng.choice([1, 3, 20])):
            altered[rng.randrange(len(altered))] = rng.randrange(256)
        path = archive(tmp_path / "x.pt", bytes(altered), **parts)
        try:
            read_archive(path)
            outcomes.add("read")
        except AtlasmapError as error:
            outcomes.add(error.code)
    assert outcomes == {"read", "SAVE_BROKEN", "SAVE_UNTRUSTED"}


MODELS = {
    "arches": {},
    "batch norm, ZINB, gene-batch": {
        "use_batch_norm": "both", "use_layer_norm": "none", "gene_likelihood": "zinb",
        "dispersion": "gene-batch", "encode_covariates": False,
    },
    "shallow": {"deeply_inject_covariates": False, "dispersion": "gene-batch"},
    "Poisson, learned library": {"gene_likelihood": "poisson", "use_observed_lib_size": False},
}  # fmt: skip


@pytest.mark.parametrize("variant", ["none", "prefix", "fixed", "linear"])
@pytest.mark.parametrize("kind", MODELS)
def test_out_and_in_again_is_the_same_model(reference, tmp_path, kind, variant):
    reference.obs["donor"] = np.where(np.arange(reference.n_obs) % 3, "a", "b")
    reference.obs["age"] = np.linspace(0, 1, reference.n_obs)
    reference.uns |= {"categorical_covariates": ["donor"], "continuous_covariates": ["age"]}
    registry = Registry.of(reference)
    settings = ScviSettings(
        n_hidden=16, n_latent=5, train=TrainSettings(max_epochs=2), **MODELS[kind]
    )
    bundle = fit_scvi(reference, registry, settings, 0, CPU)[0]
    if variant != "none":
        bundle = fit_scanvi(reference, bundle, SCANVI, variant, 0, CPU)[0]
    before = embed(bundle.model, encode(bundle.registry, reference, CPU))
    write_save(bundle, tmp_path / "save", None)
    read = read_save(tmp_path / "save")
    again = bundle_of(read, tmp_path / "save/model.pt", None)
    after = embed(again.model, encode(again.registry, reference, CPU))
    assert np.array_equal(before.mean, after.mean) and np.array_equal(before.var, after.var)
    assert again.registry.as_dict() | {"symbols": None, "labels": bundle.registry.labels} == (
        bundle.registry.as_dict() | {"symbols": None}
    )
    if variant != "none":
        assert again.about["variant"] == variant and again.registry.labels == registry.labels
        assert np.array_equal(before.soft_labels, after.soft_labels)
    save(again, tmp_path / "bundle")
    assert load(tmp_path / "bundle", CPU).about["origin"]["class"] == read.model


def test_after_surgery_the_whole_goes_out(scanvi, queries, tmp_path):
    settings = SurgerySettings(max_epochs=2)
    mapping = map_query(scanvi, queries["query0"], settings, "per_batch", 0)
    write_save(mapping.bundle, tmp_path / "save", None)
    again = bundle_of(read_save(tmp_path / "save"), tmp_path / "save/model.pt", None)
    said = embed(again.model, encode(again.registry, queries["query0"], CPU))
    assert np.array_equal(said.mean, mapping.latent.obsm["X_latent"])
    assert "query0" in again.registry.batches


def test_a_minified_reference_goes_out_and_in(written):
    folder, _, latent = written
    beside = anndata.read_h5ad(folder / "adata.h5ad")
    assert beside.X.nnz == 0 and "scanvi_latent_qzm" in beside.obsm
    assert beside.uns["_scvi_adata_minify_type"] == "latent_posterior_parameters"
    read = read_save(folder)
    again = latent_in(Cells(beside, "adata"), bundle_of(read, folder / "model.pt", None), read)
    assert np.array_equal(latent_of(again), latent_of(latent))
    assert np.allclose(again.obsm["soft_labels"], latent.obsm["soft_labels"], atol=1e-6)
    for key in ("batch", "label", "split"):
        assert list(again.obs[key]) == list(latent.obs[key]), key
    assert np.array_equal(again.obs["observed_lib_size"], latent.obs["observed_lib_size"])


def altered(folder: Path, change, out: Path) -> Path:
    """A save with something else in it."""
    content = torch.load(folder / "model.pt", weights_only=False)  # our own file
    change(content)
    out.mkdir()
    torch.save(content, out / "model.pt")
    return out


def set_version(version):
    def change(content):
        content["attr_dict"]["registry_"]["scvi_version"] = version

    return change


def set_init(**options):
    def change(content):
        content["attr_dict"]["init_params_"]["kwargs"]["model_kwargs"] |= options

    return change


@pytest.mark.parametrize("version", ["0.20.3", "1.0.4"])
def test_before_1_1_the_classifier_is_prefix_whatever_the_settings_say(written, tmp_path, version):
    old = altered(written[0], set_version(version), tmp_path / "old")
    assert variant_of(read_save(old)) == "prefix"
    assert bundle_of(read_save(old), old / "model.pt", None).about["variant"] == "prefix"
    assert variant_of(read_save(written[0])) == "fixed"


def drop_weight(content):
    del content["model_state_dict"]["z_encoder.var_encoder.bias"]


def add_weight(content):
    content["model_state_dict"]["z_encoder.attention.weight"] = torch.zeros(2)


def cut_weight(content):
    content["model_state_dict"]["decoder.px_scale_decoder.0.weight"] = torch.zeros(3, 3)


def skew_prior(content):
    content["model_state_dict"]["y_prior"][0, 0] = 0.9


def set_class(content):
    content["attr_dict"]["registry_"]["model_name"] = "MULTIVI"


def no_registry(content):
    del content["attr_dict"]["registry_"]


@pytest.mark.parametrize(
    "change, code, names",
    [
        (set_version("0.14.6"), "SAVE_VERSION", "0.14.6"),
        (set_version("2.0.0"), "SAVE_VERSION", "2.0.0"),
        (set_version("nightly"), "SAVE_VERSION", "nightly"),
        (set_class, "SAVE_CLASS", "MULTIVI"),
        (no_registry, "SAVE_BROKEN", "registry_"),
        (set_init(latent_distribution="ln"), "SAVE_UNSUPPORTED", "latent_distribution: 'ln'"),
        (set_init(dispersion="gene-cell"), "SAVE_UNSUPPORTED", "gene-cell"),
        (set_init(batch_representation="embedding"), "SAVE_UNSUPPORTED", "embedding"),
        (set_init(classifier_parameters={"n_layers": 3}), "SAVE_UNSUPPORTED", "n_layers"),
        (set_init(brand_new=1), "SAVE_UNSUPPORTED", "brand_new"),
        (drop_weight, "SAVE_WEIGHTS", "z_encoder.var_encoder.bias is missing"),
        (add_weight, "SAVE_WEIGHTS", "attention.weight is not known"),
        (cut_weight, "SAVE_WEIGHTS", "px_scale_decoder"),
        (skew_prior, "SAVE_WEIGHTS", "y_prior"),
    ],
)
def test_what_cannot_be_brought_over_is_refused_by_name(written, tmp_path, change, code, names):
    folder = altered(written[0], change, tmp_path / "other")
    with pytest.raises(AtlasmapError) as error:
        bundle_of(read_save(folder), folder / "model.pt", None)
    assert error.value.code == code and names in error.value.found


def test_three_files_of_old_are_refused_with_advice(tmp_path):
    (tmp_path / "model_params.pt").write_bytes(b"")
    with pytest.raises(AtlasmapError, match="convert_legacy_save") as error:
        read_save(tmp_path)
    assert error.value.code == "SAVE_VERSION"


def test_a_prefix_and_the_file_itself(written, tmp_path):
    (tmp_path / "p").mkdir()
    file = tmp_path / "p/lung_model.pt"
    file.write_bytes((written[0] / "model.pt").read_bytes())
    assert read_save(tmp_path / "p", "lung_").genes == read_save(file).genes
    with pytest.raises(AtlasmapError, match="SAVE_MISSING"):
        read_save(tmp_path / "p")


def test_the_command_imports_with_its_reference(written, reference, tmp_path, capsys):
    from atlasmap.commands.exchange import GivenCells, export_scvi, import_scvi

    folder, bundle, latent = written
    import_scvi(folder, out=tmp_path / "b")
    assert "classifier fixed" in capsys.readouterr().out
    assert np.array_equal(
        latent_of(anndata.read_h5ad(tmp_path / "b/reference_latent.h5ad")), latent_of(latent)
    )
    # from counts, in another order of genes and without the minified file
    shuffled = reference[:, ::-1].copy()
    shuffled.write_h5ad(tmp_path / "counts.h5ad")
    import_scvi(folder, out=tmp_path / "c", cells=GivenCells(tmp_path / "counts.h5ad"))
    again = anndata.read_h5ad(tmp_path / "c/reference_latent.h5ad")
    assert np.allclose(latent_of(again), latent_of(latent), atol=1e-6)
    export_scvi(tmp_path / "c", out=tmp_path / "d")
    ours, theirs = weights_out(bundle.model), read_save(tmp_path / "d").weights
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


@needs_shared
@pytest.mark.parametrize("name", ["totalvi", "totalvi_missing", "totalvi_surgery"])
def test_totalvi_saves_are_read(name):
    folder = SHARED / "golden" / name
    read = read_save(folder)
    assert read.model == "TOTALVI" and len(read.proteins) == 14
    assert set(read.batches) == {"pbmc_5k_protein_v3", "pbmc_10k_protein_v3"}
    with np.load(folder / "weights.npz") as file:
        assert all(np.array_equal(file[key], read.weights[key]) for key in file.files)
    bundle = bundle_of(read, folder / "model.pt", None)
    assert bundle.registry.proteins == read.proteins and bundle.about["kind"] == "totalvi"
    assert set(read.measured) == ({"0", "1"} if name == "totalvi_missing" else set())
    ours = weights_out(bundle.model) | unused(bundle.model)
    assert ours.keys() == read.weights.keys()
    assert all(torch.equal(read.weights[key], v) for key, v in weights_out(bundle.model).items())


@needs_shared
def test_golden_registries_come_across():
    folder = SHARED / "golden" / "scanvi_fix_surgery"
    about = json.loads((folder / "settings.json").read_text())
    bundle = bundle_of(read_save(folder), folder / "model.pt", None)
    assert bundle.registry.batches == about["batches"]
    assert [*bundle.registry.labels, bundle.registry.unlabeled_category] == about["labels"]
    assert bundle.about["origin"]["setup"] == about["setup_args"]
    assert bundle.about["scvi"]["n_latent"] == about["init_params"]["non_kwargs"]["n_latent"]


def made(pattern: str) -> list:
    """Folders of saves that real versions wrote (saves/make.py, saves/make_refused.py)."""
    found = sorted(path.parent for path in SAVES.glob(f"*/{pattern}/model.pt"))
    return [pytest.param(path, id=f"{path.parent.name} {path.name}") for path in found]


def test_every_version_has_its_saves():
    both = {"plain", "covariates", "minified", "surgery"}
    cases = {f"SCVI_{case}" for case in both | {"bare", "library", "pyro"}}
    cases |= {f"SCANVI_{case}" for case in both | {"linear"}}
    cases |= {f"TOTALVI_{case}" for case in both | {"lacking"}}
    lacking = {  # what these versions cannot do themselves
        "0.20.3": {"SCANVI_linear", "TOTALVI_minified"},
        "1.0.4": {"TOTALVI_minified"}, "1.1.6": {"TOTALVI_minified"},
    }  # fmt: skip
    for version in ("0.20.3", "1.0.4", "1.1.6", "1.2.2", "1.3.3", "1.4.2"):
        there = {path.parent.name for path in SAVES.glob(f"{version}/*/expected.npz")}
        assert there == cases - lacking.get(version, set()), version


@pytest.mark.parametrize("folder", made("[ST]*"))
def test_saves_of_real_versions_compute_what_they_did_there(folder, tmp_path):
    kind, case = folder.name.split("_")
    version = folder.parent.name.split("-")[0]
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    read = read_save(folder)
    bundle = bundle_of(read, folder / "model.pt", None)
    save(bundle, tmp_path / "b")
    bundle = load(tmp_path / "b", CPU)
    own = [cells(case), *([anndata.read_h5ad(folder / "adata.h5ad")] if case == "minified" else [])]
    for adata in own:
        latent = latent_in(Cells(adata, "cells", own=True), bundle, read)
        assert np.abs(latent_of(latent) - expected["latent"]).max() < 1e-5
        if kind == "SCANVI":
            assert np.abs(latent.obsm["soft_labels"] - expected["soft_labels"]).max() < 1e-5
    assert (read.model, read.version) == (kind, version)
    assert bundle.registry.batches == {
        "bare": ["0"], "surgery": ["p1", "p2", "p3"]
    }.get(case, ["p1", "p2"])  # fmt: skip
    with_covariates = case in ("covariates", "minified")
    assert bundle.registry.categorical == ({"sex": ["f", "m"]} if with_covariates else {})
    assert bundle.registry.continuous == (["age"] if with_covariates else [])
    lacks = {"p1": ["protein1"]} if case == "lacking" else {}
    assert bundle.registry.proteins_missing == lacks
    new = tuple(map(int, version.split("."))) >= (1, 1)
    if kind == "SCANVI":
        # "Unknown" was swapped with the last category there, the others were not sorted again
        assert bundle.registry.labels == list(expected["labels"]) == ["c", "a", "b"]
        variant = "linear" if case == "linear" else "fixed" if new else "prefix"
        assert bundle.about["variant"] == variant


@pytest.mark.parametrize("folder", made("*_covariates"))
def test_which_cells_validated_is_read_where_the_save_has_each_once(folder):
    read = read_save(folder)
    bundle = bundle_of(read, folder / "model.pt", None)
    latent = latent_in(Cells(cells(), "cells", own=True), bundle, read)
    n = int((latent.obs["split"] == "validation").sum())
    # before 1.1 SCANVI's own indices named cells twice and others never: not to be trusted
    old = read.model == "SCANVI" and folder.parent.name in ("0.20.3", "1.0.4")
    assert n == (0 if old else 5 if read.model == "SCANVI" else 6)


@pytest.mark.parametrize("folder", made("refused_*"))
def test_other_saves_of_real_versions_are_refused_by_class_or_version(folder):
    version, model = folder.parent.name, folder.name.removeprefix("refused_")
    with pytest.raises(AtlasmapError) as error:
        read_save(folder)
    old = version == "0.15.5" and model == "SCVI"
    assert error.value.code == ("SAVE_VERSION" if old else "SAVE_CLASS")
    assert f"{model} of scvi-tools {version}" in error.value.found
    assert ("MuData" in error.value.found) == (model == "TOTALVI")


def content_of(name: str, version: str, *parts) -> dict:
    """What a save of scvi-tools must hold to be known as one, and `parts`."""
    registry = {"model_name": name, "scvi_version": version}
    return {"attr_dict": {"registry_": registry, "parts_": list(parts)}, "var_names": {"rna": []}}


@pytest.mark.parametrize("name, version", [("CondSCVI", "1.2.2"), ("SCVI", "0.15.5")])
def test_what_is_dangerous_is_not_excused_by_another_class_or_version(tmp_path, name, version):
    mark = tmp_path / "ran"
    for call in (
        Call(os.system, f"touch {mark}"), Call(eval, f"open({str(mark)!r}, 'w')"),
        Call(getattr, "", "join"), Call(pd.read_pickle, str(mark)), Call(torch.load, str(mark)),
        Call(torch.nn.init.eye_, 1), torch.nn.init.eye_,
    ):  # fmt: skip
        path = archive(tmp_path / "model.pt", pickle.dumps(content_of(name, version, call), 2))
        with pytest.raises(AtlasmapError) as error:
            read_save(path)
        assert error.value.code == "SAVE_UNTRUSTED"
    assert not mark.exists()


@pytest.mark.parametrize(
    "name, version, code",
    [
        ("CondSCVI", "1.2.2", "SAVE_CLASS"), ("SCANVI", "0.19.0", "SAVE_VERSION"),
        ("SCANVI", "2.1", "SAVE_VERSION"), ("TOTALVI", "1.3.0", "SAVE_CLASS"),
        ("SCANVI", "1.4.2", "SAVE_UNTRUSTED"), (None, "1.4.2", "SAVE_UNTRUSTED"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("part", [b"scvi.nn\nEncoder", b"jax._src.array\n_reconstruct_array"])
def test_parts_of_other_models_are_refused_by_class_and_never_read(
    tmp_path, part, name, version, code
):
    content = content_of(name, version, Call(__import__("collections").Counter, [1]))
    if name == "SCANVI":
        content["var_names"] = []
    pickled = pickle.dumps(content, 2)
    assert pickled.count(b"collections\nCounter") == 1
    path = archive(tmp_path / "model.pt", pickled.replace(b"collections\nCounter", part))
    with pytest.raises(AtlasmapError) as error:
        read_save(path)
    assert error.value.code == code
    asked = part.decode().replace("\n", ".")
    assert (asked if code == "SAVE_UNTRUSTED" else version) in error.value.found
    refused(path, "SAVE_UNTRUSTED")


def test_networks_among_the_settings_are_unsupported(written, tmp_path):
    for k, value in enumerate([torch.nn.ELU, torch.nn.Softplus()]):
        folder = altered(written[0], set_init(var_activation=value), tmp_path / str(k))
        with pytest.raises(AtlasmapError, match="var_activation") as error:
            read_save(folder)
        assert error.value.code == "SAVE_UNSUPPORTED"


def drop_efficiency(content):
    del content["model_state_dict"]["log_per_batch_efficiency"]


def test_only_versions_without_efficiencies_may_lack_them(tmp_path):
    folder = altered(SAVES / "1.3.3/TOTALVI_plain", drop_efficiency, tmp_path / "save")
    with pytest.raises(AtlasmapError, match="log_per_batch_efficiency is missing") as error:
        bundle_of(read_save(folder), folder / "model.pt", None)
    assert error.value.code == "SAVE_WEIGHTS"


@pytest.mark.parametrize("version", ["1.2.2", "1.3.3"])
def test_what_scvi_tools_would_get_wrong_does_not_go_out(version, tmp_path):
    """1.4.2 scales the input of each TOTALVI, also of those that were trained before 1.3.1."""
    folder = SAVES / version / "TOTALVI_plain"
    bundle = bundle_of(read_save(folder), folder / "model.pt", None)
    if version == "1.2.2":
        with pytest.raises(AtlasmapError, match="EXPORT_UNSUPPORTED"):
            write_save(bundle, tmp_path / "out", None)
        assert not (tmp_path / "out").exists()
    else:
        write_save(bundle, tmp_path / "out", None)
        ours, theirs = read_save(tmp_path / "out").weights, read_save(folder).weights
        assert ours.keys() == theirs.keys()
        used = {key for key in weights_out(bundle.model) if not key.endswith("_tracked")}
        assert all(torch.equal(ours[key], theirs[key]) for key in used)


@pytest.fixture
def older():
    """A save of scvi-tools 1.1 with its cells, and the bundle."""
    folder = SAVES / "1.1.6/SCANVI_covariates"
    read = read_save(folder)
    return read, bundle_of(read, folder / "model.pt", None), cells()


def without(key):
    def change(adata):
        del adata.obs[key]

    return change


def other_batch(adata):
    adata.obs["plate"] = adata.obs["plate"].replace({"p1": "p3"})


def normalised(adata):
    adata.X = adata.X.multiply(0.37).tocsr()


def twice(adata):
    adata.var_names = ["gene1", *adata.var_names[1:]]


@pytest.mark.parametrize(
    "change, code",
    [
        (without("plate"), "OBS_KEY_MISSING"),
        (without("type"), "OBS_KEY_MISSING"),
        (without("sex"), "OBS_KEY_MISSING"),
        (without("age"), "OBS_KEY_MISSING"),
        (other_batch, "BATCH_UNKNOWN"),
        (normalised, "COUNTS_NOT_INTEGER"),
        (twice, "GENES_DIFFER"),
    ],
)
def test_cells_that_are_not_the_models_are_refused(older, change, code):
    read, bundle, adata = older
    change(adata)
    with pytest.raises(AtlasmapError) as error:
        latent_in(Cells(adata, "cells"), bundle, read)
    assert error.value.code == code


def test_which_cells_validated_is_known_in_the_saves_order_alone(older):
    read, bundle, adata = older
    own = latent_in(Cells(adata, "cells", own=True), bundle, read)
    assert (own.obs["split"] == "validation").sum() == 5
    other = latent_in(Cells(adata[::-1].copy(), "cells"), bundle, read)
    assert set(other.obs["split"]) == {"train"}
    assert np.allclose(latent_of(other)[::-1], latent_of(own), atol=1e-6)


def test_minified_data_of_older_versions_and_of_other_models(older):
    read, bundle, adata = older
    own = latent_in(Cells(adata, "cells", own=True), bundle, read)
    adata.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    adata.obsm["scvi_latent_qzm"] = np.zeros((len(adata), 3))  # the other model's
    for key, value in (
        ("qzm", own.obsm["scanvi_latent_qzm"]),
        ("qzv", own.obsm["scanvi_latent_qzv"]),
    ):
        adata.obsm[f"_scanvi_latent_{key}"] = value
    with pytest.raises(AtlasmapError, match="LATENT_MISSING"):
        latent_in(Cells(adata, "cells"), bundle, read)
    adata.obs["_scanvi_observed_lib_size"] = own.obs["observed_lib_size"]
    again = latent_in(Cells(adata, "cells"), bundle, read)
    assert np.array_equal(latent_of(again), latent_of(own))
    assert np.array_equal(again.obs["observed_lib_size"], own.obs["observed_lib_size"])
    adata.obsm["_scanvi_latent_qzm"] = np.zeros((len(adata), 4))
    with pytest.raises(AtlasmapError, match="LATENT_WIDTH"):
        latent_in(Cells(adata, "cells"), bundle, read)


ODD = [
    None, 3, -1.5, "abc", [], {}, [1], {"a": 1}, 10**5000, np.arange(3), np.array(5), b"x",
    [[1]], np.array(["a", "a"], object), float("nan"), True, ("x",) * 3, "\ud800",
]  # fmt: skip


def test_contents_of_any_other_shape_are_refused(written, tmp_path):
    """Each part of a save in turn is something else: an error with a code, or a working model."""
    whole = read_archive(written[0] / "model.pt")
    whole["attr_dict"]["history_"] = {}  # of pandas, which is never built
    places = list(paths(whole, 7))
    rng, seen = random.Random(1), set()
    for _ in range(600):
        at, odd = rng.choice(places), rng.choice(ODD)
        content = replaced(whole, at, odd)
        path = tmp_path / "other.pt"
        torch.save(content, path)
        try:
            bundle = bundle_of(read_save(path), path, None)
            save(bundle, tmp_path / "b")
            seen.add("read")
        except AtlasmapError as error:
            seen.add(error.code)
    assert {"SAVE_BROKEN", "SAVE_UNSUPPORTED", "SAVE_WEIGHTS", "read"} <= seen


def paths(node, depth: int, at: tuple = ()):
    """Places in nested dictionaries."""
    yield at
    if isinstance(node, dict) and depth:
        for key, value in node.items():
            yield from paths(value, depth - 1, (*at, key))


def replaced(node, at: tuple, odd):
    """A copy with something else at a place."""
    if not at:
        return odd
    return node | {at[0]: replaced(node[at[0]], at[1:], odd)}


@needs_shared
def test_every_singlet_of_the_cell_lines_is_named_after_surgery_onto_an_import():
    folder = SHARED / "golden" / "scanvi_fix"
    right, n = 0, 0
    for file in ("celseq2_5lines_p3", "celseq2_3lines", "dropseq_3lines"):
        bundle = bundle_of(read_save(folder), folder / "model.pt", None)
        row = Dataset(
            id=file, path=f"{file}.h5ad", role="query", batch_key="batch", truth_key="cell_line",
            obs_filter="demuxlet_call == 'SNG'",
        )  # fmt: skip
        config = DataConfig()
        whole = checked_dataset(row, SHARED / "data" / row.path, config)
        [batch] = whole.obs["batch"].unique()
        query = prepare_query(whole, row, batch, bundle.registry, config).adata
        mapping = map_query(bundle, query, SurgerySettings(max_epochs=50), "per_batch", 0)
        labels = np.array(bundle.registry.labels)
        predicted = labels[mapping.latent.obsm["soft_labels"].argmax(1)]
        right += int((predicted == query.obs["truth"].astype(str)).sum())
        n += query.n_obs
    assert right == n == 702
