"""The simulated atlas: what it is made of, and that it is as hard as the one it is fitted to."""

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from atlasmap.data import simulate as module
from atlasmap.data.simulate import novel_type, simulate, write_simulated
from atlasmap.errors import AtlasmapError
from atlasmap.settings import SimulateSettings

GIVEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "simulated_atlas.h5ad"
SMALL = SimulateSettings(n_cells=400, n_genes=200)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small run ten times slower on threads that compete for two cores."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def atlas():
    return simulate(SimulateSettings())


def column(adata, name):
    return adata.obs[name].to_numpy(str)


def depths(adata):
    return np.asarray(adata.X.sum(axis=1)).ravel()


def shares_of(adata, types):
    return np.array([(column(adata, "cell_type") == name).mean() for name in types])


def classify(classifier, train, test, cells, types):
    """Accuracy and macro-F1 of `test` cells, named by a classifier trained on `train` cells."""
    guess = classifier.fit(cells[train], types[train]).predict(cells[test])
    known = np.unique(types[train])
    f1 = f1_score(types[test], guess, labels=known, average="macro", zero_division=0)
    return np.array([(guess == types[test]).mean(), f1])


def proxies(adata, n_components=30):
    """How hard an atlas is: query cells of known types, and each reference batch left out in turn.

    Log-normalised counts on the reference's principal components; accuracy and macro-F1 by
    15 nearest neighbours and by logistic regression.
    """
    role, batch, types = (column(adata, name) for name in ("role", "batch", "cell_type"))
    counts = adata.X.toarray()
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    reference = role == "reference"
    query = (role == "query") & np.isin(types, types[reference])
    pca = PCA(n_components, svd_solver="randomized", random_state=0).fit(logged[reference])
    cells = pca.transform(logged) / 4  # near unit variance, so that the penalty is a mild one
    found = {"non-zero": adata.X.nnz / counts.size}
    classifiers = {
        "neighbours": KNeighborsClassifier(15),
        "regression": LogisticRegression(max_iter=1000),
    }
    for name, classifier in classifiers.items():
        score = classify(classifier, reference, query, cells, types)
        left_out = np.mean(
            [
                classify(classifier, reference & (batch != one), batch == one, cells, types)
                for one in np.unique(batch[reference])
            ],
            axis=0,
        )
        found[f"{name}, query accuracy"], found[f"{name}, query F1"] = score
        found[f"{name}, left-out accuracy"], found[f"{name}, left-out F1"] = left_out
    return found


def test_counts_and_columns():
    adata = simulate(SMALL)
    assert adata.shape == (400, 200)
    assert isinstance(adata.X, sparse.csr_matrix) and adata.X.dtype == np.float32
    assert adata.X.has_sorted_indices and (adata.X.data > 0).all()  # no stored zeros, no negatives
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert list(adata.var_names[:2]) == ["GENE0000", "GENE0001"]
    assert adata.obs_names.is_unique
    assert list(adata.obs) == ["batch", "cell_type", "lineage", "role"]
    of_batch = adata.obs.groupby("batch")
    assert dict(of_batch["role"].unique().str.join("+")) == {
        **{f"batch{i}": "reference" for i in range(6)},
        **{f"query{i}": "query" for i in range(2)},
    }
    assert set(of_batch.size()) == {50}
    assert set(adata.obs["lineage"]) == {f"L{i}" for i in range(5)}
    assert (adata.obs["cell_type"].str.split(".").str[0] == adata.obs["lineage"]).all()


def test_the_seed_decides():
    one, same = simulate(SMALL), simulate(SMALL)
    other = simulate(SimulateSettings(n_cells=400, n_genes=200, seed=1))
    for part in ("data", "indices", "indptr"):
        assert getattr(one.X, part).tobytes() == getattr(same.X, part).tobytes()
    assert one.obs.equals(same.obs)
    assert (one.X != other.X).nnz > 0.1 * one.X.nnz
    assert not one.obs.equals(other.obs)


