"""The card's checks give the numbers of scvi-tools' criticism on a golden model."""

import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

scvi = pytest.importorskip("scvi", reason="needs scvi-tools: make parity")

from scvi.criticism import PosteriorPredictiveCheck  # noqa: E402

from atlasmap.evaluation import criticism  # noqa: E402
from atlasmap.exchange.importing import bundle_of  # noqa: E402
from atlasmap.exchange.saves import read_save  # noqa: E402
from atlasmap.mapping.encode import encode  # noqa: E402

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = SHARED / "golden" / "scanvi_fix"
SEEDS = range(5)
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="needs the development data in ../shared"
)


@pytest.fixture(scope="module")
def adata():
    """The cells that the golden model was trained on, its genes in its order."""
    parts = [anndata.read_h5ad(SHARED / f"data/celseq2_5lines_{p}.h5ad") for p in ("p1", "p2")]
    joined = anndata.concat(parts, join="inner")[:, read_save(GOLDEN).genes].copy()
    joined.X = joined.X.astype(int)  # its check for whole numbers fails on sparse floats
    joined.layers["counts"] = joined.X.copy()
    return joined


@pytest.fixture(scope="module")
def theirs(adata):
    """A table a seed: cell-wise and gene-wise agreement, differential expression."""
    model = scvi.model.SCANVI.load(str(GOLDEN), adata, accelerator="cpu")
    found = {"cells": [], "genes": [], "t-test": [], "wilcoxon": []}
    for seed in SEEDS:
        scvi.settings.seed = seed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checks = PosteriorPredictiveCheck(adata, {"model": model}, n_samples=2)
            checks.coefficient_of_variation("features")
            checks.coefficient_of_variation("cells")
            for key, name in (("cells", "cv_cell"), ("genes", "cv_gene")):
                table = checks.metrics[name]
                found[key].append(criticism.agreement(table["model"], table["Raw"]))
            for method in criticism.METHODS:
                checks.differential_expression("cell_line", method, p_val_thresh=0.2)
                table = checks.metrics["diff_exp"]["summary"].set_index("group")
                found[method].append(table.drop(columns="model").sort_index().astype(float))
    return found


@pytest.fixture(scope="module")
def ours(adata):
    """The same of ours."""
    bundle = bundle_of(read_save(GOLDEN), GOLDEN / "model.pt", None)
    cells = encode(bundle.registry, adata, torch.device("cpu"))
    counts = sparse.csr_matrix(adata.X, dtype=np.float32)
    raw, groups = criticism.variation(iter([counts])), adata.obs["cell_line"].astype(str).to_numpy()
    found = {"cells": [], "genes": [], "t-test": [], "wilcoxon": []}
    for seed in SEEDS:
        samples = [criticism.posterior_predictive(bundle.model, cells, k, seed) for k in range(2)]
        drawn = [sparse.vstack(list(chunks)).tocsr() for chunks in samples]
        each = [criticism.variation(iter([one])) for one in drawn]
        for key in ("cells", "genes"):
            mean = np.mean([getattr(one, key) for one in each], 0)
            found[key].append(criticism.agreement(mean, getattr(raw, key)))
        for method in criticism.METHODS:
            table = criticism.expression_table(counts, drawn[0], groups, method)
            found[method].append(table.set_index("group").sort_index().astype(float))
    return found


def within_noise(ours: list, theirs: list) -> pd.DataFrame:
    """Differences of means over seeds in standard errors."""
    a, b = (np.stack([np.asarray(pd.DataFrame(x)) for x in found]) for found in (ours, theirs))
    error = np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / len(a))
    return np.abs(a.mean(0) - b.mean(0)) / np.maximum(error, 1e-3)


@pytest.mark.parametrize("what", ["cells", "genes"])
def test_coefficients_of_variation(ours, theirs, what):
    table = [[[value for value in one.values()]] for one in ours[what]]
    other = [[[value for value in one.values()]] for one in theirs[what]]
    assert within_noise(table, other).max() < 4


@pytest.mark.parametrize("method", criticism.METHODS)
def test_differential_expression(ours, theirs, method):
    assert list(ours[method][0]) == list(theirs[method][0])
    assert list(ours[method][0].index) == list(theirs[method][0].index)
    off = within_noise(ours[method], theirs[method])
    assert (off > 4).mean() <= 1 / 30 and off.max() < 8, off.round(1)
