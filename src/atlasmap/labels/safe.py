"""The deepest safe label: at the deepest level of the tree of labels at which no more than the risk
that was asked for of held-out cells were wrong."""

from dataclasses import dataclass

import numpy as np

from atlasmap.data.label_tree import LabelTree, rolled_up
from atlasmap.labels.confidence import Weights, pooled, risk_threshold
from atlasmap.labels.novelty import Batch

LABEL, NONE = "label", "none"  # levels: a label of the model, and no label at all


def at_level(
    p: np.ndarray, names: list[str], codes: np.ndarray, tree: LabelTree, level: int
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Of cells whose label (codes of `names`) is below a level: their places, the probability that
    their label has there (`p`: cells × labels), and what each label is there."""
    to = {name: tree.at_level(name, level) for name in names}
    summed, groups = rolled_up(p, names, to)
    at = np.flatnonzero(np.array([tree.depth(name) > level for name in names])[codes])
    column = np.array([groups.index(to[name]) for name in names])[codes[at]]
    return at, summed[at, column], to


@dataclass
class Asked:
    """Known cells of a held-out batch: pooled probabilities `p` (cells × labels), and which cells
    have no safe label yet (`left`)."""

    batch: Batch
    p: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, batch: Batch, weights: Weights, threshold: float) -> "Asked":
        """All of them left but those whose label is confident."""
        p = pooled(weights, *batch.told[:2])
        given, predicted = batch.seen.codes[batch.known], batch.predicted[batch.known]
        sure = p[np.arange(len(p)), given] >= threshold
        return cls(batch, p, ~(sure & (given == predicted)))

    def at(self, tree: LabelTree, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cells left that are below a level: places, probability there, and whether it is right."""
        names, given = self.batch.names, self.batch.seen.codes[self.batch.known]
        at, own, to = at_level(self.p, names, given, tree, level)
        group, left = np.array([to[name] for name in names], object), self.left[at]
        right = group[given[at]] == group[self.batch.truth[at]]
        return at[left], own[left], right[left]


def level_thresholds(
    held: list[Batch], of_others: dict[int, Weights], tree: LabelTree, threshold: float, risk: float
) -> dict[str, float]:
    """Level → probability from which on a label is safe there, learned from those cells of held-out
    batches (as they are named, weighed by the other folds' weights) that have no label from
    `threshold` on and none safe at a deeper level. A level that held-out cells say nothing about is
    not in it."""
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
    """Of each cell a `label`, its `level` (label, level0, … or none), `probability` (or NaN)."""

    label: np.ndarray
    level: np.ndarray
    probability: np.ndarray


def safe_labels(
    p: np.ndarray, names: list[str], given: np.ndarray, sure: np.ndarray, may_have: np.ndarray,
    tree: LabelTree, thresholds: dict[str, float], unlabeled: str,
) -> Safe:  # fmt: skip
    """Of cells with pooled probabilities `p` (cells × labels) and labels `given` (codes): that
    label where it is `sure`, else what is safe above it; `unlabeled` where nothing is, or a cell (a
    novel one) may not have any."""
    label, level = np.full(len(p), unlabeled, object), np.full(len(p), NONE, object)
    probability = np.full(len(p), np.nan)

    def take(at: np.ndarray, what: list[str], where: str, how_sure: np.ndarray) -> None:
        label[at], level[at], probability[at] = np.array(what, object)[given[at]], where, how_sure

    for k in range(tree.levels(names)):
        where = f"level{k}"
        at, own, to = at_level(p, names, given, tree, k)
        fine = may_have[at] & (own >= thresholds.get(where, np.inf))
        take(at[fine], [to[name] for name in names], where, own[fine])
    at = np.flatnonzero(sure & may_have)
    take(at, names, LABEL, p[at, given[at]])
    return Safe(label, level, probability)
