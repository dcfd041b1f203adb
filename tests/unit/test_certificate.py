"""The certificate proves what it says, and is not given where something moved."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import CPU

from atlasmap.bundle import load, save
from atlasmap.commands.mapping import write_mapping
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.mapping import query as mapping_module
from atlasmap.mapping.certificate import frozen_rows, probe_cells, unmoved, witness
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.query import is_mapped, map_query
from atlasmap.mapping.reference import fit_scvi
from atlasmap.models.surgery import append_categories, split_state
from atlasmap.settings import DenoiseSettings, ScviSettings, SurgerySettings, TrainSettings

SURGERY = SurgerySettings(max_epochs=4)


def test_a_mapping_has_its_certificate(reference, scanvi, queries, tmp_path):
    made = map_query(
        scanvi, queries["query0"], SURGERY, "per_batch", 0, probe=reference[:50].copy()
    )
    write_mapping(made, None, tmp_path / "query0", DenoiseSettings())
    said = json.loads((tmp_path / "query0/certificate.json").read_text())
    assert said["reference"]["unchanged"] is True and said["reference"]["n_probe_cells"] == 50
    for name in ("weights", "latent", "soft_labels", "golden_qz_mean", "golden_soft_labels"):
        assert name in said["reference"]["compared"]
    moved = said["query"]["displacement"]
    assert 0 < moved["median"] <= moved["q90"] <= moved["max"]
    assert 0 <= moved["labels_changed"] <= 1
    assert said["training"]["n_trainable"] > 0 and said["training"]["n_steps"] == 4


def test_displacement_is_from_the_average_reference_batch(scanvi, queries):
    cells = queries["query0"]
    made = map_query(scanvi, cells, SURGERY, "per_batch", 0)
    model, encoded = made.bundle.model, encode(made.bundle.registry, cells, CPU)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with frozen_rows(model):
        there = embed(model, encoded).mean
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    distance = np.linalg.norm(there - made.latent.obsm["X_latent"], axis=1)
    said = made.certificate["query"]["displacement"]["median"]
    assert said == pytest.approx(float(np.median(distance)), rel=1e-6)


@pytest.mark.parametrize("what", ["weights", "running statistics"])
def test_a_reference_that_moved_gets_none(reference, queries, monkeypatch, what):
    norm = "both" if what == "running statistics" else "none"
    settings = ScviSettings(
        n_hidden=8, n_latent=3, use_batch_norm=norm, use_layer_norm="none",
        train=TrainSettings(max_epochs=1),
    )  # fmt: skip
    bundle, _ = fit_scvi(reference, Registry.of(reference), settings, 0, CPU)
    honest = mapping_module.fit

    def sloppy(objective, *args, **kwargs):
        out = honest(objective, *args, **kwargs)
        state = split_state(objective.model)[0]
        name = next(k for k in state if what == "weights" or "running_mean" in k)
        state[name][(0,) * state[name].dim()] += 1e-6
        return out

    monkeypatch.setattr(mapping_module, "fit", sloppy)
    with pytest.raises(AtlasmapError) as error:
        map_query(bundle, queries["query0"], SURGERY, "per_batch", 0)
    assert error.value.code == "REFERENCE_MOVED"


def test_a_latent_that_moved_is_seen_though_weights_did_not(reference, scanvi):
    """Also what no weight shows: another way of computing."""
    probe = reference[:20].copy()
    before = witness(scanvi.model, scanvi.registry, probe)
    changed = witness(scanvi.model, scanvi.registry, probe)
    changed.probe.mean[3, 1] += 1e-7
    unmoved(before, witness(scanvi.model, scanvi.registry, probe))
    with pytest.raises(AtlasmapError) as error:
        unmoved(before, changed)
    assert "latent" in error.value.found
    with pytest.raises(AtlasmapError) as error:  # a weight that nothing which was asked depends on
        unmoved(before, replace(before, weights="another"))
    assert "weights" in error.value.found


def test_frozen_trains_nothing(scanvi, queries, tmp_path):
    save(scanvi, tmp_path / "bundle")
    by_hand = load(tmp_path / "bundle", CPU)
    append_categories(by_hand.model, {0: ["query0"]}, 0, frozen=True)
    cells = encode(by_hand.registry.extended({0: ["query0"]}), queries["query0"], CPU)
    expected = embed(by_hand.model, cells).mean
    made = map_query(scanvi, queries["query0"], SURGERY, "frozen", 0)
    assert np.array_equal(made.latent.obsm["X_latent"], expected)
    said = made.certificate
    assert said["query"]["displacement"]["max"] == 0 and said["training"]["n_trainable"] == 0
    write_mapping(made, None, tmp_path / "query0", DenoiseSettings())
    whole = load(tmp_path / "bundle", CPU)
    args = (tmp_path / "query0", whole, queries["query0"], SURGERY)
    assert is_mapped(*args, "frozen", 0) and not is_mapped(*args, "per_batch", 0)
    (tmp_path / "query0/certificate.json").write_text("{}")
    assert not is_mapped(*args, "frozen", 0)


def test_frozen_is_what_is_left_where_the_encoder_does_not_see_the_batch(reference, queries):
    settings = ScviSettings(
        n_hidden=8, n_latent=3, encode_covariates=False, train=TrainSettings(max_epochs=1)
    )
    registry = Registry.of(reference)
    bundle, _ = fit_scvi(reference, registry, settings, 0, CPU)
    made = map_query(bundle, queries["query0"], SURGERY, "frozen", 0)
    assert made.latent.n_obs == queries["query0"].n_obs


def test_probe_cells_are_some_of_the_reference(reference, tmp_path):
    reference.write_h5ad(tmp_path / "reference.h5ad")
    found = probe_cells(tmp_path / "reference.h5ad")
    assert list(found.obs_names) == list(reference.obs_names)
    assert (found.X != reference.X).nnz == 0
