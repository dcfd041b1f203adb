"""Does an ancestor label have cells that belong to none of the labels below it?

Batches are held out in turn, and their cells compared with label profiles of the other batches. A
cell of an ancestor label is unlike the labels below it if it is less similar to them than nearly
all cells of these labels are. If there are more such cells than expected by chance, the ancestor
label is learned by the model as a label of its own, for these cells.
"""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.depth import given_in
from atlasmap.data.registry import Registry
from atlasmap.labels.folds import folds_of
from atlasmap.labels.novelty import ABOVE_ONE
from atlasmap.labels.profiles import Profiles, Seen, some_of

USUAL = 0.95  # quantile of the score over cells of the labels below
FARTHER = 1.1  # an unlike cell's novelty exceeds that quantile by this factor
SHARE = 0.1  # fraction of unlike cells above which they are not chance (by chance: 0.01 seen)
LEAST = 10  # fewest unlike cells, cells of the labels below, and cells of a batch


@dataclass(frozen=True)
class OwnLeaf:
    """An ancestor label: the number of its cells that were compared (`asked`), the indices of those
    that are `unlike` all labels below it, and whether these form a label of their own (`kept`)."""

    asked: int
    unlike: np.ndarray

    @property
    def share(self) -> float:
        """Fraction of the compared cells that are unlike all labels below."""
        return len(self.unlike) / self.asked

    @property
    def kept(self) -> bool:
        """Whether there are more unlike cells than expected by chance."""
        return self.share > SHARE and len(self.unlike) >= LEAST


def sampled(cells: anndata.AnnData) -> np.ndarray:
    """Sorted indices of a sample of cells per original label."""
    codes = given_in(cells.obs).astype("category").cat.codes.to_numpy()
    return np.sort(np.concatenate([some_of(codes, code) for code in np.unique(codes)]))


def counts_at(cells: anndata.AnnData, at: np.ndarray) -> sparse.csr_matrix:
    """Read the counts of the cells at indices `at` into memory (also from dask arrays)."""
    chosen = cells.X[at]
    return sparse.csr_matrix(chosen.compute() if hasattr(chosen, "compute") else chosen)


def unlikeness(cells: anndata.AnnData, registry: Registry) -> np.ndarray:
    """Negative correlation of each cell with each label of the registry (cells × labels), using
    profiles of the batches of other folds.

    NaN for cells that were not compared, infinite for labels that those batches lack. `cells` are
    prepared cells in memory.
    """
    labels, names = cells.obs["label"].astype(str).to_numpy(), registry.labels
    depth = float(np.median(np.asarray(cells.X.sum(1)).ravel()))
    out = np.full((cells.n_obs, len(names)), np.nan)
    for fold in folds_of(cells):
        there = np.isin(names, labels[fold.kept])
        if not there.any():
            continue
        profiles = Profiles.of(cells.X[fold.kept], labels[fold.kept], names, depth)
        batch = cells.obs["batch"].astype(str).to_numpy()[fold.asked]
        for name in np.unique(batch):
            at = fold.asked[batch == name]
            if len(at) < LEAST:
                continue
            seen = Seen.of(profiles, cells.X[at], np.zeros(len(at), int))
            seen = seen.renamed(seen.by_genes.argmax(1))
            out[at] = np.where(there, -seen.like, np.inf)
    return out


def own_leaves(cells: anndata.AnnData) -> dict[str, OwnLeaf]:
    """`OwnLeaf` of each ancestor label in a prepared reference.

    Cells are not compared if all labels below theirs occur only in the held-out batches, or if
    fewer than LEAST cells of their batch have unrelated labels. Ancestor labels are left out if
    none of their cells, or too few cells of the labels below, can be compared.
    """
    registry, at = Registry.of(cells), sampled(cells)
    part = anndata.AnnData(counts_at(cells, at), obs=cells.obs.iloc[at], uns=dict(cells.uns))
    unlike, labels = unlikeness(part, registry), part.obs["label"].astype(str).to_numpy()
    given, batch, out = given_in(part.obs).to_numpy(), part.obs["batch"].astype(str), {}
    for name, below in registry.labels_above.items():
        others = pd.Series(~np.isin(given, [name, *below]), part.obs_names)
        comparable = (others.groupby(batch).transform("sum") >= LEAST).to_numpy()
        score = np.log(ABOVE_ONE + unlike[:, np.isin(registry.labels, below)].min(1))
        asked = comparable & np.isfinite(score)
        known = score[asked & np.isin(labels, below)]
        own = np.flatnonzero(asked & (given == name) & (labels != name))
        if len(known) >= LEAST and len(own):
            far = own[score[own] > np.quantile(known, USUAL) + np.log(FARTHER)]
            out[name] = OwnLeaf(len(own), at[far])
    return out


def keep_own_leaves(cells: anndata.AnnData, facts: dict) -> None:
    """Set obs `label` to the ancestor label for cells that belong to none of the labels below it,
    and record this in the reference's `facts`; both in place."""
    if not facts.get("labels_above"):
        return
    labels = cells.obs["label"].astype(str).to_numpy(object)
    for name, found in own_leaves(cells).items():
        said = {"asked": found.asked, "unlike_those_below": len(found.unlike), "kept": found.kept}
        facts["labels_above"][name] |= {"own": said}
        if found.kept:
            labels[found.unlike] = name
            facts["labels"][name] = len(found.unlike)
    cells.obs["label"] = pd.Categorical(labels)
