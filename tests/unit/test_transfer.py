"""Labels for query cells: the table, weighted kNN, assembly."""

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasmap.commands.results import publish
from atlasmap.data.label_tree import LabelTree, Levels
from atlasmap.errors import AtlasmapError
from atlasmap.evaluation.label_scores import LabelRun, score_run
from atlasmap.labels import knn as transfer
from atlasmap.labels.atlas import assemble
from atlasmap.labels.knn import SoftLabels, label_table, votes, weighted_neighbors
from atlasmap.labels.umap import FittedMap, fit_map, place
from atlasmap.settings import TransferSettings, UmapSettings


def test_label_table_by_hand():
    soft = SoftLabels(np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]]), ["a", "b", "c"])
    table = label_table(soft, ["x", "y"])
    assert table["predicted_label"].tolist() == ["a", "b"]
    assert table["runner_up"].tolist() == ["b", "c"]
    assert table["confidence"].tolist() == [0.7, 0.5]
    p = np.array([0.7, 0.2, 0.1])
    assert table["entropy"].tolist() == pytest.approx([-(p * np.log(p)).sum(), np.log(2)])


def knn_soft_labels(reference, labels, query, k):
    return votes(weighted_neighbors(reference, query, k), labels)


def slow_knn(reference, labels, query, k):
    """The published recipe, one cell at a time."""
    out = []
    for cell in query:
        d = np.sqrt(((reference - cell) ** 2).sum(1))
        near = np.argsort(d)[:k]
        sd = (2.0 / np.std(d[near])) ** 2
        w = np.exp(-d[near] / sd)
        w /= w.sum()
        out.append([w[labels[near] == name].sum() for name in sorted(set(labels))])
    return np.array(out)


def test_weighted_knn_is_the_published_recipe(rng):
    reference, query = rng.normal(size=(200, 6)), rng.normal(size=(20, 6))
    labels = rng.choice(["a", "b", "c"], 200)
    soft = knn_soft_labels(reference, labels, query, 15)
    np.testing.assert_allclose(
        soft.probabilities, slow_knn(reference, labels, query, 15), atol=1e-8
    )
    assert soft.probabilities.sum(1) == pytest.approx(np.ones(20))


def test_knn_asks_for_no_more_neighbours_than_there_are(rng):
    soft = knn_soft_labels(rng.normal(size=(5, 2)), np.array(list("aabbb")), np.zeros((1, 2)), 50)
    assert soft.probabilities.shape == (1, 2)


def test_knn_of_identical_neighbours_is_a_plain_vote():
    soft = knn_soft_labels(np.zeros((4, 2)), np.array(list("aaab")), np.ones((1, 2)), 4)
    assert soft.probabilities[0] == pytest.approx([0.75, 0.25])


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    latent = (rng.normal(size=(120, 5)) + 6 * np.eye(5)[rng.integers(0, 3, 120)]).astype("f4")
    return latent, fit_map(latent, UmapSettings(n_neighbors=10), 0)


def test_the_map_is_data_and_does_not_move(fitted, tmp_path):
    latent, fit = fitted
    fit.save(tmp_path / "umap.npz")
    again = FittedMap.load(tmp_path / "umap.npz")
    assert np.array_equal(place(again, latent), fit.positions)
    near = latent[:30] + 1e-4
    first, second = place(again, near), place(fit, near)
    assert np.array_equal(first, second)
    assert np.median(np.abs(first - fit.positions[:30])) < 0.05 * np.ptp(fit.positions)
    assert np.array_equal(place(again, latent), fit.positions)


def test_a_cell_lands_among_its_kind(fitted):
    latent, fit = fitted
    shifted = latent[::4] + 0.2
    for at, place_of in zip(latent[::4], place(fit, shifted), strict=True):
        nearest = np.argsort(((fit.positions - place_of) ** 2).sum(1))[:5]
        assert np.median(((latent[nearest] - at) ** 2).sum(1)) < 30


def test_the_map_is_fitted_on_at_most_max_cells(fitted):
    latent, _ = fitted
    fit = fit_map(latent, UmapSettings(n_neighbors=10, max_cells=60), 0)
    assert fit.latent.shape == (60, 5) and place(fit, latent).shape == (120, 2)


