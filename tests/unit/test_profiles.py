"""A batch seen from a labelled reference, gene by gene: by scanpy, scikit-learn and by hand."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from atlasmap.labels import folds as folds_module
from atlasmap.labels import profiles as module
from atlasmap.labels.calibrated import read_profiles, save_profiles
from atlasmap.labels.folds import folds_of, thinned
from atlasmap.labels.profiles import Profiles, Seen, like_ones, log_normalised, shift_of
from atlasmap.labels.shifts import shift_table, shifted

NAMES = ["a", "b", "c"]


def made(rng, n=60, n_genes=90, names=NAMES, boost=8.0, batch=None):
    """Counts of cells of labels with ten genes of their own each, and their labels; `batch`
    multiplies genes."""
    labels = np.repeat(names, n)
    rate = np.ones((len(labels), n_genes))
    for k, name in enumerate(names):
        rate[np.ix_(labels == name, np.arange(10 * k, 10 * k + 10))] *= boost
    rate = rate if batch is None else rate * batch
    return sparse.csr_matrix(rng.poisson(3 * rate).astype(np.float32)), labels


def seen_of(counts, labels, profiles, names=NAMES):
    return Seen.of(profiles, counts, np.array([names.index(label) for label in labels]))


# the reference


def test_logarithms_are_scanpys(rng):
    counts, _ = made(rng)
    own = sc.pp.log1p(
        sc.pp.normalize_total(anndata.AnnData(counts.copy()), target_sum=500, copy=True), copy=True
    )
    assert np.allclose(log_normalised(counts, 500).toarray(), own.X.toarray(), atol=1e-5)


def test_means_and_variance_within_labels_are_numpys(rng):
    counts, labels = made(rng)
    labels = np.where(np.arange(180) % 9 == 0, "Unknown", labels)
    found = Profiles.of(counts, labels, NAMES, 400.0)
    logs = log_normalised(counts, 400.0).toarray()
    parts = [logs[labels == name] for name in NAMES]
    assert np.allclose(found.means, [part.mean(0) for part in parts], atol=1e-5)
    centred = np.concatenate([part - part.mean(0) for part in parts])
    assert np.allclose(found.within, (centred**2).mean(0) + 1e-3, atol=1e-4)


@pytest.mark.parametrize("names", [NAMES, NAMES[:2]])
def test_probabilities_are_scikit_learns(rng, names):
    """Of two labels, too, for which it keeps one row of coefficients."""
    counts, labels = made(rng, names=names)
    found = Profiles.of(counts, labels, names, 400.0)
    logs, none = log_normalised(counts, 400.0), np.zeros(counts.shape[1])
    x = found.features(logs, none)
    model = LogisticRegression(C=0.02, max_iter=200).fit(x, labels)
    own = found.probabilities(logs, none, np.ones(counts.shape[1], bool))
    assert np.allclose(own, model.predict_proba(x), atol=1e-4)


def test_of_genes_that_were_not_measured_nothing_is_taken(rng):
    counts, labels = made(rng)
    found = Profiles.of(counts, labels, NAMES, 400.0)
    logs, none = log_normalised(counts, 400.0), np.zeros(counts.shape[1])
    other = logs.tolil()
    other[:, :10] = 0
    blind = np.arange(counts.shape[1]) >= 10
    assert np.allclose(
        found.probabilities(logs, none, blind), found.probabilities(other.tocsr(), none, blind)
    )


def test_a_label_of_many_cells_is_sampled(rng, monkeypatch):
    counts, labels = made(rng, n=200)
    whole = Profiles.of(counts, labels, NAMES, 400.0)
    monkeypatch.setattr(module, "MOST_PER_LABEL", 50)
    some, again = (Profiles.of(counts, labels, NAMES, 400.0) for _ in range(2))
    assert np.array_equal(some.means, again.means) and not np.allclose(some.means, whole.means)
    assert np.abs(some.means - whole.means).max() < 0.6


def test_a_label_without_cells_is_no_cells_and_one_label_is_enough(rng):
    """A rare label may be held out as a whole; a reference may have one label."""
    counts, labels = made(rng)
    found = Profiles.of(counts, labels, [*NAMES, "rare"], 400.0)
    seen = Seen.of(found, counts, np.repeat(range(3), 60))
    assert found.coefficients.shape == (4, 90) and seen.by_genes[:, 3].max() < 1e-6
    assert (seen.like.argmax(1) == seen.codes).mean() > 0.98
    three = Profiles.of(counts, labels, NAMES, 400.0)
    assert np.allclose(found.coefficients[:3], three.coefficients)
    one = Profiles.of(counts[:60], labels[:60], NAMES[:1], 400.0)
    alone = Seen.of(one, counts[:60], np.zeros(60, int))
    assert (alone.by_genes == 1).all() and np.isfinite(alone.like).all()
    assert not shifted(alone, np.ones(60, bool)).any()


def test_profiles_are_kept_as_they_are(rng, tmp_path):
    counts, labels = made(rng)
    both = [Profiles.of(counts, labels, NAMES, scale) for scale in (400.0, 100.0)]
    save_profiles(both, tmp_path / "profiles.npz")
    found = read_profiles(tmp_path / "profiles.npz", 3, 90)
    for one, other in zip(both, found, strict=True):
        assert one.scale == other.scale
        for key in ("means", "within", "centre", "coefficients", "intercepts"):
            assert np.array_equal(getattr(one, key), getattr(other, key))


# a batch


def test_like_ones_are_a_cell_and_cells_of_its_kind(rng):
    counts, labels = made(rng)
    found = like_ones(log_normalised(counts, 400.0))
    assert np.allclose(found.sum(1), 1) and (found.diagonal() > 0).all()
    of_kind = found @ (labels[:, None] == np.array(NAMES))
    assert of_kind[labels[:, None] == np.array(NAMES)].min() > 0.9


def test_in_a_large_batch_like_ones_are_among_some(rng, monkeypatch):
    counts, labels = made(rng)
    monkeypatch.setattr(module, "MAX_ANCHORS", 90)
    found = like_ones(log_normalised(counts, 400.0))
    assert len(np.unique(found.indices)) <= 90 and np.allclose(found.sum(1), 1)
    kinds = found @ (labels[:, None] == np.array(NAMES)).astype(float)
    assert (kinds.argmax(1) == np.repeat(range(3), 60)).mean() > 0.95


def test_what_a_batch_has_in_common_is_the_median_of_its_labels(rng):
    counts, labels = made(rng)
    profiles = Profiles.of(counts, labels, NAMES, 400.0)
    logs = log_normalised(made(rng, batch=np.r_[np.full(45, 1.0), np.full(45, 2.0)])[0], 400.0)
    codes = np.repeat(range(3), 60)
    moved = [logs[codes == k].mean(0).A1 - profiles.means[k] for k in range(3)]
    assert np.allclose(shift_of(profiles, logs, codes), np.median(moved, 0), atol=1e-5)


def test_cells_correlate_with_their_label_whatever_the_batch_multiplies(rng):
    counts, labels = made(rng)
    profiles = Profiles.of(counts, labels, NAMES, 400.0)
    strange = made(rng, batch=np.exp(rng.normal(size=90)))[0]
    for query in (counts, strange):
        seen = seen_of(query, labels, profiles)
        assert (seen.like.argmax(1) == seen.codes).mean() > 0.98
        assert (seen.by_genes.argmax(1) == seen.codes).mean() > 0.98
        assert seen.like.max() <= 1 + 1e-9
    assert seen_of(counts, labels, profiles).like.max(1).mean() > 0.9


def test_the_regression_sees_cells_without_what_their_batch_has_in_common(rng):
    counts, labels = made(rng, boost=3.0)
    profiles = Profiles.of(counts, labels, NAMES, 400.0)
    batch = np.r_[np.full(10, 4.0), np.ones(80)]  # as if all cells were of the first label
    seen = seen_of(made(rng, boost=3.0, batch=batch)[0], labels, profiles)
    plain = profiles.probabilities(seen.logs, np.zeros(90), seen.measured)
    own, without = ((p.argmax(1) == seen.codes).mean() for p in (seen.by_genes, plain))
    assert own > 0.95 > without + 0.1


def test_chunks_change_nothing(rng, monkeypatch):
    counts, labels = made(rng)
    profiles = Profiles.of(counts, labels, NAMES, 400.0)
    whole = seen_of(counts, labels, profiles)
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = seen_of(counts, labels, profiles)
    assert np.allclose(whole.like, parts.like) and np.allclose(whole.by_genes, parts.by_genes)


def test_a_label_that_the_reference_lacks_correlates_with_none(rng):
    names = list("abcde")
    counts, labels = made(rng, names=names)
    known = labels != "e"
    profiles = Profiles.of(counts[known], labels[known], names[:4], 400.0)
    codes = np.array([names.index(label) if label != "e" else 0 for label in labels])
    like = Seen.of(profiles, counts, codes).like.max(1)
    assert like[~known].max() < like[known].min()


# groups that moved


def test_stimulated_cells_moved_and_new_ones_did_not(rng):
    """Twenty genes are switched on in all cells of one label; another label is none of the
    reference's. Both are called novel."""
    names, n_genes = list("abcde"), 300
    counts, labels = made(rng, names=names, n_genes=n_genes)
    old = labels != "e"
    profiles = Profiles.of(counts[old], labels[old], names[:4], 1000.0)
    stimulated = np.ones(counts.shape)
    stimulated[np.ix_(labels == "b", np.arange(200, 220))] = 5
    query = sparse.csr_matrix(rng.poisson(counts.toarray() * stimulated).astype(np.float32))
    given = [names.index(label) if label != "e" else 0 for label in labels]
    seen = Seen.of(profiles, query, np.array(given))
    novel = np.isin(labels, ["b", "e"])
    moved = shifted(seen, novel)
    assert moved[labels == "b"].all() and not moved[labels != "b"].any()
    assert not shifted(seen, np.zeros(len(labels), bool)).any()
    few = np.isin(np.arange(len(labels)), np.flatnonzero(labels == "b")[:4])
    assert not shifted(seen, few).any()  # too few for a word on them
    genes = np.array([f"g{k}" for k in range(n_genes)], object)
    table = shift_table(seen, moved, names[:4], genes, "q").set_index("label")
    assert table.loc["b", ["n", "n_shifted"]].tolist() == [60, 60]
    assert table.loc["a", ["n", "n_shifted"]].tolist() == [120, 0]
    assert set(table.loc["b", "top_genes"].split()) <= {f"g{k}" for k in range(200, 220)}
    assert list(table["batch"].unique()) == ["q"] and table.loc["b", "markers_kept"] > 0.75


