"""Other classifiers on the latent, their vote, and what missing genes cost."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import softmax
from small import CPU

from atlasmap.data.contract import gene_warnings
from atlasmap.evaluation.gene_gap import drawn_cells, family_costs, gene_gap, masked
from atlasmap.evaluation.label_scores import LabelRun, score_opinions
from atlasmap.evaluation.opinions import knn_by_k, second_opinions
from atlasmap.labels.confidence import fit_weights, pooled
from atlasmap.labels.opinions import majority
from atlasmap.labels.profiles import Profiles, Seen
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.reference import reference_latent
from atlasmap.training.split import Split


@pytest.fixture
def apart(rng):
    """Two kinds of cells that are easily told apart: reference, labels, query, truth."""
    labels = np.repeat(["a", "b"], 150)
    z = rng.normal(size=(300, 4)) + 6 * (labels == "b")[:, None]
    query = rng.normal(size=(80, 4)) + 6 * (np.arange(80) < 40)[:, None]
    return z, labels, query, np.where(np.arange(80) < 40, "b", "a")


def mapped(latent: np.ndarray, soft: np.ndarray | None = None, batch: str = "x"):
    """Mapped query cells."""
    obs = pd.DataFrame({"batch": batch}, index=[f"c{k}" for k in range(len(latent))])
    query = anndata.AnnData(obs=obs, obsm={"X_latent": latent})
    if soft is not None:
        query.obsm["soft_labels"], query.uns["soft_label_names"] = soft, np.array(["a", "b"])
    return query


def test_every_method_names_what_is_easily_told_apart(apart):
    z, labels, query, truth = apart
    asked = mapped(query, np.tile([0.6, 0.4], (80, 1)))
    table, seconds = second_opinions(z, labels, asked, None, 15, 0, "Unknown")
    for method in ("knn", "random_forest", "logistic", "majority"):
        assert (table[method] == truth).all(), method
        assert table[f"{method}_confidence"].between(0.5, 1 + 1e-9).all()
        assert seconds[method] >= 0
    assert (table["classifier"] == "a").all()
    again, _ = second_opinions(z, labels, asked, None, 15, 0, "Unknown")
    assert table.equals(again)
    without, _ = second_opinions(z, labels, mapped(query), None, 15, 0, "Unknown")
    assert "classifier" not in without and (without["majority"] == truth).all()
    assert (knn_by_k(z, labels, query) == truth[:, None]).all().all()
    assert list(knn_by_k(z[::10], labels[::10], query)) == [5, 10, 20]


def test_opinions_are_scored_beside_the_classifier(apart, tmp_path):
    z, labels, query, truth = apart
    asked = mapped(query, np.stack([truth == "a", truth == "b"], 1).astype(np.float32))
    table, took = second_opinions(z, labels, asked, None, 15, 0, "Unknown")
    pd.Series(took, name="seconds").rename_axis("method").to_csv(tmp_path / "seconds.csv")
    table = pd.concat([table, knn_by_k(z, labels, query).add_prefix("knn_k")], axis=1)
    table.insert(0, "batch", np.where(np.arange(80) % 2, "x", "y"))
    table.insert(1, "truth", truth)
    table["genes"], table["genes_confidence"] = table["knn"], 0.9
    table.loc[:3, "truth"] = ["new", "Unknown", "new", "Unknown"]
    table.to_parquet(tmp_path / "opinions.parquet")
    run = LabelRun(0, "fixed", "joint", tmp_path / "opinions.parquet", tmp_path / "seconds.csv")
    found = score_opinions(run, {"a", "b"}, "Unknown")
    summary = found["summary"].set_index(["batch", "method"])
    assert summary.loc[("all", "logistic"), "n"] == 76
    assert summary.loc[("all", "logistic"), "n_not_in_reference"] == 2
    assert (summary["accuracy"] == 1).all() and set(summary["probabilities"]) == {"raw"}
    others = ["knn", "random_forest", "logistic", "majority"]
    assert list(summary.loc["all"].index) == others  # classifier's and genes' are an atlas's own
    assert list(found["opinions"]["method"]) == ["classifier", "genes", *others]
    timed = found["timed"].set_index("method")["seconds"]
    assert timed[others].to_dict() == pytest.approx({k: round(took[k], 2) for k in others})
    assert np.isnan(timed["classifier"])  # named when it was mapped
    assert list(found["by_k"]["k"]) == [5, 10, 20, 50, 100, 200]
    assert (found["by_k"]["changed"] == 0).all()
    table.drop(columns="truth").to_parquet(tmp_path / "opinions.parquet")
    assert score_opinions(run, {"a", "b"}, "Unknown") == {}


def test_majority_by_hand():
    first, second = np.array([[0.8, 0.2], [0.9, 0.1]]), np.array([[0.4, 0.6], [np.nan, np.nan]])
    opinions = {"classifier": first, "knn": second}
    equal = np.sqrt([0.8 * 0.4, 0.2 * 0.6])
    found = majority(opinions, {})
    assert np.allclose(found[0], equal / equal.sum())
    alone = np.sqrt(first[1])
    assert np.allclose(found[1], alone / alone.sum())  # kNN abstains
    weighed = np.array([0.8**0.1 * 0.4**2, 0.2**0.1 * 0.6**2])
    found = majority(opinions, {"classifier": 0.1, "knn": 2, "genes": 5})  # who is not there
    assert np.allclose(found[0], weighed / weighed.sum())
    assert np.allclose(majority(opinions, {"classifier": 1.0})[0], first[0])  # unweighed: no say


def test_who_is_wrong_on_held_out_batches_weighs_less(rng):
    truth = rng.integers(0, 3, 3000)
    right = softmax(2 * np.eye(3)[truth] + rng.normal(0, 1, (3000, 3)), axis=1)
    guess = softmax(rng.normal(0, 3, (3000, 3)), axis=1)
    by_right, by_guess = fit_weights([(right[:2000], guess[:2000], truth[:2000]),
                                      (right[2000:], guess[2000:], truth[2000:])])  # fmt: skip
    assert by_guess < 0.1 < 1 < by_right
    nothing = np.full_like(guess, np.nan)  # and who abstains has no say in the others' weights
    assert fit_weights([(right, nothing, truth)])[0] == pytest.approx(
        fit_weights([(right, truth)])[0], rel=1e-3
    )


@pytest.mark.parametrize("n_opinions", [1, 2, 5])
def test_weights_are_the_best_that_can_be_found(rng, n_opinions):
    truth = rng.integers(0, 4, 500)
    opinions = [softmax(k * np.eye(4)[truth] + rng.normal(0, 1, (500, 4)), axis=1)
                for k in range(n_opinions)]  # fmt: skip

    def loss(weights):
        of_truth = pooled(list(weights), *opinions)[np.arange(500), truth]
        return -np.log(of_truth).mean() + 1e-3 * np.square(np.log(weights)).sum()

    found = np.array(fit_weights([(*opinions, truth)]))
    around = [found * np.exp(step) for step in rng.normal(0, 0.05, (50, n_opinions))]
    assert all(loss(found) <= loss(other) + 1e-9 for other in around)


def test_cells_without_a_telling_gene_say_nothing():
    counts = sparse.csr_matrix(np.array([[9, 1, 0], [1, 9, 0], [8, 2, 0], [2, 9, 0]], np.float32))
    profiles = Profiles.of(counts, np.array(["a", "b", "a", "b"]), ["a", "b"], 10.0)
    query = sparse.csr_matrix(np.array([[7, 1, 0], [0, 0, 0]], np.float32))
    seen = Seen.of(profiles, query, np.array([0, 0]))
    assert np.isfinite(seen.opinion[0]).all() and np.isnan(seen.opinion[1]).all()


def test_no_missing_gene_costs_nothing(scanvi, reference):
    table = gene_gap(scanvi, reference, [])
    assert (table["loss"] == 0).all() and table["n"].iloc[0] == reference.n_obs
    assert set(table["label"]) == {"all", *scanvi.registry.labels}


def test_missing_genes_are_zero_and_nothing_else_changes(scanvi, reference):
    lost = list(reference.var_names[:60])
    cells = masked(reference, lost)
    assert cells.X[:, :60].nnz == 0
    kept = np.asarray(reference.X[:, 60:].sum(1)).ravel() > 0
    assert (cells.X[kept][:, 60:] != reference.X[kept][:, 60:]).nnz == 0
    assert (np.asarray(cells.X.sum(1)) > 0).all()
    table = gene_gap(scanvi, reference, lost)
    by_hand = embed(scanvi.model, encode(scanvi.registry, cells, CPU)).soft_labels.argmax(1)
    truth = reference.obs["label"].astype(str).to_numpy()
    right = np.asarray(scanvi.registry.labels, object)[by_hand] == truth
    everyone = table.set_index("label").loc["all"]
    assert everyone["without_missing"] == pytest.approx(right.mean())
    assert everyone["loss"] == pytest.approx(
        everyone["with_all_genes"] - everyone["without_missing"]
    )
    assert everyone["n_genes_missing"] == 60


def test_what_a_family_of_genes_costs_is_told_without_counts(scanvi, reference):
    split = Split(np.arange(reference.n_obs), np.arange(0))
    latent = reference_latent(reference, scanvi, split, CPU)
    cells = drawn_cells(scanvi, latent, 150)
    assert cells.n_obs == 150 and cells.obs_names.isin(reference.obs_names).all()
    own = reference[cells.obs_names]
    depth, drawn = (np.asarray(part.X.sum(1)).ravel() for part in (own, cells))
    assert np.corrcoef(depth, drawn)[0, 1] > 0.9 and drawn.mean() == pytest.approx(
        depth.mean(), rel=0.1
    )
    assert (cells.X != drawn_cells(scanvi, latent, 150).X).nnz == 0  # the same each time
    genes = scanvi.registry.genes
    families = {"most": {"missing": genes[:70]}, "none": {"missing": []}}
    family_costs(scanvi, latent, families)
    table = gene_gap(scanvi, drawn_cells(scanvi, latent), genes[:70])
    assert families["none"]["costs"] == 0
    assert families["most"]["costs"] == pytest.approx(table["loss"].iloc[0], abs=1e-4)
    said = {"of": 70, **families["most"]}
    (line,) = gene_warnings({"gene_families_missing": {"HLA": said}})
    assert f"costs {said['costs']:.3f} of accuracy" in line
