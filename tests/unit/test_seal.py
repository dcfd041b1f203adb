"""A reference is whole or refused: one fingerprint over all that a mapping reads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
from small import CPU, learned

from atlasmap.audit.seal import check_seal, seal
from atlasmap.bundle import load, save
from atlasmap.commands.main import app
from atlasmap.errors import AtlasmapError
from atlasmap.files import sha256
from atlasmap.labels.calibrated import read_calibration, read_profiles, save_profiles
from atlasmap.labels.umap import FittedMap
from atlasmap.mapping.given import read_latent
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.reference import reference_latent
from atlasmap.training.split import Split


@pytest.fixture
def folder(reference, scanvi, tmp_path):
    """A bundle, its latent, calibration and map."""
    folder = tmp_path / "bundle"
    save(scanvi, folder)
    split = Split(np.arange(reference.n_obs), np.arange(0))
    latent = reference_latent(reference, scanvi, split, CPU)
    latent.write_h5ad(folder / "reference_latent.h5ad")
    made, profiles = learned(scanvi.registry.labels, len(scanvi.registry.genes))
    made.write(folder / "calibration.json")
    save_profiles(profiles, folder / "profiles.npz")
    positions = np.random.default_rng(0).normal(size=(len(latent), 2))
    FittedMap(latent_of(latent), positions, 15, 1.5, 0.9, 0).save(folder / "umap.npz")
    return folder


def refused(code: str, name: str, function, *args) -> AtlasmapError:
    with pytest.raises(AtlasmapError) as error:
        function(*args)
    assert error.value.code == code and error.value.mend
    assert name in error.value.expected + error.value.found
    return error.value


def swap_labels(path: Path) -> None:
    latent = anndata.read_h5ad(path)
    labels = latent.obs["label"].astype(str)
    first, second = labels.unique()[:2]
    latent.obs["label"] = labels.replace({first: second, second: first}).astype("category")
    latent.write_h5ad(path)


def times_ten(path: Path) -> None:
    said = json.loads(path.read_text())
    said["views"][0]["naming"] = [10 * weight for weight in said["views"][0]["naming"]]
    path.write_text(json.dumps(said))


ALTERED = {
    "two labels swapped": ("reference_latent.h5ad", swap_labels),
    "calibration ten times": ("calibration.json", times_ten),
    "other profiles": ("profiles.npz", lambda path: path.write_bytes(b"garbage")),
    "a garbage map": ("umap.npz", lambda path: path.write_bytes(b"garbage")),
    "a space in the settings": (
        "settings.json", lambda path: path.write_text(f"{path.read_text()} "),
    ),
    "another history": ("history.csv", lambda path: path.write_text("epoch\n")),
    "denoised cells from elsewhere": ("denoised.h5ad", lambda path: path.write_bytes(b"x")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), ALTERED.values(), ids=ALTERED)
def test_a_sealed_reference_names_the_file_that_was_altered(folder, name, change):
    fingerprint = seal(folder)
    assert check_seal(folder) == fingerprint == seal(folder)
    change(folder / name)
    refused("BUNDLE_ALTERED", name, check_seal, folder)


@pytest.mark.parametrize("name", ["calibration.json", "profiles.npz", "umap.npz",
                                  "reference_latent.h5ad"])  # fmt: skip
def test_a_file_that_is_left_out_is_missed_until_it_is_sealed_again(folder, name):
    before = seal(folder)
    (folder / name).unlink()
    assert "atlasmap seal" in refused("BUNDLE_INCOMPLETE", name, check_seal, folder).mend
    assert seal(folder) == check_seal(folder) != before


def test_a_seal_that_was_altered_is_none(folder):
    seal(folder)
    path = folder / "seal.json"
    whole = path.read_text()
    said = json.loads(whole)
    for other in (
        said | {"files": said["files"] | {"umap.npz": "0" * 64}},
        said | {"files": {}}, said | {"files": None}, {"format": 1}, said | {"fingerprint": "0"},
    ):  # fmt: skip
        path.write_text(json.dumps(other))
        refused("BUNDLE_ALTERED", "", check_seal, folder)
    path.write_text(whole[:50])
    refused("BUNDLE_ALTERED", "seal.json", check_seal, folder)


def test_a_bundle_of_before_is_read_with_a_warning_that_says_how_to_seal_it(folder, caplog):
    assert check_seal(folder) is None
    assert f"atlasmap seal {folder}" in caplog.text


def test_what_does_not_belong_together_is_not_sealed(folder, scanvi, tmp_path):
    whole = tmp_path / "whole"
    labels_of_model, n_genes = scanvi.registry.labels, len(scanvi.registry.genes)
    shutil.copytree(folder, whole)

    def labels(path):
        path.write_text(path.read_text().replace("L0.0", "of another model"))

    def other_cells(path):
        fitted = FittedMap.load(path)
        FittedMap(fitted.latent + 1, *list(vars(fitted).values())[1:]).save(path)

    def not_a_number(path):
        path.write_text(path.read_text().replace('"coverage": 0.9', '"coverage": NaN'))

    def of_another_depth(path):
        _, profiles = learned(labels_of_model, n_genes)
        save_profiles([replace(profiles[0], scale=9.0)], path)

    def infinite(path):
        latent = anndata.read_h5ad(path)
        latent.obsm["scanvi_latent_qzm"][300, 1] = np.inf
        latent.write_h5ad(path)

    for name, change, code in [
        ("calibration.json", labels, "BUNDLE_ALTERED"),
        ("calibration.json", not_a_number, "CALIBRATION_FORMAT"),
        ("profiles.npz", of_another_depth, "BUNDLE_ALTERED"),
        ("profiles.npz", ALTERED["other profiles"][1], "PROFILES_UNREADABLE"),
        ("umap.npz", other_cells, "BUNDLE_ALTERED"),
        ("umap.npz", ALTERED["a garbage map"][1], "UMAP_UNREADABLE"),
        ("reference_latent.h5ad", infinite, "BUNDLE_LATENT_DIFFERS"),
    ]:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        change(folder / name)
        refused(code, name, seal, folder)
        assert not (folder / "seal.json").exists()


def test_parts_that_cannot_be_read_are_refused_without_a_seal_too(folder):
    (folder / "umap.npz").write_bytes(b"")
    refused("UMAP_UNREADABLE", "umap.npz", FittedMap.load, folder / "umap.npz")
    (folder / "profiles.npz").write_bytes(b"")
    path = folder / "profiles.npz"
    refused("PROFILES_UNREADABLE", "profiles.npz", read_profiles, path, 1, 1)
    for text in (
        "null",
        "[]",
        '{"format": 2}',
        '{"format": 1}',
        '{"format": 1, "scheme": null}',
        "{",
    ):
        (folder / "calibration.json").write_text(text)
        path = folder / "calibration.json"
        refused("CALIBRATION_FORMAT", "calibration.json", read_calibration, path)
    (folder / "reference_latent.h5ad").write_bytes(b"x")
    refused("FILE_NOT_HDF5", "reference_latent.h5ad", read_latent, folder)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("settings.json", '"n_latent": 5', '"n_latent": null'),
        ("settings.json", '"seed": 0', '"seed": null'),
        ("settings.json", '"dropout_rate": 0.2', '"dropout_rate": NaN'),
        ("settings.json", '"kind": "scanvi"', '"kind": "a model"'),
        ("settings.json", '"variant": "fixed"', '"variant": null'),
        ("settings.json", '"n_steps": 9', '"n_steps": null'),
        ("settings.json", '"library": null', '"library": [null]'),
        ("registry.json", '"batches": [', '"batches": [null,'),
        ("registry.json", '"unlabeled_category": "Unknown"', '"unlabeled_category": 3'),
    ],
)
def test_what_is_of_another_type_is_refused_by_name(folder, name, old, new):
    text, about = (folder / name).read_text(), folder / "settings.json"
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    if name != "settings.json":  # its checksum made right
        said = json.loads(about.read_text())
        said["files"][name] = sha256(folder / name)
        about.write_text(json.dumps(said))
    refused("BUNDLE_ALTERED", name, load, folder, CPU)


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.npz", "history.csv"])
def test_nonsense_with_a_right_checksum_is_refused_by_name(folder, name):
    about = folder / "settings.json"
    (folder / name).write_bytes(b"")
    said = json.loads(about.read_text())
    said["files"][name] = sha256(folder / name)
    about.write_text(json.dumps(said))
    refused("BUNDLE_ALTERED", name, load, folder, CPU)


@pytest.mark.parametrize(
    "change",
    [{"n_neighbors": 1.5}, {"n_neighbors": -1}, {"seed": 0.5}, {"a": 1j}, {"latent": "x"},
     {"latent": np.full((5, 2), 1e30)}, {"positions": np.zeros((4, 2))}, {"b": np.nan}],
    ids=str,
)  # fmt: skip
def test_a_map_of_other_numbers_is_refused(tmp_path, change):
    path, right = tmp_path / "umap.npz", {"latent": np.zeros((5, 2)), "positions": np.ones((5, 2))}
    right |= {"n_neighbors": 3, "a": 1.5, "b": 0.9, "seed": 0}
    np.savez(path, **right)
    assert FittedMap.load(path).n_neighbors == 3
    np.savez(path, **right | change)
    refused("UMAP_UNREADABLE", "umap.npz", FittedMap.load, path)


def test_the_command_seals_and_checks(folder, capsys):
    app(["seal", str(folder), "--check"], exit_on_error=False, result_action="return_value")
    assert "not sealed" in capsys.readouterr().out
    app(["seal", str(folder)], exit_on_error=False, result_action="return_value")
    fingerprint = capsys.readouterr().out.strip()
    app(["seal", str(folder), "--check"], exit_on_error=False, result_action="return_value")
    assert len(fingerprint) == 64 and capsys.readouterr().out.strip() == fingerprint