def test_cells_of_a_piece_are_few(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CELLS", 30)
    made = []
    compress = module.sparse.csr_matrix
    monkeypatch.setattr(
        module.sparse, "csr_matrix", lambda dense: made.append(len(dense)) or compress(dense)
    )
    assert simulate(SMALL).n_obs == 400
    assert made == [30, 20] * 8


@pytest.mark.parametrize(
    ("lineages", "kinds", "name"), [(5, 3, "L3.1"), (4, 2, "L3.1"), (3, 3, "L2.2"), (4, 1, "L3.0")]
)
def test_one_type_is_in_the_query_only(lineages, kinds, name):
    settings = SimulateSettings(
        n_cells=500, n_genes=50, n_lineages=lineages, n_types_per_lineage=kinds
    )
    adata = simulate(settings)
    assert novel_type(settings) == name
    query = adata[adata.obs["role"] == "query"]
    reference = adata[adata.obs["role"] == "reference"]
    tree = {f"L{i}.{j}" for i, j in product(range(lineages), range(kinds))}
    assert set(reference.obs["cell_type"]) == tree - {name}
    assert set(query.obs["cell_type"]) == tree
    assert depths(adata).min() > 0


def test_fewer_cells_than_batches_is_an_error():
    with pytest.raises(AtlasmapError, match="SIMULATION_TOO_SMALL"):
        simulate(SimulateSettings(n_cells=7, n_genes=50))


def test_abundances_follow_zipf(atlas):
    reference = atlas[atlas.obs["role"] == "reference"]
    query = atlas[atlas.obs["role"] == "query"]
    zipf = 1 / np.arange(1, 16)
    known = np.delete(zipf, 3)  # the novel type has the fourth rank
    found = np.sort(shares_of(reference, np.unique(column(reference, "cell_type"))))[::-1]
    np.testing.assert_allclose(found, known / known.sum(), rtol=0.15)
    assert shares_of(query, ["L3.1"])[0] == pytest.approx(zipf[3] / zipf.sum(), rel=0.25)
    main = reference.obs["cell_type"].value_counts().index[0]
    of_main = (reference.obs["cell_type"] == main).groupby(reference.obs["batch"]).sum()
    assert of_main.max() - of_main.min() > 5  # equal compositions would differ by one cell


def test_tree_has_lineages_and_close_pairs():
    types = module.grow_types(SimulateSettings(), np.random.default_rng(0))
    roots = np.sqrt(types.profiles / types.profiles.sum(axis=1, keepdims=True))
    gap = np.linalg.norm(roots[:, None] - roots[None], axis=-1).reshape(5, 3, 5, 3)
    within = np.array([gap[i, :, i] for i in range(5)])
    apart = np.array([gap[i, :, j] for i, j in combinations(range(5), 2)])
    assert within.max() < apart.min()
    assert (within[:, 0, 2] < within[:, 0, 1]).all()  # .2 branches off .0
    assert (within[:, 0, 2] > 0).all()


def test_query_chemistry_shifts_more_than_a_batch(atlas):
    main = atlas[atlas.obs["cell_type"] == atlas.obs["cell_type"].value_counts().index[0]]
    expressed = np.asarray(main.X.mean(axis=0)).ravel() > 0.5
    log_shares = {}
    for name in np.unique(column(main, "batch")):
        counts = np.asarray(main[main.obs["batch"] == name].X.sum(axis=0)).ravel()
        log_shares[name] = np.log((counts[expressed] + 0.5) / counts.sum())
    gaps = {"bb": [], "bq": [], "qq": []}
    for one, two in combinations(log_shares, 2):
        gaps[one[0] + two[0]].append(np.std(log_shares[one] - log_shares[two]))
    assert expressed.sum() > 100
    assert min(gaps["bq"]) > max(gaps["bb"])
    assert np.mean(gaps["bq"]) > 1.15 * np.mean(gaps["bb"])
    assert np.mean(gaps["bq"]) > 1.1 * np.mean(gaps["qq"])  # the query batches share their shift
    assert np.mean(gaps["bb"]) > 0.3  # about √2 · BATCH_SD


def test_depths_differ_by_cell_batch_and_role(atlas):
    logs = np.log(depths(atlas))
    batch, role = column(atlas, "batch"), column(atlas, "role")
    names = [f"batch{i}" for i in range(6)]
    centres = np.array([np.median(logs[batch == name]) for name in names])
    spreads = np.array([logs[batch == name].std() for name in names])
    np.testing.assert_allclose(spreads, module.LIBRARY_SD, atol=0.05)
    assert centres.max() - centres.min() == pytest.approx(2 * module.DEPTH_SPREAD, abs=0.15)
    query, reference = (np.median(logs[role == name]) for name in ("query", "reference"))
    assert query - reference == pytest.approx(np.log(module.CAPTURE_EFFICIENCY), abs=0.08)
    assert query < reference - 0.1


def test_counts_vary_more_than_poisson(atlas):
    main = atlas.obs["cell_type"] == atlas.obs["cell_type"].value_counts().index[0]
    excess = []
    for name in (f"batch{i}" for i in range(6)):
        counts = atlas[main & (atlas.obs["batch"] == name)].X.toarray().astype(float)
        size = counts.sum(axis=1, keepdims=True) / counts.sum()
        mean = size * counts.sum(axis=0)
        well_seen = mean.mean(axis=0) > 0.5
        surplus = ((counts - mean) ** 2 - mean)[:, well_seen].sum(axis=0)
        excess.append(np.mean(surplus / (mean[:, well_seen] ** 2).sum(axis=0)))
    assert np.mean(excess) == pytest.approx(1 / module.INVERSE_DISPERSION, rel=0.15)


def test_a_quick_look_at_difficulty():
    """Fewer cells are named less well than the 6,000 that the constants are fitted to."""
    found = proxies(simulate(SimulateSettings(n_cells=2400)), n_components=20)
    assert 0.72 < found["regression, query accuracy"] < 0.79
    assert 0.42 < found["regression, query F1"] < 0.54


@pytest.mark.skipif(not GIVEN.exists(), reason="no ../shared/data: nothing to compare with")
def test_as_hard_as_the_given_atlas(atlas):
    given = anndata.read_h5ad(GIVEN)
    atlases = [atlas, *(simulate(SimulateSettings(seed=seed)) for seed in (1, 2))]
    theirs, ours = proxies(given), [proxies(adata) for adata in atlases]
    off = {name: np.mean([one[name] for one in ours]) - theirs[name] for name in theirs}
    assert abs(off["non-zero"]) < 0.01
    assert {name: round(o, 3) for name, o in off.items() if abs(o) > 0.03} == {}
    for role in ("reference", "query"):
        logs = [np.log(depths(a)[column(a, "role") == role]) for a in (given, *atlases)]
        medians, spreads = ([f(each) for each in logs] for f in (np.median, np.std))
        np.testing.assert_allclose(medians[1:], medians[0], atol=0.06)
        np.testing.assert_allclose(spreads[1:], spreads[0], atol=0.03)
        curves = [
            a.obs.loc[column(a, "role") == role, "cell_type"].astype(str).value_counts(True)
            for a in (given, *atlases)
        ]
        theirs_sorted, *ours_sorted = (curve.to_numpy() for curve in curves)
        np.testing.assert_allclose(np.mean(ours_sorted, axis=0), theirs_sorted, atol=0.03)


def test_proteins_have_a_known_background_and_foreground():
    settings = SimulateSettings(n_cells=1200, n_genes=60, proteins=20, missing_proteins=2)
    cells, alone = simulate(settings), simulate(replace(settings, proteins=0))
    assert (cells.X != alone.X).nnz == 0  # genes are the same
    given, true, foreground, mean = (
        cells.obsm[key].to_numpy()
        for key in (
            "protein_expression", "protein_counts_true", "protein_foreground",
            "protein_denoised_true",
        )
    )  # fmt: skip
    absent = cells.obs["batch"].isin(["batch0", "query0"]).to_numpy()
    assert (given[absent, -2:] == 0).all() and (true[absent, -2:] > 0).any()
    assert (given[~absent] == true[~absent]).all() and (given[:, :-2] == true[:, :-2]).all()
    assert ((mean > 0) == foreground).all() and 0.1 < foreground.mean() < 0.5
    apart = [
        np.log1p(true[foreground[:, k], k]).mean() - np.log1p(true[~foreground[:, k], k]).mean()
        for k in range(20)
    ]
    assert min(apart) > 1
    by_type = pd.DataFrame(foreground).groupby(cells.obs["cell_type"].to_numpy()).mean()
    assert (by_type > 0.8).any(axis=0).all() and (by_type > 0.8).any(axis=1).all()
    again = simulate(settings)
    assert (again.obsm["protein_expression"].to_numpy() == given).all()


def test_written_in_pieces_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CELLS", 37)
    write_simulated(SMALL, tmp_path / "atlas.h5ad")
    written, whole = anndata.read_h5ad(tmp_path / "atlas.h5ad"), simulate(SMALL)
    assert (written.X != whole.X).nnz == 0 and written.X.dtype == np.float32
    pd.testing.assert_frame_equal(written.obs.astype(str), whole.obs)
    assert (written.var_names == whole.var_names).all()
    backed = anndata.read_h5ad(tmp_path / "atlas.h5ad", backed="r")
    assert (whole.X[100:120] != backed[100:120].to_memory().X).nnz == 0
