"""Joint and per-batch surgery agree where their differences are taken away, and only there."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from small import CPU, SCANVI, SCVI
from torch import nn

from atlasmap.audit.matched import Causes, RowAdam
from atlasmap.audit.reference import (
    answer,
    named,
    reasons,
    scores,
    soft_labels,
    under_surgery,
)
from atlasmap.audit.strategies import (
    MATCHED,
    Query,
    audit_strategies,
    by_batch,
    compared,
    matched,
    recommendation,
)
from atlasmap.bundle import load, reference_hash, save
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.mapping.de_novo import apart, with_query
from atlasmap.mapping.embed import Embedding, embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.query import joined, map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent
from atlasmap.settings import SurgerySettings, TrainSettings

SURGERY = SurgerySettings(max_epochs=6, batch_size=24)  # several minibatches, not as many a batch


@pytest.fixture
def uneven(queries):
    """Two query batches, one half as large."""
    small = queries["query1"][: queries["query1"].n_obs // 2].copy()
    return {"query0": queries["query0"], "query1": small}


@pytest.fixture
def alone(scanvi, uneven, tmp_path):
    """What each batch is when it is mapped by itself, and the reference's folder."""
    save(scanvi, tmp_path / "reference")
    parts = [
        map_query(load(tmp_path / "reference", CPU), uneven[name], SURGERY, "per_batch", 0).latent
        for name in sorted(uneven)
    ]
    keys = ("X_latent", "latent_var", "soft_labels")
    said = Embedding(*(np.concatenate([part.obsm[key] for part in parts]) for key in keys))
    return tmp_path / "reference", said


def largest(one: Embedding, other: Embedding) -> float:
    return float(np.abs(one.mean - other.mean).max())


def test_matched_joint_surgery_is_surgery_batch_by_batch(alone, uneven):
    folder, said = alone
    found = matched(load(folder, CPU), Query.of(uneven, SURGERY, 0), Causes())
    assert largest(said, found) == 0  # so that nothing grows, however long the training
    assert np.array_equal(said.soft_labels, found.soft_labels)


@pytest.mark.parametrize("cause", ["updates", "scale", "momentum"])
def test_each_cause_alone_breaks_the_agreement(alone, uneven, cause):
    folder, said = alone
    found = matched(load(folder, CPU), Query.of(uneven, SURGERY, 0), MATCHED[cause])
    assert largest(said, found) > 1e-3


def test_matched_surgery_leaves_the_reference(alone, uneven):
    reference = load(alone[0], CPU)
    before = reference_hash(reference.model)
    matched(reference, Query.of(uneven, SURGERY, 0), Causes(True, True, True))
    assert reference_hash(reference.model) == before


def test_a_cells_latent_does_not_depend_on_the_cells_around_it(scanvi, queries, rng):
    query = joined(list(queries.values()))
    bundle = map_query(scanvi, query, SURGERY, "joint", 0).bundle
    cells = encode(bundle.registry, query, CPU)
    whole = embed(bundle.model, cells)
    for size in (1, 3, 50, len(cells)):
        some = rng.permutation(len(cells))[:size]
        found = embed(bundle.model, cells.taken(some))
        assert np.abs(found.mean - whole.mean[some]).max() < 1e-6
        assert np.abs(found.soft_labels - whole.soft_labels[some]).max() < 1e-6
    assert largest(whole, by_batch(bundle.model, cells)) < 1e-6


def test_rows_step_as_torchs_adam_does_and_absent_rows_do_not(rng):
    settings = TrainSettings(learning_rate=0.05)
    start = torch.tensor(rng.normal(size=(2, 3)), dtype=torch.float32)
    gradients = torch.tensor(rng.normal(size=(7, 2, 3)), dtype=torch.float32)
    table = nn.Parameter(start.clone())
    rows = RowAdam([table], settings)
    own = [nn.Parameter(start[k].clone()) for k in range(2)]
    adams = [torch.optim.Adam([p], lr=0.05, eps=settings.adam_eps) for p in own]
    for step, gradient in enumerate(gradients):
        present = torch.tensor([True, step % 3 != 1])
        table.grad = gradient.clone()
        rows.step(present)
        for k in range(2):
            if present[k]:
                own[k].grad = gradient[k].clone()
                adams[k].step()
    assert torch.allclose(table, torch.stack(own), atol=1e-6)


def test_comparison_by_hand():
    soft = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    one = Embedding(np.zeros((3, 2), np.float32), np.full((3, 2), 0.5, np.float32), soft)
    moved = np.array([[3.0, 4], [0, 0], [0, 1]], np.float32)
    other = Embedding(moved, one.var, np.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]], np.float32))
    batch = np.array(["x", "x", "y"])
    table, labels = compared("joint", one, other, batch, ["a", "b"])
    everyone = table.set_index("batch").loc["all"]
    assert everyone["latent_max"] == 5 and everyone["latent_median"] == 1
    assert everyone["median_in_posterior_sd"] == 1 and everyone["flips"] == pytest.approx(1 / 3)
    assert everyone["confidence"] == pytest.approx((0 + 0 + 0.1) / 3, abs=1e-6)
    assert dict(zip(labels["label"], labels["n"], strict=True)) == {"a": 2, "b": 1}