def test_cells_with_anothers_markers_besides_their_own_did_not_move(rng):
    """As two cells in one droplet have them."""
    names = list("abcd")
    counts, labels = made(rng, names=names, n_genes=300)
    profiles = Profiles.of(counts, labels, names, 1000.0)
    twice = np.ones(counts.shape)
    twice[np.ix_(labels == "b", np.arange(20, 30))] = 4  # c's
    query = sparse.csr_matrix(rng.poisson(counts.toarray() * twice).astype(np.float32))
    seen = seen_of(query, labels, profiles, names)
    assert not shifted(seen, labels == "b").any()


# what is held out


def cells_of(batches, rng, n_genes=30):
    counts = sparse.csr_matrix(rng.poisson(40, (len(batches), n_genes)).astype(np.float32))
    obs = pd.DataFrame({"batch": batches}, index=[f"c{k}" for k in range(len(batches))])
    return anndata.AnnData(counts, obs)


def test_every_batch_is_held_out_once(rng):
    batches = np.repeat([f"b{k}" for k in range(7)], [90, 70, 60, 50, 40, 30, 20])
    cells = cells_of(rng.permutation(batches), rng)
    for asked, n in ((None, 4), (2, 2), (9, 7)):
        folds = folds_of(cells, asked)
        assert len(folds) == n and np.array_equal(sum(~fold.kept for fold in folds), np.ones(360))
        names = [set(fold.batch) for fold in folds]
        assert sum(map(len, names)) == 7 and set.union(*names) == set(batches)
        for fold in folds:
            assert list(fold.held_out(cells).obs["batch"]) == list(fold.batch)
            assert not set(cells.obs["batch"][fold.kept]) & set(fold.batch)
            assert np.array_equal(fold.asked, np.flatnonzero(~fold.kept))
    sizes = [len(fold.batch) for fold in folds_of(cells, 2)]
    assert abs(sizes[0] - sizes[1]) <= 20
    shuffled = cells[rng.permutation(360)].copy()
    assert [set(fold.batch) for fold in folds_of(shuffled)] == [
        set(fold.batch) for fold in folds_of(cells)
    ]


