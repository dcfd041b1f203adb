"""Scores against scikit-learn, scib metrics against scib_metrics.Benchmarker."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from atlasmap.commands.benchmark import score_embeddings
from atlasmap.evaluation.classification import reliability_bins, risk_coverage, score
from atlasmap.evaluation.embedding_scores import EmbeddingRun, PcaByCells
from atlasmap.evaluation.samples import combined, draws, stratified
from atlasmap.evaluation.scib import (
    AGGREGATES,
    BATCH,
    BIO,
    Embedded,
    aggregate,
    same_eigenvectors,
    score_embedding,
    unintegrated_pca,
    why_not,
)
from atlasmap.labels.compile_cache import keep_jax
from atlasmap.settings import BenchmarkSettings


def test_scores_are_sklearns_and_novel_cells_are_counted_not_scored(rng):
    truth = rng.choice(["a", "b", "c", "novel", "Unknown"], 300)
    predicted = np.where(rng.random(300) < 0.7, truth, "a")
    predicted = np.where(np.isin(predicted, ["novel", "Unknown"]), "b", predicted)
    scored = score(truth, predicted, rng.random(300), {"a", "b", "c"}, "Unknown")
    known = np.isin(truth, ["a", "b", "c"])
    row = scored.summary.iloc[0]
    assert row["n"] == known.sum() and row["n_not_in_reference"] == (truth == "novel").sum()
    assert row["accuracy"] == accuracy_score(truth[known], predicted[known])
    assert row["macro_f1"] == f1_score(truth[known], predicted[known], average="macro")
    assert scored.confusion["n"].sum() == (truth != "Unknown").sum()
    assert "novel" in set(scored.confusion["truth"])
    assert scored.per_class["n"].sum() == known.sum()


def test_ece_is_the_gap_of_the_reliability_bins(rng):
    confidence = rng.random(500)
    correct = rng.random(500) < confidence**2
    predicted = np.where(correct, "a", "b")
    scored = score(np.full(500, "a"), predicted, confidence, {"a", "b"}, "Unknown")
    bins = scored.reliability.query("bins == 'width'")
    expected = ((bins["accuracy"] - bins["confidence"]).abs() * bins["n"]).sum() / 500
    assert scored.summary["ece"].iloc[0] == pytest.approx(expected, abs=1e-9)
    assert bins["n"].sum() == 500


def test_bins_of_as_many_cells_by_hand(rng):
    confidence = rng.permutation(np.arange(1, 101) / 101)
    bins = reliability_bins(confidence, confidence > 0.5).query("bins == 'count'")
    assert list(bins["n"]) == [20] * 5 and list(bins["accuracy"]) == [0, 0, 0.5, 1, 1]
    assert np.allclose(bins["confidence"], (np.arange(5) * 20 + 10.5) / 101)
    skewed = np.random.default_rng(1).beta(20, 1, 500)
    count = reliability_bins(skewed, skewed > 0.5).query("bins == 'count'")
    assert count["n"].between(49, 51).all() and len(count) == 10
    few = reliability_bins(confidence[:30], confidence[:30] > 0.5).query("bins == 'count'")
    assert list(few["n"]) == [30]
    same = reliability_bins(np.ones(300), np.ones(300, bool)).query("bins == 'count'")
    assert list(same["n"]) == [300]  # cells that are as sure are not told apart


def test_accuracy_of_the_surest_cells_by_hand():
    confidence = np.array([0.2, 0.9, 0.5, 0.8])
    table = risk_coverage(confidence, np.array([False, True, False, True]))
    assert len(table) == 20 and table["coverage"].iloc[-1] == 1
    by = table.set_index("coverage")
    assert by.loc[0.25, ["accuracy", "least_confidence", "n"]].tolist() == [1, 0.9, 1]
    assert by.loc[0.3, "n"] == 2 and by.loc[0.5, ["accuracy", "least_confidence"]].tolist() == [
        1,
        0.8,
    ]
    assert by.loc[0.75, "accuracy"] == pytest.approx(2 / 3) and by.loc[1.0, "accuracy"] == 0.5


def test_nothing_to_score_is_none():
    truth = np.array(["Unknown", "novel"])
    assert score(truth, truth, np.ones(2), {"a"}, "Unknown") is None


@pytest.fixture(scope="module")
def embedded():
    keep_jax()
    rng = np.random.default_rng(0)
    label = rng.choice(list("abc"), 150)
    batch = rng.choice(["x", "y"], 150)
    x = rng.normal(size=(150, 5)) + 3 * np.eye(5)[[ord(c) - 97 for c in label]]
    return Embedded(x.astype("f4"), rng.normal(size=(150, 8)).astype("f4"), batch, label)


def test_metrics_are_benchmarkers(embedded):
    import anndata
    from scib_metrics.benchmark import Benchmarker

    from atlasmap.evaluation.scib import neighbors

    obs = pd.DataFrame({"batch": embedded.batch, "label": embedded.label}).astype("category")
    obsm = {"X": embedded.x, "pre": embedded.unintegrated}
    adata = anndata.AnnData(np.ones((150, 3), "f4"), obs=obs, obsm=obsm)
    bench = Benchmarker(
        adata, "batch", "label", ["X"], pre_integrated_embedding_obsm_key="pre", progress_bar=False
    )
    bench.prepare(neighbor_computer=lambda x, k: neighbors(x, k, exact=True))
    with same_eigenvectors():
        bench.benchmark()
    theirs = bench.get_results(clean_names=False).loc["X"]
    ours = score_embedding(embedded, np.ones(150, bool), 90, exact=True)
    names = {"nmi_ari_cluster_labels_kmeans_nmi": "kmeans_nmi"}
    names |= {"nmi_ari_cluster_labels_kmeans_ari": "kmeans_ari"}
    names |= {"Bio conservation": "bio_conservation", "Batch correction": "batch_correction"}
    names |= {"Total": "total"}
    compared = 0
    for name, value in theirs.items():
        assert ours[names.get(name, name)] == pytest.approx(float(value), abs=1e-5), name
        compared += 1
    assert compared == len(BIO) + len(BATCH) + len(AGGREGATES)


def test_what_cannot_be_computed_is_skipped_and_in_no_average(embedded):
    no_label = Embedded(embedded.x, embedded.unintegrated, embedded.batch, None)
    values = score_embedding(no_label, np.zeros(150, bool), 90, exact=True)
    assert values["kmeans_nmi"] == "skipped(no labels)"
    assert values["bio_conservation"] == "skipped(no metric)"
    numbers = [values["ilisi_knn"], values["pcr_comparison"]]
    assert values["batch_correction"] == pytest.approx(np.mean(numbers))
    assert values["total"].startswith("skipped")
    one_batch = Embedded(embedded.x, embedded.unintegrated, np.full(150, "x"), embedded.label)
    assert why_not("kbet_per_label", one_batch) == "one batch only"
    few = Embedded(
        embedded.x[:60], embedded.unintegrated[:60], embedded.batch[:60], embedded.label[:60]
    )
    assert why_not("clisi_knn", few) == "60 cells, 91 needed"


def test_kbet_starts_from_the_same_vector(embedded):
    import scipy.sparse.linalg
    from scipy import sparse

    matrix = sparse.csr_matrix(np.cov(embedded.x.T))
    with same_eigenvectors():
        first, second = (scipy.sparse.linalg.eigsh(matrix, k=2) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_metrics_without_labels_see_all_cells_and_the_others_labelled_ones(embedded):
    labelled = np.arange(150) < 110
    some = score_embedding(embedded, labelled, 90, exact=True)
    everyone = score_embedding(embedded, np.ones(150, bool), 90, exact=True)
    part = score_embedding(embedded.only(labelled), np.ones(110, bool), 90, exact=True)
    assert some["ilisi_knn"] == everyone["ilisi_knn"] != part["ilisi_knn"]
    for name in ("silhouette_label", "clisi_knn"):
        assert some[name] == part[name] != everyone[name]


def test_a_metric_that_is_not_a_number_is_skipped(embedded, monkeypatch):
    import scib_metrics.metrics as m

    monkeypatch.setattr(m, "silhouette_label", lambda *args: float("nan"))
    monkeypatch.setattr(m, "bras", lambda *args: 1 / 0)
    values = score_embedding(embedded, np.ones(150, bool), 90, exact=True)
    assert values["silhouette_label"] == "skipped(not a number)"
    assert values["bras"].startswith("skipped(ZeroDivisionError")
    assert np.isfinite(values["total"])


def test_total_is_06_bio_and_04_batch():
    values = dict.fromkeys(BIO, 1.0) | dict.fromkeys(BATCH, 0.5)
    assert aggregate(values) == {
        "bio_conservation": 1.0, "batch_correction": 0.5, "total": pytest.approx(0.8)
    }  # fmt: skip


def test_unintegrated_pca_leaves_counts_as_they_were(rng):
    from scipy import sparse

    counts = sparse.csr_matrix(rng.poisson(1.0, (30, 12)).astype("f4"))
    before = counts.copy()
    assert unintegrated_pca(counts).shape == (30, 11)
    assert (counts != before).nnz == 0


def test_a_sample_has_of_each_stratum_its_share(rng):
    strata = rng.permutation(np.repeat([0, 1, 2, 3], [5000, 1500, 200, 4]))
    at = stratified(strata, 670, rng)
    assert (np.diff(at) > 0).all()  # sorted, none twice
    assert np.bincount(strata[at]).tolist() == [500, 150, 20, 4]
    assert np.bincount(strata[stratified(strata, 67, rng)]).tolist() == [50, 15, 10, 4]


def test_samples_are_of_many_cells_alone_and_always_the_same():
    strata = np.arange(900) % 7
    (everyone,) = draws(strata, 900, 3)
    assert (everyone == np.arange(900)).all()
    first, again = draws(strata, 300, 3), draws(strata, 300, 3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert len(first) == 3 and len({tuple(at) for at in first}) == 3


def test_scores_of_samples_have_the_interval_of_their_mean(rng):
    """Nineteen in twenty intervals hold the mean that samples are drawn around."""
    held = []
    for _ in range(2000):
        found = combined([{"total": value} for value in rng.normal(3.0, 2.0, 4)])
        held.append(found["total_low"] < 3.0 < found["total_high"])
    assert abs(np.mean(held) - 0.95) < 0.015
    assert combined([{"total": 0.4, "bras": "skipped(one label)"}]) == {
        "total": 0.4, "bras": "skipped(one label)",
    }  # fmt: skip
    mixed = combined([{"bras": 0.5}, {"bras": "skipped(51 needed)"}])
    assert mixed == {"bras": "skipped(51 needed)"}


def test_more_cells_than_can_be_scored_are_scored_by_samples(embedded, tmp_path, monkeypatch):
    cells, labelled = embedded, np.ones(len(embedded.x), bool)
    monkeypatch.setattr(PcaByCells, "__init__", lambda self, counts: None)
    monkeypatch.setattr(PcaByCells, "embedded", lambda self, run: (cells, labelled))
    runs, rows = [EmbeddingRun("scvi", "reference", tmp_path)], []
    for settings in (BenchmarkSettings(max_cells=110), BenchmarkSettings(max_cells=10_000)):
        score_embeddings(runs=runs, counts=[], out=tmp_path / "s.csv", benchmark=settings)
        rows.append(pd.read_csv(tmp_path / "s.csv").iloc[0])
    sampled, whole = rows
    assert sampled["n"] == whole["n"] == len(cells.x) and sampled["n_samples"] == 3
    assert 105 <= sampled["n_scored"] <= 120 and whole["n_samples"] == 1
    assert sampled["total_low"] < sampled["total"] < sampled["total_high"]
    assert "total_low" not in whole and abs(sampled["total"] - whole["total"]) < 0.2