def latent_file(latent, batch, names, soft=None, label=None):
    obs = pd.DataFrame({"batch": batch}, index=names)
    if label is None:  # of a query; a reference need not have been prepared here
        obs["dataset"], obs["barcode"] = "q", [name.removeprefix("q:") for name in names]
    if label is not None:
        obs["label"], obs["split"] = label, "train"
    out = anndata.AnnData(obs=obs, obsm={"X_latent": latent})
    if soft is not None:
        out.obsm["soft_labels"], out.uns["soft_label_names"] = soft, np.array(["a", "b"], object)
    return out


def test_assembly_keeps_names_apart_and_truth_out_of_labels(fitted):
    latent, fit = fitted
    half = np.full((120, 2), 0.5)
    names = [f"c{k}" for k in range(120)]
    reference = latent_file(latent, "r", names, half, ["a", "b"] * 60)
    cells = [f"q:{name}" for name in names[:10]]
    query = latent_file(latent[:10] + 1e-3, "q", cells, half[:10])
    keys = pd.MultiIndex.from_product([["q"], cells])
    truth = pd.Series("b", index=keys)
    atlas = assemble(reference, [query], truth, fit, TransferSettings(n_neighbors=5), [])
    obs = atlas.adata.obs
    assert obs.index.is_unique and {"q:c0", "reference:c0"} <= set(obs.index)
    assert (obs.loc[obs["role"] == "query", "truth"] == "b").all()
    assert (obs.loc[obs["role"] == "query", "label"] == "Unknown").all()
    assert "truth" not in atlas.labels and list(atlas.soft_labels) == [
        "barcode",
        "dataset",
        "batch",
        "a",
        "b",
    ]
    assert not obs.isna().drop(columns=["knn_uncertainty"]).any().any()


def test_ontology_ids_go_with_labels_and_neighbours_are_asked_once(fitted, monkeypatch):
    latent, fit = fitted
    half, names = np.full((120, 2), 0.5), [f"c{k}" for k in range(120)]
    reference = latent_file(latent, "r", names, half, ["a", "b"] * 60)
    reference.obs["label_ontology_term_id"] = ["CL:1", "CL:2"] * 59 + ["CL:9", ""]  # some stray
    query = latent_file(latent[:10] + 1e-3, "q", names[:10], half[:10])
    asked, search = [], transfer.NearestNeighbors
    monkeypatch.setattr(
        transfer, "NearestNeighbors", lambda **how: asked.append(how) or search(**how)
    )
    settings = TransferSettings(n_neighbors=5)
    atlas = assemble(reference, [query], None, fit, settings, []).adata
    assert asked == [{"n_neighbors": fit.n_neighbors}]  # of which labels take 5
    monkeypatch.undo()
    of = atlas.obs.astype(str)
    assert set(of.loc[of["label"] == "a", "label_ontology_term_id"]) == {"CL:1"}
    assert set(of.loc[of["label"] == "Unknown", "label_ontology_term_id"]) == {"unknown"}
    expected = of["predicted_label"].map({"a": "CL:1", "b": "CL:2"}).fillna("unknown")
    assert (of["predicted_label_ontology_term_id"] == expected).all()
    apart = place(fit, np.asarray(query.obsm["X_latent"]))
    np.testing.assert_array_equal(atlas.obsm["X_umap"][of["role"] == "query"], apart)


