"""The deepest safe label: at the deepest level of the label tree at which the fraction of held-out
cells with a wrong label is at most the requested risk."""

from dataclasses import dataclass

import numpy as np

from atlasmap.data.label_tree import LabelTree, rolled_up
from atlasmap.labels.confidence import Weights, pooled, risk_threshold
from atlasmap.labels.novelty import Batch

LABEL, NONE = "label", "none"  # levels: a label of the model, and no label at all


def at_level(
    p: np.ndarray, names: list[str], codes: np.ndarray, tree: LabelTree, level: int
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """For cells whose label (`codes` of `names`) is below `level`: their indices, the summed
    probability (of `p`, cells × labels) of their label's ancestor at that level, and label →
    ancestor at that level."""
    to = {name: tree.at_level(name, level) for name in names}
    summed, groups = rolled_up(p, names, to)
    at = np.flatnonzero(np.array([tree.depth(name) > level for name in names])[codes])
    column = np.array([groups.index(to[name]) for name in names])[codes[at]]
    return at, summed[at, column], to


@dataclass
class Asked:
    """Known cells of a held-out batch: pooled probabilities `p` (cells × labels), and the cells
    without a safe label so far (`left`, mask)."""

    batch: Batch
    p: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, batch: Batch, weights: Weights, threshold: float) -> "Asked":
        """Start with all known cells left except those with a confident label."""
        p = pooled(weights, *batch.told[:2])
        given, predicted = batch.seen.codes[batch.known], batch.predicted[batch.known]
        sure = p[np.arange(len(p)), given] >= threshold
        return cls(batch, p, ~(sure & (given == predicted)))

    def at(self, tree: LabelTree, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cells left whose label is below `level`: their indices, the probability of its ancestor
        there, and whether that ancestor is right."""
        names, given = self.batch.names, self.batch.seen.codes[self.batch.known]
        at, own, to = at_level(self.p, names, given, tree, level)
        group, left = np.array([to[name] for name in names], object), self.left[at]
        right = group[given[at]] == group[self.batch.truth[at]]
        return at[left], own[left], right[left]


def level_thresholds(
    held: list[Batch], of_others: dict[int, Weights], tree: LabelTree, threshold: float, risk: float
) -> dict[str, float]:
    """Learn level → probability from which a label is safe at that level.

    Levels are processed from the deepest up. Each is learned on the held-out cells that have
    neither a confident label (p ≥ `threshold`) nor a safe one at a deeper level, with p pooled by
    `of_others`, the weights of the other folds. A level without such cells is left out.
    """
    n_levels = tree.levels([name for batch in held for name in batch.names])
    asked = [Asked.of(batch, of_others[batch.fold], threshold) for batch in held]
    out: dict[str, float] = {}
    for level in reversed(range(n_levels)):
        found = [one.at(tree, level) for one in asked]
        probability, right = (np.concatenate([part[k] for part in found]) for k in (1, 2))
        if not len(probability):
            continue
        out[f"level{level}"] = safe_from = risk_threshold(probability, right, risk)
        for one, (at, own, _) in zip(asked, found, strict=True):
            one.left[at[own >= safe_from]] = False
    return out


@dataclass(frozen=True)
class Safe:
    """Safe `label` of each cell, its `level` (label, level0, … or none) and its `probability` (NaN
    for none)."""

    label: np.ndarray
    level: np.ndarray
    probability: np.ndarray


def safe_labels(
    p: np.ndarray, names: list[str], given: np.ndarray, sure: np.ndarray, may_have: np.ndarray,
    tree: LabelTree, thresholds: dict[str, float], unlabeled: str,
) -> Safe:  # fmt: skip
    """Return each cell's safe label: its `given` label (codes) if that is `sure`, else the deepest
    ancestor whose probability reaches the level's threshold, else `unlabeled`.

    `p`: pooled probabilities (cells × labels); `may_have`: mask of cells that may get a label
    (novel cells may not).
    """
    label, level = np.full(len(p), unlabeled, object), np.full(len(p), NONE, object)
    probability = np.full(len(p), np.nan)

    def take(at: np.ndarray, what: list[str], where: str, how_sure: np.ndarray) -> None:
        label[at], level[at], probability[at] = np.array(what, object)[given[at]], where, how_sure

    for k in range(tree.levels(names)):  # from the top: deeper labels overwrite
        where = f"level{k}"
        at, own, to = at_level(p, names, given, tree, k)
        fine = may_have[at] & (own >= thresholds.get(where, np.inf))
        take(at[fine], [to[name] for name in names], where, own[fine])
    at = np.flatnonzero(sure & may_have)
    take(at, names, LABEL, p[at, given[at]])
    return Safe(label, level, probability)
