"""The reference cannot move; the query does; a batch's mapping is its own."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from small import CONFIG, CPU, SCANVI, SCVI, states_equal

from atlasmap.bundle import load, load_delta, reference_hash, save, save_delta
from atlasmap.data.prepare import checked_dataset, prepare_query
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.errors import AtlasmapError
from atlasmap.labels.atlas import assemble, check_ids
from atlasmap.labels.umap import fit_map
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.query import as_train_settings, joined, map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent
from atlasmap.models.compiled.labels import NEGLIGIBLE
from atlasmap.models.surgery import append_categories, split_state
from atlasmap.settings import (
    ScviSettings,
    SurgerySettings,
    TrainSettings,
    TransferSettings,
    UmapSettings,
)
from atlasmap.training.split import Split

SURGERY = SurgerySettings(max_epochs=4)


def copy_of(bundle, tmp_path):
    save(bundle, tmp_path / "bundle")
    return load(tmp_path / "bundle", CPU)


def test_reference_is_bit_identical_and_the_query_moved(
    bodies, reference, scanvi, queries, tmp_path
):
    cells = encode(scanvi.registry, reference, CPU)
    before_state = {k: v.clone() for k, v in split_state(scanvi.model)[0].items()}
    before = embed(scanvi.model, cells)
    frozen = copy_of(scanvi, tmp_path)
    append_categories(frozen.model, {0: ["query0"]}, 0)
    frozen_registry = frozen.registry.extended({0: ["query0"]})
    unmoved = embed(frozen.model, encode(frozen_registry, queries["query0"], CPU)).mean
    mapping = map_query(scanvi, queries["query0"], SURGERY, "per_batch", 0)
    after = embed(mapping.bundle.model, encode(mapping.bundle.registry, reference, CPU))
    assert states_equal(before_state, split_state(mapping.bundle.model)[0])
    assert np.array_equal(before.mean, after.mean) and np.array_equal(before.var, after.var)
    assert np.array_equal(before.soft_labels, after.soft_labels)
    assert np.abs(mapping.latent.obsm["X_latent"] - unmoved).max() > 1e-3
    appended = split_state(mapping.bundle.model)[1]
    start = {k: v for k, v in appended.items() if len(v)}
    assert start and mapping.bundle.about["training"]["n_trainable"] == sum(
        v.numel() for v in start.values()
    )


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_reference_stays_for_every_architecture(bodies, reference, queries, norm, likelihood):
    settings = ScviSettings(
        n_hidden=8, n_latent=3, gene_likelihood=likelihood, dispersion="gene-batch",
        use_observed_lib_size=False,
        use_batch_norm="both" if norm == "batch" else "none",
        use_layer_norm="both" if norm == "layer" else "none",
        train=TrainSettings(max_epochs=1),
    )  # fmt: skip
    registry = Registry.of(reference)
    scvi, _ = fit_scvi(reference, registry, settings, 0, CPU)
    bundle, _ = fit_scanvi(reference, scvi, SCANVI, "linear", 0, CPU)
    before = {k: v.clone() for k, v in split_state(bundle.model)[0].items()}
    mapping = map_query(bundle, queries["query0"], SURGERY, "per_batch", 0)
    assert states_equal(before, split_state(mapping.bundle.model)[0])
    assert np.isfinite(mapping.latent.obsm["X_latent"]).all()
    moved = [k for k, v in split_state(mapping.bundle.model)[1].items() if len(v)]
    assert any("log_theta" in k for k in moved) == (likelihood != "poisson")
    assert any("library_prior" in k for k in moved)


def test_surgery_has_no_weight_decay_and_no_way_to_ask_for_it():
    assert as_train_settings(SurgerySettings(), 100).weight_decay == 0
    assert "weight_decay" not in SurgerySettings.__dataclass_fields__


def test_training_moves_the_new_rows(bodies, scanvi, queries, tmp_path):
    again = copy_of(scanvi, tmp_path)
    append_categories(again.model, {0: ["query0"]}, 0)
    start = split_state(again.model)[1]
    mapping = map_query(scanvi, queries["query0"], SURGERY, "per_batch", 0)
    end = split_state(mapping.bundle.model)[1]
    changed = [k for k in end if len(end[k]) and not torch.equal(end[k], start[k])]
    assert any("encoder" in k for k in changed) and any("decoder" in k for k in changed)


def test_start_values_do_not_depend_on_what_else_is_mapped(scanvi, tmp_path):
    save(scanvi, tmp_path / "bundle")
    alone, together = (load(tmp_path / "bundle", CPU) for _ in range(2))
    append_categories(alone.model, {0: ["b"]}, 0)
    append_categories(together.model, {0: ["a", "b"]}, 0)
    one, two = split_state(alone.model)[1], split_state(together.model)[1]
    rows = [(one[k][0], two[k][1]) for k in one if len(one[k])]
    assert rows and all(torch.equal(a, b) for a, b in rows)
    assert all(v.abs().sum() > 0 for v, _ in rows)


def test_minibatches_and_noise_of_a_batch_are_keyed_by_its_name(
    scanvi, queries, tmp_path, monkeypatch
):
    from atlasmap.mapping import query as mapping

    seen = []
    plain = mapping.Unsupervised
    monkeypatch.setattr(
        mapping, "Unsupervised", lambda *args: seen.append(args[-1]) or plain(*args)
    )
    save(scanvi, tmp_path)
    for name in ("query0", "query1"):
        map_query(load(tmp_path, CPU), queries[name], SURGERY, "per_batch", 0)
    map_query(load(tmp_path, CPU), joined(list(queries.values())), SURGERY, "joint", 0)
    assert len(set(seen)) == 3 and "query0" in seen[0] and "query1" in seen[1]


def test_joint_maps_all_batches_in_one_model(scanvi, queries):
    query = joined(list(queries.values()))
    mapping = map_query(scanvi, query, SURGERY, "joint", 0)
    assert mapping.new == {0: ["query0", "query1"]}
    assert mapping.latent.obs["batch"].nunique() == 2
    tables = [v for v in split_state(mapping.bundle.model)[1].values() if len(v)]
    assert all(len(table) == 2 for table in tables)


def test_further_covariates_get_new_categories_too(simulated, rng):
    adata = simulated.copy()
    adata.obs["label"] = adata.obs["cell_type"].astype(str)
    sites = np.where(adata.obs["role"] == "query", "new", rng.choice(["x", "y"], adata.n_obs))
    adata.obs["site"], adata.obs["age"] = sites, rng.normal(size=adata.n_obs)
    reference = adata[adata.obs["role"] == "reference"].copy()
    query = adata[adata.obs["batch"] == "query0"].copy()
    reference.uns |= {"categorical_covariates": ["site"], "continuous_covariates": ["age"]}
    registry = Registry.of(reference)
    scvi, _ = fit_scvi(reference, registry, SCVI, 0, CPU)
    bundle, _ = fit_scanvi(reference, scvi, SCANVI, "fixed", 0, CPU)
    before = embed(bundle.model, encode(registry, reference, CPU)).mean
    mapping = map_query(bundle, query, SURGERY, "per_batch", 0)
    assert mapping.new == {0: ["query0"], 1: ["new"]}
    assert mapping.bundle.registry.categorical == {"site": ["x", "y", "new"]}
    after = embed(mapping.bundle.model, encode(mapping.bundle.registry, reference, CPU)).mean
    assert np.array_equal(before, after)


def test_a_reference_of_one_batch_can_be_mapped_onto(reference, queries):
    one = reference[reference.obs["batch"] == "batch0"].copy()
    registry = Registry.of(one)
    scvi, _ = fit_scvi(one, registry, SCVI, 0, CPU)
    table = scvi.model.encoder.stack.layers[0].tables[0]
    assert not table.reference.any() and not table.reference.requires_grad
    mapping = map_query(scvi, queries["query0"], SURGERY, "per_batch", 0)
    assert table.appended.abs().sum() > 0
    assert mapping.latent.n_obs == queries["query0"].n_obs


def test_surgery_that_reaches_no_latent_is_refused(reference, queries):
    settings = ScviSettings(
        n_hidden=8, n_latent=3, encode_covariates=False, train=TrainSettings(max_epochs=1)
    )
    registry = Registry.of(reference)
    bundle, _ = fit_scvi(reference, registry, settings, 0, CPU)
    with pytest.raises(AtlasmapError) as error:
        map_query(bundle, queries["query0"], SURGERY, "per_batch", 0)
    assert error.value.code == "SURGERY_NOOP"


def test_a_query_batch_named_like_a_reference_batch_is_refused(scanvi, queries):
    query = queries["query0"].copy()
    query.obs["batch"] = "batch0"
    with pytest.raises(AtlasmapError) as error:
        map_query(scanvi, query, SURGERY, "per_batch", 0)
    assert error.value.code == "QUERY_BATCH_IS_REFERENCE"


def test_bundles_and_deltas_round_trip(reference, scanvi, queries, tmp_path):
    parent = tmp_path / "parent"
    save(scanvi, parent)
    mapping = map_query(load(parent, CPU), queries["query0"], SURGERY, "per_batch", 0)
    save_delta(mapping.bundle, tmp_path / "delta", mapping.new)
    again = load_delta(tmp_path / "delta", load(parent, CPU))
    said = embed(again.model, encode(again.registry, queries["query0"], CPU))
    assert np.array_equal(said.mean, mapping.latent.obsm["X_latent"])
    assert states_equal(again.model.state_dict(), mapping.bundle.model.state_dict())
    weights = (tmp_path / "delta" / "weights.safetensors").stat().st_size
    assert weights < (parent / "weights.safetensors").stat().st_size / 2


def test_a_delta_on_another_reference_is_refused(reference, scvi, scanvi, queries, tmp_path):
    save(scanvi, tmp_path / "parent")
    mapping = map_query(scanvi, queries["query0"], SURGERY, "per_batch", 0)
    save_delta(mapping.bundle, tmp_path / "delta", mapping.new)
    registry = Registry.of(reference)
    other, _ = fit_scvi(reference, registry, SCVI, 5, CPU)
    other, _ = fit_scanvi(reference, other, SCANVI, "fixed", 5, CPU)
    with pytest.raises(AtlasmapError) as error:
        load_delta(tmp_path / "delta", other)
    assert error.value.code == "BUNDLE_PARENT"


def test_a_query_batch_maps_the_same_whatever_else_is_in_the_file(
    scanvi, reference, tmp_path, rows
):
    from atlasmap.api import MapRequest, map_dataset

    save(scanvi, tmp_path / "b")
    split = Split(np.arange(reference.n_obs), np.arange(0))
    reference_latent(reference, scanvi, split, CPU).write_h5ad(tmp_path / "b/reference_latent.h5ad")
    adata = anndata.read_h5ad(rows[1].path)
    for name in ("query0", "query1"):  # barcodes that both batches share
        at = (adata.obs["batch"] == name).to_numpy()
        names = adata.obs_names.to_numpy().copy()
        names[at] = [f"AAAC-{k}" for k in range(at.sum())]
        adata.obs_names = names
    tables = []
    for k, expression in enumerate(["batch == 'query0'", "batch == 'query1'"]):
        adata[adata.obs.eval(expression)].write_h5ad(tmp_path / f"{k}.h5ad")
    for k in "01":
        row = Dataset(id=f"q{k}", path=str(tmp_path / f"{k}.h5ad"), role="query", batch_key="batch")
        request = MapRequest(
            row, "per_batch", 0, CONFIG, SURGERY, TransferSettings(), UmapSettings(n_neighbors=5)
        )
        tables.append(map_dataset(tmp_path / "b", request, CPU).atlas.labels)
    apart = pd.concat(tables)
    latents = []
    for name in ("query0", "query1"):
        registry = Registry.of(reference)
        part = Dataset(id=f"q{name[-1]}", path="x", role="query", batch_key="batch")
        whole = checked_dataset(part, tmp_path / f"{name[-1]}.h5ad", CONFIG)
        query = prepare_query(whole, part, name, registry, CONFIG).adata
        latents.append(map_query(load(tmp_path / "b", CPU), query, SURGERY, "per_batch", 0).latent)
    latent = reference_latent(reference, scanvi, split, CPU)
    fitted = fit_map(latent_of(latent), UmapSettings(n_neighbors=5), 0)
    of_run = latents[1].obsm["soft_labels"].argmax(1)
    together = assemble(latent, latents, None, fitted, TransferSettings(), [])
    assert together.adata.obs_names.is_unique
    assert together.labels.equals(apart) and together.labels.index.is_unique
    # as docs/your_data.md joins the labels of one run, whose barcodes other runs share
    mine = anndata.read_h5ad(tmp_path / "1.h5ad")
    labels = together.labels[together.labels["dataset"] == "q1"].set_index("barcode")
    assert len(labels) == mine.n_obs
    joined_labels = mine.obs.join(labels[["predicted_label"]])["predicted_label"]
    assert list(joined_labels) == [scanvi.registry.labels[k] for k in of_run]


def test_a_query_file_named_as_a_data_set_of_the_reference(scanvi, reference, rows, tmp_path):
    from atlasmap.api import MapRequest, map_dataset

    save(scanvi, tmp_path / "b")
    split = Split(np.arange(reference.n_obs), np.arange(0))
    reference_latent(reference, scanvi, split, CPU).write_h5ad(tmp_path / "b/reference_latent.h5ad")
    adata = anndata.read_h5ad(rows[1].path)
    query = adata[adata.obs["batch"] == "query0"].copy()
    query.obs_names = list(reference.obs["barcode"][: query.n_obs])  # barcodes repeat
    query.write_h5ad(tmp_path / "q.h5ad")
    (own,) = reference.obs["dataset"].unique()
    row = Dataset(id=own, path=str(tmp_path / "q.h5ad"), role="query", batch_key="batch")
    how = (CONFIG, SURGERY, TransferSettings(), UmapSettings(n_neighbors=5))
    atlas = map_dataset(tmp_path / "b", MapRequest(row, "per_batch", 0, *how), CPU).atlas
    assert atlas.adata.obs_names.is_unique and set(atlas.labels["dataset"]) == {f"{own}_query"}
    with pytest.raises(AtlasmapError, match="CELLS_DUPLICATED"):
        check_ids(atlas.adata.obs_names.append(atlas.adata.obs_names[:1]))


def test_joint_mapping_of_shared_barcodes_keeps_the_truth(scanvi, reference, queries):
    for name, query in queries.items():
        query.obs["barcode"] = [f"AAAC-{k}" for k in range(query.n_obs)]
        query.obs_names = f"{name}:" + query.obs["barcode"]
    keys = [(b, c) for b, q in queries.items() for c in q.obs_names]
    values = [t for q in queries.values() for t in q.obs["truth"].astype(str)]
    truth = pd.Series(values, index=pd.MultiIndex.from_tuples(keys))
    split = Split(np.arange(reference.n_obs), np.arange(0))
    latent = reference_latent(reference, scanvi, split, CPU)
    mapping = map_query(scanvi, joined(list(queries.values())), SURGERY, "joint", 0)
    fitted = fit_map(latent_of(latent), UmapSettings(n_neighbors=5), 0)
    atlas = assemble(latent, [mapping.latent], truth, fitted, TransferSettings(), [])
    query = atlas.adata.obs[atlas.adata.obs["role"] == "query"]
    assert query["truth"].astype(str).tolist() == values
    assert query.index.is_unique and atlas.labels.index.tolist() == [c for _, c in keys]


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_surgery_dropout_trains_differently_and_moves_nothing(bodies, reference, queries, norm):
    settings = ScviSettings(
        n_hidden=8, n_latent=3, train=TrainSettings(max_epochs=1), dropout_rate=0.5,
        use_batch_norm="both" if norm == "batch" else "none",
    )  # fmt: skip
    latents = []
    for dropout in (False, True):
        registry = Registry.of(reference)
        bundle, _ = fit_scvi(reference, registry, settings, 0, CPU)
        given = SurgerySettings(max_epochs=3, surgery_dropout=dropout)
        latents.append(map_query(bundle, queries["query0"], given, "per_batch", 0).latent)
    assert not np.array_equal(latents[0].obsm["X_latent"], latents[1].obsm["X_latent"])


def test_the_hash_sees_every_bit(scanvi):
    before = reference_hash(scanvi.model)
    with torch.no_grad():
        scanvi.model.scvi.decoder.layers[0].bias[0] += 1e-7
    assert reference_hash(scanvi.model) != before


def test_truth_is_never_shown_to_a_model(scanvi, queries, tmp_path):
    save(scanvi, tmp_path)
    with_truth = queries["query0"]
    assert "truth" in with_truth.obs
    without = anndata.AnnData(
        with_truth.X, obs=with_truth.obs.drop(columns="truth"), var=with_truth.var
    )
    a, b = (
        map_query(load(tmp_path, CPU), query, SURGERY, "per_batch", 0)
        for query in (with_truth, without)
    )
    assert np.array_equal(a.latent.obsm["X_latent"], b.latent.obsm["X_latent"])
    assert a.bundle.about == b.bundle.about


def test_labels_left_out_do_not_move_the_gradient(scanvi, queries):
    model, query = scanvi.model, queries["query0"]
    with torch.no_grad():  # a classifier as sure of itself as one trained to its end
        model.classifier.out.weight *= 60
    append_categories(model, {0: ["query0"]}, 0)
    registry = scanvi.registry.extended({0: ["query0"]})
    cells = encode(registry, query, CPU).minibatch(np.arange(query.n_obs))
    probs = model.classifier.probabilities(model.classify(cells, None))
    assert 0.1 < (probs > NEGLIGIBLE).float().mean() < 0.8  # some are left out, some are not
    rows = [p for p in model.parameters() if p.requires_grad]

    def gradient() -> torch.Tensor:
        total = model.loss(cells, None, 0.5).total
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, rows)])

    few = gradient()
    model.classifier.out.weight.requires_grad_(True)
    every = gradient()
    assert 0 < (few - every).norm() / every.norm() < 1e-5