def test_of_large_batches_some_cells_are_asked(rng, monkeypatch):
    cells = cells_of(np.repeat(["a", "b", "c"], [300, 50, 10]), rng)
    monkeypatch.setattr(folds_module, "MOST_HELD_OUT", 120)
    monkeypatch.setattr(folds_module, "LEAST_HELD_OUT", 1)
    for fold, again in zip(folds_of(cells), folds_of(cells), strict=True):
        [name] = set(fold.batch)
        assert len(fold.asked) == {"a": 40, "b": 40, "c": 10}[name] < 41
        assert np.array_equal(fold.asked, again.asked) and not fold.kept[fold.asked].any()
        assert fold.kept.sum() == 360 - {"a": 300, "b": 50, "c": 10}[name]


def test_of_one_batch_parts_stand_in(rng):
    cells = cells_of(np.repeat("only", 90), rng)
    folds = folds_of(cells)
    assert [len(fold.batch) for fold in folds] == [30, 30, 30]
    assert {name for fold in folds for name in fold.batch} == {"held out: only"}
    assert np.array_equal(sum(~fold.kept for fold in folds), np.ones(90))


def test_deep_cells_are_thinned_to_the_querys_depth(rng):
    cells = cells_of(np.repeat("b", 200), rng)
    before = cells.X.copy()
    found, again = thinned(cells, 300.0), thinned(cells, 300.0)
    assert abs(np.median(found.X.sum(1).A1) - 300) < 6
    assert (found.X.toarray() <= cells.X.toarray()).all()
    assert (found.X != again.X).nnz == 0 and (before != cells.X).nnz == 0
    kept = found.X.toarray().ravel()[before.toarray().ravel() > 0] / 1200
    assert kept.var() > 0 and (found.X.data == np.rint(found.X.data)).all()
    assert thinned(cells, 1e6) is cells
    none = thinned(cells, 1.0)
    assert none.n_obs < 200 and (none.X.sum(1) > 0).all()
