"""Posterior predictive checks: counts sampled from a model against the counts it was trained on.

Definitions are those of scvi-tools' `scvi.criticism` (1.4.2): coefficients of variation from five
samples, differential expression from one.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from atlasmap.bundle import device_of
from atlasmap.models.likelihoods import CountDistribution
from atlasmap.models.random import Noise, keyed_generator, keyed_seed
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import vae_of
from atlasmap.training.cells import Cells

N_SAMPLES = 5
CHUNK = 512  # cells per minibatch
N_TOP_GENES = 100  # or a tenth of the genes, if that is fewer
P_VALUE = 0.2
SCALE = 1e4
METHODS = ("t-test", "wilcoxon")


@dataclass(frozen=True)
class Variation:
    """Coefficients of variation of each cell (over genes) and of each gene (over cells)."""

    cells: np.ndarray
    genes: np.ndarray


@torch.no_grad()
def draw(px: CountDistribution, rng: np.random.Generator) -> np.ndarray:
    """Sample counts (cells × genes) from p(x | z)."""
    rate = px.rate.cpu().numpy().astype(np.float64)
    if px.theta is not None:  # negative binomial: Poisson with a gamma-distributed rate
        theta = np.broadcast_to(px.theta.cpu().numpy().astype(np.float64), rate.shape)
        rate = rng.gamma(theta, rate / theta)
    counts = rng.poisson(rate)
    if px.zi_logits is not None:
        counts[rng.random(counts.shape) < torch.sigmoid(px.zi_logits).cpu().numpy()] = 0
    return counts


@torch.no_grad()
def posterior_predictive(
    model: Scvi | Scanvi, cells: Cells, sample: int, seed: int = 0
) -> Iterator[sparse.csr_matrix]:
    """Yield one posterior predictive sample of all cells' counts, in chunks (cells × genes).

    z is sampled from q(z | x), with the model in evaluation mode.
    """
    scvi = vae_of(model)
    generator = keyed_generator(seed, "posterior predictive", sample, device=device_of(model))
    noise = Noise(generator, dropout=False, batch_statistics=False)
    rng = np.random.default_rng(keyed_seed(seed, "posterior predictive counts", sample))
    for chunk in cells.in_order(CHUNK):
        posterior = scvi.inference(chunk, noise)
        px = scvi.generative(posterior.z, posterior.library, chunk, None)
        yield sparse.csr_matrix(draw(px, rng), dtype=np.float32)


def variation(chunks: Iterator[sparse.csr_matrix]) -> Variation:
    """Coefficients of variation (standard deviation / mean) per cell and per gene; zero where the
    mean is zero."""
    by_cell, sums, squares, n = [], 0.0, 0.0, 0
    for chunk in chunks:
        chunk = chunk.astype(np.float64)
        by_cell.append(ratio(*moments(chunk, 1, chunk.shape[1])))
        sums, squares = sums + total(chunk, 0), squares + total(chunk.multiply(chunk), 0)
        n += chunk.shape[0]
    return Variation(np.concatenate(by_cell), ratio(sums / n, squares / n))


def total(matrix: sparse.csr_matrix, axis: int) -> np.ndarray:
    """Sums along an axis."""
    return np.asarray(matrix.sum(axis)).ravel()


def moments(matrix: sparse.csr_matrix, axis: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square along an axis."""
    return total(matrix, axis) / n, total(matrix.multiply(matrix), axis) / n


