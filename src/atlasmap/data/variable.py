"""Highly variable genes (seurat_v3 per batch) of counts on disk, in two passes over the blocks.

Selects the same genes as scanpy.pp.highly_variable_genes(flavor="seurat_v3", batch_key=...) for a
matrix in memory (Stuart et al. 2019, Cell 177:1888; Hafemeister & Satija 2019 for the clipping).
"""

import numpy as np
import pandas as pd

from atlasmap.data.blocks import in_blocks


def sums_by_batch(matrix, batch: np.ndarray, n_batches: int, most=None) -> np.ndarray:
    """Sums and sums of squares of counts per batch and gene (2 × batches × genes).

    `batch`: batch code of each cell; `most` (batches × genes): upper limit that counts are clipped
    to.
    """
    out, first = np.zeros((2, n_batches, matrix.shape[1])), 0
    for block in in_blocks(matrix):
        own = batch[first : first + block.shape[0]]
        first += block.shape[0]
        row = np.repeat(own, np.diff(block.indptr))
        values = block.data.astype(np.float64)
        if most is not None:
            values = np.minimum(values, most[row, block.indices])
        at = row.astype(np.int64) * block.shape[1] + block.indices
        for k, part in enumerate((values, values**2)):
            out[k] += np.bincount(at, part, out[k].size).reshape(out[k].shape)
    return out


def expected_deviation(mean: np.ndarray, variance: np.ndarray, span: float) -> np.ndarray:
    """Expected standard deviation (genes) given the mean, by a loess fit of log variance on log
    mean; raises ValueError if the fit fails."""
    from skmisc.loess import loess

    varies, logs = variance > 0, np.zeros(len(mean))
    model = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=span, degree=2)
    model.fit()
    logs[varies] = model.outputs.fitted_values
    return np.sqrt(10**logs)


def variable_genes(matrix, batch: pd.Series, n: int, span: float) -> np.ndarray:
    """Mask of the `n` most variable genes of `matrix` (cells × genes), as seurat_v3 ranks them.

    Genes are ranked per batch by the variance of their standardised, clipped counts. They are then
    ordered by the median rank over batches where they are in the top `n`, ties by the number of
    these batches. Raises ValueError if a loess fit fails.
    """
    codes, names = pd.factorize(batch.astype(str), sort=True)
    size = np.bincount(codes)[:, None]
    total, squares = sums_by_batch(matrix, codes, len(names))
    mean = total / size
    variance = (squares / size - mean**2) * size / (size - 1)
    expected = np.array(
        [expected_deviation(*pair, span) for pair in zip(mean, variance, strict=True)]
    )
    total, squares = sums_by_batch(matrix, codes, len(names), mean + expected * np.sqrt(size))
    score = size * mean**2 + squares - 2 * total * mean
    score /= (size - 1) * expected**2
    rank = (-score).argsort(1).argsort(1).astype(np.float32)
    rank[rank >= n] = np.nan
    table = pd.DataFrame({"rank": masked_median(rank), "batches": -(~np.isnan(rank)).sum(0)})
    chosen = table.sort_values(["rank", "batches"], na_position="last").index[:n]
    return table.index.isin(chosen)


def masked_median(values: np.ndarray) -> np.ndarray:
    """Median of each column (batches × genes), ignoring NaN; NaN for columns of NaN."""
    return np.ma.median(np.ma.masked_invalid(values), axis=0).filled(np.nan)