def test_the_audit_says_what_each_cause_is_worth(alone, uneven, scanvi):
    folder, said = alone
    query = Query.of(uneven, SURGERY, 0)
    joint = map_query(load(folder, CPU), query.cells, SURGERY, "joint", 0).bundle
    table, labels = audit_strategies(lambda: load(folder, CPU), query, said, joint)
    everyone = table[table["batch"] == "all"].set_index("comparison")
    assert set(everyone.index) == {
        "joint", "joint_by_batch", *MATCHED, "another_seed", "inference",
    }  # fmt: skip
    assert everyone.loc["matched", "latent_max"] < 1e-5 < everyone.loc["joint", "latent_max"]
    assert everyone.loc["inference", "latent_max"] < 1e-5
    assert set(table["batch"]) == {"all", "query0", "query1"} and len(labels)
    assert everyone.loc["another_seed", "latent_max"] > 1e-3
    text = recommendation(table, SURGERY)
    assert "per_batch" in text and "batches have fewer than" in text and "another seed" in text
    odd = SurgerySettings(early_stopping=True, gradient_clip=1.0)
    assert "without early_stopping, gradient_clip" in recommendation(table, odd)
    one = table[table["batch"] != "query1"]
    assert "one query batch" in recommendation(one, SURGERY)


def test_matched_surgery_knows_inferred_library_sizes(reference, uneven):
    settings = SCVI.__class__(**vars(SCVI) | {"use_observed_lib_size": False})
    registry = Registry.of(reference)
    bundle, _ = fit_scvi(reference, registry, settings, 0, CPU)
    alone = [
        map_query(deepcopy(bundle), uneven[name], SURGERY, "per_batch", 0).latent.obsm["X_latent"]
        for name in sorted(uneven)
    ]
    said = matched(bundle, Query.of(uneven, SURGERY, 0), Causes())
    assert np.abs(said.mean - np.concatenate(alone)).max() < 1e-5


def test_shared_columns_cannot_be_matched(alone, uneven):
    reference = load(alone[0], CPU)
    query = Query.of(uneven, SURGERY, 0)
    query.cells.obs["donor"] = "new"
    registry = reference.registry
    odd = type(registry)(**vars(registry) | {"categorical": {"donor": ["old"]}})
    with pytest.raises(AtlasmapError) as error:
        matched(type(reference)(reference.model, odd, {}, None), query, Causes())
    assert error.value.code == "AUDIT_COVARIATES"


# the reference's accuracy


@pytest.fixture
def kept(reference, scanvi):
    """A reference's latent, as it is beside its bundle."""
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    return reference_latent(reference, scanvi, split, CPU)


def test_under_surgery_the_reference_is_named_as_ever(reference, scanvi, kept, queries):
    own = named(kept)
    after = map_query(scanvi, queries["query0"], SURGERY, "per_batch", 0).bundle
    before = soft_labels(scanvi, reference)
    again = under_surgery(kept, reference, after, before)
    assert np.array_equal(own.soft.probabilities, again.soft.probabilities)
    one, other = (scores(cells, "q", "x", "Unknown") for cells in (own, again))
    assert one.equals(other) and set(one["split"]) == {"train", "validation"}
    before[3, 0] += 1e-6
    with pytest.raises(AtlasmapError) as error:
        under_surgery(kept, reference, after, before)
    assert error.value.code == "REFERENCE_MOVED"


def test_what_is_trained_de_novo_is_reference_and_unlabelled_query(reference, queries):
    for part in queries.values():
        part.obs["truth"] = "secret"
    parts = list(queries.values())
    whole = with_query(reference, parts)
    assert whole.n_obs == reference.n_obs + sum(part.n_obs for part in parts)
    assert list(whole.var_names) == list(reference.var_names)
    role = whole.obs["role"].astype(str)
    assert (whole.obs.loc[role == "query", "label"] == "Unknown").all()
    kept = whole.obs.loc[role == "reference", "label"].astype(str).to_numpy()
    assert (kept == reference.obs["label"].astype(str).to_numpy()).all()
    assert "secret" not in whole.obs.astype(str).to_numpy()
    assert not whole.obs_names.has_duplicates and not whole.obs.isna().any().any()


def test_de_novo_is_another_model_whose_query_is_named(reference, queries, scanvi, kept):
    whole = with_query(reference, list(queries.values()))
    registry = Registry.of(whole)
    scvi, _ = fit_scvi(whole, registry, SCVI, 0, CPU)
    bundle, split = fit_scanvi(whole, scvi, SCANVI, "fixed", 0, CPU)
    latent = reference_latent(whole, bundle, split, CPU)
    of_reference, query = apart(latent)
    assert of_reference.n_obs == reference.n_obs and query.n_obs == whole.n_obs - reference.n_obs
    assert set(query.obs["batch"]) == {"query0", "query1"} and "label" not in query.obs
    assert query.obsm["soft_labels"].shape == (query.n_obs, len(registry.labels))
    own, other = scores(named(kept), "", "reference", "Unknown"), named(latent)
    assert len(other.labels) == reference.n_obs
    table = scores(other, "both", "de_novo", "Unknown")
    text = answer(pd.concat([own, table]))
    assert "unchanged, bit for bit" in text and "another one each time" in text
    said = reasons(bundle.about, other, query.n_obs, "Unknown")
    assert said["labelled_share"] == pytest.approx(reference.n_obs / whole.n_obs)
    steps, size = bundle.about["training"]["n_steps"], bundle.about["scanvi"]["train"]["batch_size"]
    n_train = int((other.split == "train").sum())
    assert said["epochs_per_labelled_cell"] == pytest.approx(steps * size / n_train)
