"""Calibration folds: groups of reference batches that are held out together, each batch once.

Calibration is thus learned on batches that the model has not seen.
"""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.config import LEAST_HELD_OUT, MOST_HELD_OUT, n_folds
from atlasmap.models.random import keyed_seed

STAND_IN = "held out"  # prefix of the names of parts of a batch


@dataclass(frozen=True)
class Fold:
    """A fold: reference cells `kept` to train on (mask), the held-out cells to map (`asked`:
    indices; a sample of large batches), and the `batch` of each of these."""

    kept: np.ndarray
    asked: np.ndarray
    batch: np.ndarray

    def held_out(self, cells: anndata.AnnData, batch: str | None = None) -> anndata.AnnData:
        """Return the held-out cells to map (of one batch, if given), in memory, with the fold's
        obs `batch`."""
        of_batch = slice(None) if batch is None else self.batch == batch
        out = cells[self.asked[of_batch]]
        out = out.to_memory() if out.isbacked else out.copy()
        out.obs["batch"] = pd.Categorical(self.batch[of_batch])
        return out


def some_of_each(batch: np.ndarray, most: int) -> np.ndarray:
    """Sorted indices of a random sample of at most `most` cells per batch."""
    out = []
    for name in np.unique(batch):
        at, rng = np.flatnonzero(batch == name), np.random.default_rng(keyed_seed(0, "asked", name))
        out.append(rng.permutation(at)[:most])
    return np.sort(np.concatenate(out))


def folds_of(cells: anndata.AnnData, asked: int | None = None) -> list[Fold]:
    """Split batches (obs `batch`) into folds with similar numbers of cells.

    A single batch is split into random parts, called "held out: …". They are easier to map than a
    real query.
    """
    batch = cells.obs["batch"].astype(str).to_numpy()
    sizes = pd.Series(batch).value_counts()
    n = n_folds(asked, len(sizes), cells.n_obs)
    if len(sizes) == 1:
        rng = np.random.default_rng(keyed_seed(0, "held out", "cells"))
        part = rng.permutation(np.arange(cells.n_obs) % n)
        names = np.array([f"{STAND_IN}: {name}" for name in batch], object)
        return [fold_of(part == k, names, MOST_HELD_OUT // n) for k in range(n)]
    order = sorted(sizes.index, key=lambda name: (-sizes[name], keyed_seed(0, "held out", name)))
    groups, totals = [[] for _ in range(n)], np.zeros(n)
    for name in order:  # largest batch first, into the smallest group
        k = int(totals.argmin())
        groups[k].append(name)
        totals[k] += sizes[name]
    most = max(LEAST_HELD_OUT, MOST_HELD_OUT // len(sizes))
    return [fold_of(np.isin(batch, group), batch, most) for group in groups]


def fold_of(held: np.ndarray, batch: np.ndarray, most: int) -> Fold:
    """Fold without the `held` cells (mask), of which at most `most` per batch are mapped."""
    asked = np.flatnonzero(held)[some_of_each(batch[held], most)]
    return Fold(~held, asked, batch[asked])


def thinned(cells: anndata.AnnData, depth: float) -> anndata.AnnData:
    """Thin the counts of one batch binomially to a median library size of `depth`, if it is larger;
    cells left without counts are removed."""
    counts = sparse.csr_matrix(cells.X)
    share = min(1.0, depth / float(np.median(np.asarray(counts.sum(1)).ravel())))
    if share == 1:
        return cells
    rng = np.random.default_rng(keyed_seed(0, "thinned", cells.obs["batch"].iloc[0]))
    values = rng.binomial(counts.data.astype(np.int64), share).astype(np.float32)
    out = cells.copy()
    out.X = sparse.csr_matrix((values, counts.indices, counts.indptr), counts.shape)
    out.X.eliminate_zeros()
    return out[np.diff(out.X.indptr) > 0].copy()