def test_each_level_is_transferred_from_the_cells_that_have_it(fitted):
    latent, fit = fitted
    half = np.full((120, 2), 0.5)
    names = [f"c{k}" for k in range(120)]
    reference = latent_file(latent, "r", names, half, ["a", "b"] * 60)
    reference.obs["coarse"] = "all"
    fine = pd.Series([f"fine_{k % 2}" for k in range(120)], index=names)
    fine.iloc[:60] = None  # no such level for half of the cells
    reference.obs["fine"] = fine
    query = latent_file(latent[60:70] + 1e-3, "q", names[60:70], half[:10])
    levels = ["coarse", "fine"]
    atlas = assemble(reference, [query], None, fit, TransferSettings(1), levels)
    assert (atlas.labels["knn_coarse"] == "all").all()
    assert list(atlas.labels["knn_fine"]) == list(fine.iloc[60:70])
    assert (atlas.labels["knn_fine_uncertainty"] == 0).all()
    known = knn_soft_labels(latent[60:], fine.iloc[60:].to_numpy(), query.obsm["X_latent"], 1)
    assert list(known.predicted()) == list(atlas.labels["knn_fine"])
    query = latent_file(latent[60:70], "q", names[60:70], half[:10])
    with pytest.raises(AtlasmapError, match="OBS_KEY_MISSING"):
        assemble(reference, [query], None, fit, TransferSettings(), ["none"])


def test_the_references_own_cells_are_named_at_coarser_levels_too(fitted, tmp_path):
    """Without any truth of the query, they are what can be scored at those levels."""
    latent, fit = fitted
    soft = np.where(np.arange(120)[:, None] % 3 == 0, [0.7, 0.3], [0.2, 0.8])
    names = [f"c{k}" for k in range(120)]
    reference = latent_file(latent, "r", names, soft, ["a", "b"] * 60)
    query = latent_file(latent[:10] + 1e-3, "q", names[:10], soft[:10])
    levels = Levels({"top": {"a": "A", "b": "A"}, "mid": {"a": "a", "b": "B"}}, LabelTree({}))
    atlas = assemble(reference, [query], None, fit, TransferSettings(5), [], coarser=levels)
    obs = atlas.adata.obs[atlas.adata.obs["role"] == "reference"]
    assert (obs["label_top"] == "A").all() and np.allclose(obs["confidence_top"], 1)
    assert list(obs["label_mid"]) == ["a", "B"] * 60
    assert list(obs["predicted_mid"]) == ["a" if k % 3 == 0 else "B" for k in range(120)]
    assert np.allclose(obs["confidence_mid"], soft.max(1))
    atlas.adata.write_h5ad(tmp_path / "atlas.h5ad")
    run = LabelRun(0, "fixed", "joint", tmp_path / "atlas.h5ad")
    scores = pd.concat(score_run(run)["summary"]).set_index("level")
    assert scores.loc["top", "accuracy"] == 1 and set(scores["split"]) == {"train"}
    assert scores.loc["mid", "accuracy"] == scores.loc["label", "accuracy"] == 0.5


def test_seed_agreement_by_hand(tmp_path):
    """By batch and cell name, whatever the order of the rows."""
    cells = {"cell_id": ["1", "1", "2"], "batch": ["007", "y", "007"]}
    one = pd.DataFrame(cells | {"predicted_label": ["01", "b", "NA"], "confidence": "0.10"})
    two = one.assign(predicted_label=["01", "c", "NA"]).iloc[::-1]
    three = one.assign(predicted_label=["01", "b", "d"])
    for name, table in (("one", one), ("two", two), ("three", three)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    paths = [tmp_path / f"{name}.csv" for name in ("one", "two", "three")]
    atlas = anndata.AnnData(obs=pd.DataFrame({"role": ["reference", "query", "query", "query"]}))
    final = tmp_path / "final"
    final.mkdir()
    atlas.write_h5ad(final / "atlas.h5ad")
    one.to_csv(final / "labels.csv", index=False)
    publish(final, out=tmp_path, seeds=paths)
    found = pd.read_csv(tmp_path / "labels.csv", keep_default_na=False, dtype=str)
    assert found.drop(columns="seed_agreement").equals(one)  # nothing is read as a number
    assert found["seed_agreement"].astype(float).tolist() == pytest.approx([1, 2 / 3, 2 / 3])
    obs = anndata.read_h5ad(tmp_path / "atlas.h5ad").obs
    assert obs["seed_agreement"].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3])
    publish(final, out=tmp_path / "alone")
    for name in ("labels.csv", "atlas.h5ad"):
        assert (tmp_path / "alone" / name).read_bytes() == (final / name).read_bytes()
