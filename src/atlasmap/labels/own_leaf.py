"""Does a label that stands above others have cells that are none of the labels below it?

Batches are held out in turn. If more of a label's cells than could be by chance are less like any
label below it than nearly all cells of these labels are, seen from batches that neither is of,
those cells are a label of their own: it keeps a place among the labels that a model learns.
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

USUAL = 0.95  # share of cells of the labels below that are as like them as asked
FARTHER = 1.1  # than those, on the scale of novelty
SHARE = 0.1  # of a label's cells, from which on they are no chance (seen where all were: 0.01)
LEAST = 10  # such cells, cells of the labels below, and of a batch


@dataclass(frozen=True)
class OwnLeaf:
    """A label above others: how many of its cells were `asked`, which of all cells (places) are
    `unlike` the labels below it, and whether these are a label of their own (`kept`)."""

    asked: int
    unlike: np.ndarray

    @property
    def share(self) -> float:
        """Of the cells that were asked."""
        return len(self.unlike) / self.asked

    @property
    def kept(self) -> bool:
        """Whether they are no chance."""
        return self.share > SHARE and len(self.unlike) >= LEAST


def sampled(cells: anndata.AnnData) -> np.ndarray:
    """Places of some cells of each label as it was given, in order."""
    codes = given_in(cells.obs).astype("category").cat.codes.to_numpy()
    return np.sort(np.concatenate([some_of(codes, code) for code in np.unique(codes)]))


def counts_at(cells: anndata.AnnData, at: np.ndarray) -> sparse.csr_matrix:
    """Counts of some cells, in memory."""
    chosen = cells.X[at]
    return sparse.csr_matrix(chosen.compute() if hasattr(chosen, "compute") else chosen)


def unlikeness(cells: anndata.AnnData, registry: Registry) -> np.ndarray:
    """Of prepared cells (in memory) minus the correlation of each with each label of the registry
    (cells × labels), seen from other folds' batches; NaN for cells that were not asked, infinite
    for labels that those batches lack."""
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
    """Of each label above others that cells of a prepared reference have. Nothing can be said of
    labels below it that are in one batch alone, nor in batches of nothing else."""
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
    """Give cells that are none of the labels below theirs that label, in place, in a reference's
    facts too."""
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
