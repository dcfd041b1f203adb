"""A bundle is whole, its own, and of a format that is understood; anything else is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from small import CPU, SCANVI, states_equal

from atlasmap.bundle import FORMAT, load, load_delta, save, save_delta
from atlasmap.errors import AtlasmapError
from atlasmap.files import sha256
from atlasmap.mapping.given import check_latent, check_taken, read_latent
from atlasmap.mapping.query import map_query
from atlasmap.mapping.reference import fit_scanvi, reference_latent
from atlasmap.models import ops
from atlasmap.settings import SurgerySettings
from atlasmap.training.split import Split


@pytest.fixture
def folder(scanvi, tmp_path):
    save(scanvi, tmp_path / "bundle")
    return tmp_path / "bundle"


def rewrite(folder: Path, change) -> None:
    """Alter a bundle and make its checksums right again."""
    about = json.loads((folder / "settings.json").read_text())
    change(about)
    about["files"] = {name: sha256(folder / name) for name in about["files"]}
    (folder / "settings.json").write_text(json.dumps(about))


def refused(folder: Path, code: str) -> AtlasmapError:
    with pytest.raises(AtlasmapError) as error:
        load(folder, CPU)
    assert error.value.code == code and error.value.mend
    return error.value


def test_one_altered_byte_of_the_weights_is_refused_wherever_it_is(folder):
    path = folder / "weights.safetensors"
    whole = path.read_bytes()
    for at in (0, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(folder, "BUNDLE_ALTERED")
    path.write_bytes(whole)
    load(folder, CPU)


def test_another_gene_list_is_refused_even_with_right_checksums(folder):
    path = folder / "registry.json"
    registry = json.loads(path.read_text())
    for change in (
        lambda genes: genes[1:] + genes[:1],  # another order
        lambda genes: ["other", *genes[1:]],
        lambda genes: genes[1:],
    ):
        path.write_text(json.dumps(registry | {"genes": change(registry["genes"])}))
        refused(folder, "BUNDLE_ALTERED")
        rewrite(folder, lambda about: None)
        refused(folder, "BUNDLE_GENES")


def test_settings_that_say_less_or_something_else_are_refused(folder):
    path = folder / "settings.json"
    whole = path.read_text()
    rewrite(folder, lambda about: about["files"].pop("registry.json"))
    refused(folder, "BUNDLE_ALTERED")
    for text in (whole[:100], "[1]", "3", ""):
        path.write_text(text)
        refused(folder, "BUNDLE_ALTERED")
    path.write_text(whole)
    registry = folder / "registry.json"
    registry.write_text(json.dumps(json.loads(registry.read_text()) | {"other": 1}))
    rewrite(folder, lambda about: None)
    refused(folder, "BUNDLE_ALTERED")


def test_weights_that_do_not_name_their_genes_are_refused(folder):
    weights = load_file(folder / "weights.safetensors")
    save_file(weights, folder / "weights.safetensors")
    rewrite(folder, lambda about: None)
    refused(folder, "BUNDLE_GENES")


def test_weights_of_another_architecture_are_refused(folder):
    rewrite(folder, lambda about: about["scvi"].update(n_latent=7))
    assert "decoder_z1.mean.weight" in refused(folder, "BUNDLE_WEIGHTS").found
    weights = load_file(folder / "weights.safetensors")
    weights.pop("scvi.scale.bias")
    rewrite(folder, lambda about: about["scvi"].update(n_latent=5))
    genes = {"genes": metadata(folder)}
    save_file(weights, folder / "weights.safetensors", genes)
    rewrite(folder, lambda about: None)
    assert "scale.bias" in refused(folder, "BUNDLE_WEIGHTS").found


def metadata(folder: Path) -> str:
    from safetensors import safe_open

    with safe_open(folder / "weights.safetensors", "pt") as file:
        return file.metadata()["genes"]


def test_altered_weights_with_right_checksums_do_not_pass_the_golden_cells(folder):
    genes = {"genes": metadata(folder)}
    weights = load_file(folder / "weights.safetensors")
    weights["scvi.encoder.mean.bias"] += 0.01
    save_file(weights, folder / "weights.safetensors", genes)
    rewrite(folder, lambda about: None)
    refused(folder, "BUNDLE_GOLDEN")


def test_a_newer_format_is_refused_and_says_whose_it_is(folder):
    rewrite(folder, lambda about: about.update(format=FORMAT + 1))
    error = refused(folder, "BUNDLE_NEWER")
    assert "written by atlasmap 0.1.0" in error.found and "later one" in error.mend
    for odd in ("3", None, 0):
        rewrite(folder, lambda about, odd=odd: about.update(format=odd))
        refused(folder, "BUNDLE_FORMAT")


def as_format_1(folder: Path) -> None:
    """What the first format had: no say in where covariates enter, no genes beside the weights."""
    weights = load_file(folder / "weights.safetensors")
    save_file(weights, folder / "weights.safetensors")

    def change(about):
        about["format"] = 1
        del about["scvi"]["deeply_inject_covariates"]

    rewrite(folder, change)


def test_a_bundle_of_format_1_is_read_and_mapped_onto(folder, scanvi, queries, tmp_path):
    as_format_1(folder)
    old = load(folder, CPU)
    assert states_equal(old.model.state_dict(), scanvi.model.state_dict())
    assert old.about["format"] == FORMAT and old.about["scvi"]["deeply_inject_covariates"] is True
    mapping = map_query(old, queries["query0"], SurgerySettings(max_epochs=2), "per_batch", 0)
    save_delta(mapping.bundle, tmp_path / "delta", mapping.new)
    assert json.loads((tmp_path / "delta/settings.json").read_text())["format"] == FORMAT
    again = load_delta(tmp_path / "delta", load(folder, CPU))
    assert states_equal(again.model.state_dict(), mapping.bundle.model.state_dict())


def test_a_killed_save_leaves_no_bundle(scanvi, tmp_path, monkeypatch):
    from atlasmap import files

    renamed = []

    def rename(source, target, whole=files.rename_recorded):
        if len(renamed) == 2:
            raise KeyboardInterrupt
        renamed.append(target)
        whole(source, target)

    monkeypatch.setattr(files, "rename_recorded", rename)
    with pytest.raises(KeyboardInterrupt):
        save(scanvi, tmp_path / "bundle")
    assert len(renamed) == 2 and not (tmp_path / "bundle/settings.json").exists()
    refused(tmp_path / "bundle", "BUNDLE_MISSING")
    monkeypatch.undo()
    save(scanvi, tmp_path / "bundle")
    with np.load(tmp_path / "bundle/golden.npz") as golden:
        assert set(golden) == {"qz_mean", "qz_var", "px_mean", "soft_labels"}
    again = load(tmp_path / "bundle", CPU)
    assert states_equal(again.model.state_dict(), scanvi.model.state_dict())


def corrupt(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["weights.safetensors", "registry.json", "golden.npz"])
def test_one_altered_bit_is_refused(scanvi, tmp_path, name):
    save(scanvi, tmp_path)
    corrupt(tmp_path / name)
    with pytest.raises(AtlasmapError) as error:
        load(tmp_path, CPU)
    assert error.value.code == "BUNDLE_ALTERED" and name in error.value.expected


def test_a_half_written_bundle_is_no_bundle(scanvi, tmp_path):
    save(scanvi, tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(AtlasmapError) as error:
        load(tmp_path, CPU)
    assert error.value.code == "BUNDLE_INCOMPLETE"
    (tmp_path / "settings.json").unlink()
    with pytest.raises(AtlasmapError) as error:
        load(tmp_path, CPU)
    assert error.value.code == "BUNDLE_MISSING"


def test_golden_outputs_notice_another_computation(scanvi, tmp_path, monkeypatch):
    save(scanvi, tmp_path)
    network = ops.network
    monkeypatch.setattr(ops, "network", lambda *given, **more: network(*given, **more) * 1.01)
    with pytest.raises(AtlasmapError) as error:
        load(tmp_path, CPU)
    assert error.value.code == "BUNDLE_GOLDEN"


def test_a_latent_of_another_model_is_refused(reference, scvi, scanvi, folder):
    split = Split(np.arange(reference.n_obs), np.arange(0))
    reference_latent(reference, scanvi, split, CPU).write_h5ad(folder / "reference_latent.h5ad")
    check_taken(folder, "fixed", "Unknown", [], [], [])
    other, _ = fit_scanvi(reference, scvi, SCANVI, "linear", 1, CPU)
    reference_latent(reference, other, split, CPU).write_h5ad(folder / "reference_latent.h5ad")
    with pytest.raises(AtlasmapError) as error:
        check_taken(folder, "fixed", "Unknown", [], [], [])
    assert error.value.code == "BUNDLE_LATENT_DIFFERS"
    with pytest.raises(AtlasmapError, match="BUNDLE_LATENT_DIFFERS"):
        check_latent(load(folder, CPU), read_latent(folder), folder)


def test_a_reference_that_is_not_what_the_config_says_is_named(reference, scanvi, folder):
    split = Split(np.arange(reference.n_obs), np.arange(0))
    reference_latent(reference, scanvi, split, CPU).write_h5ad(folder / "reference_latent.h5ad")
    plain = ("fixed", "Unknown", [], [], [])
    check_taken(folder, *plain)
    for at, other in enumerate(("linear", "none", ["cell_type"], ["age"], ["fine"])):
        with pytest.raises(AtlasmapError) as error:
            check_taken(folder, *plain[:at], other, *plain[at + 1 :])
        assert error.value.code == "REFERENCE_DIFFERS"
        assert (other if isinstance(other, str) else other[0]) in error.value.found