def ratio(mean: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """Coefficient of variation from mean and mean square; zero where the mean is zero."""
    deviation = np.sqrt(np.maximum(mean_square - mean**2, 0))
    return np.divide(deviation, mean, out=np.zeros_like(mean), where=mean > 0)


def mean_variation(model, cells: Cells, n_samples: int = N_SAMPLES) -> Variation:
    """Coefficients of variation of the model's posterior predictive samples, averaged over
    samples."""
    found = [variation(posterior_predictive(model, cells, k)) for k in range(n_samples)]
    return Variation(
        np.mean([one.cells for one in found], 0), np.mean([one.genes for one in found], 0)
    )


def agreement(model: np.ndarray, raw: np.ndarray) -> dict[str, float]:
    """Agreement of the model's values (one per cell or gene) with those of the counts."""
    return {
        "mae": float(mean_absolute_error(model, raw)),
        "pearson": float(stats.pearsonr(model, raw)[0]),
        "spearman": float(stats.spearmanr(model, raw)[0]),
        "r2": float(r2_score(model, raw)),
    }


def variation_table(model: Variation, raw: Variation, split: np.ndarray) -> pd.DataFrame:
    """Agreement of coefficients of variation: per cell, for training and for validation cells, and
    per gene.

    `split`: each cell's part. Columns: what, part, n, mae, pearson, spearman, r2.
    """
    rows = []
    for part in ("train", "validation"):
        at = split == part
        if at.sum() > 1:
            found = agreement(model.cells[at], raw.cells[at])
            rows.append({"what": "cell-wise", "part": part, "n": int(at.sum())} | found)
    found = agreement(model.genes, raw.genes)
    rows.append({"what": "gene-wise", "part": "all", "n": len(raw.genes)} | found)
    return pd.DataFrame(rows)


def ranked(counts: sparse.csr_matrix, groups: np.ndarray, method: str) -> dict[str, pd.DataFrame]:
    """Differential expression of each group against the rest, on log1p of counts per 10,000.

    Returns group → table sorted by score, with gene numbers as index and columns scores,
    logfoldchanges and pvals_adj.
    """
    import scanpy

    adata = anndata.AnnData(
        counts.copy(),
        obs=pd.DataFrame(
            {"group": pd.Categorical(groups)}, index=np.arange(len(groups)).astype(str)
        ),
    )
    scanpy.pp.normalize_total(adata, target_sum=SCALE)
    scanpy.pp.log1p(adata)
    with warnings.catch_warnings():  # scanpy's own, several per group
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        scanpy.tl.rank_genes_groups(adata, "group", use_raw=False, method=method)
    names = adata.obs["group"].cat.categories
    frames = {name: scanpy.get.rank_genes_groups_df(adata, group=name) for name in names}
    return {name: frame.set_index("names") for name, frame in frames.items()}


def expression_agreement(raw: pd.DataFrame, model: pd.DataFrame, n_top: int) -> dict[str, float]:
    """Agreement of one group's differential expression in sampled counts (`model`) with that in the
    data (`raw`).

    The ROC and PR curves take genes with adjusted p < 0.2 in the data as positives, or the `n_top`
    genes of lowest p if there are none or more than half of all genes.
    """
    genes = raw.index
    overlap = f1_score(genes.isin(raw.index[:n_top]), genes.isin(model.index[:n_top]))
    model = model.reindex(genes)
    folds, theirs = raw["logfoldchanges"].to_numpy(), model["logfoldchanges"].to_numpy()
    p_values = raw["pvals_adj"].to_numpy()
    truth = p_values < P_VALUE
    if not 0 < truth.sum() <= 0.5 * len(truth):
        truth = np.zeros(len(truth), bool)
        truth[np.argsort(p_values, kind="stable")[:n_top]] = True
    return {
        "gene_f1": float(overlap),
        "lfc_mae": float(np.mean(np.abs(folds - theirs))),
        "lfc_pearson": float(stats.pearsonr(folds, theirs)[0]),
        "lfc_spearman": float(stats.spearmanr(folds, theirs)[0]),
        "roc_auc": float(roc_auc_score(truth, model["scores"])),
        "pr_auc": float(average_precision_score(truth, model["scores"])),
    }


def expression_table(
    counts: sparse.csr_matrix, drawn: sparse.csr_matrix, groups: np.ndarray, method: str
) -> pd.DataFrame:
    """Table with one row per group of cells, the largest first: group, the columns of
    `expression_agreement`, and n_cells.

    `counts` and `drawn` are cells × genes. Groups of one cell are left out (they have no variance).
    """
    sizes = pd.Series(groups).value_counts()
    keep = np.isin(groups, sizes.index[sizes > 1])
    n_top = min(N_TOP_GENES, int(0.1 * counts.shape[1]))
    raw, model = (ranked(matrix[keep], groups[keep], method) for matrix in (counts, drawn))
    rows = [
        {"group": name} | expression_agreement(raw[name], model[name], n_top)
        | {"n_cells": int(sizes[name])}
        for name in raw
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values("n_cells", ascending=False, kind="stable")
