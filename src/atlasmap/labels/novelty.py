"""Novelty: like no label that the reference has. By which score, the reference itself is asked.

`correlation`: a cell and its like correlate with no label's profile. `misfit`: the decoder explains
them poorly. Neither is right everywhere, so each label is left out of what held-out cells are
compared with, and the score is taken that tells its cells apart. Cut-offs come from held-out
batches, by the label that a cell was given: the largest over folds, shrunk to that of all labels.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from atlasmap.labels.confidence import Held, Told, Weights, pooled
from atlasmap.labels.profiles import Seen

SCORES = ("correlation", "misfit")
SHRINK = 10  # cells that the cut-off of all labels counts as, beside a label's own
LEAST_RESIDUAL = 1e-6
ABOVE_ONE = 1.02  # so that a correlation of 1 has a logarithm


def relative(values: np.ndarray, to: np.ndarray | None = None) -> np.ndarray:
    """Over a batch's median (of `to`; its own)."""
    return values / max(float(np.median(values if to is None else to)), LEAST_RESIDUAL)


@dataclass(frozen=True)
class Batch:
    """A batch as a model maps it. `names` are the model's labels, `predicted` the classifier's
    (codes), `by_model` its probabilities averaged over the posterior (cells × names), `seen` the
    cells' genes, `residual` the decoder's residual score over the batch's median (None without
    counts).

    Of a held-out batch also its `fold`, true `labels` (names), `residual_if_missing`: that of each
    cell if the model lacked its label, and `opinions` on its labels (name → cells × names), those
    of genes left out.
    """

    names: list[str]
    predicted: np.ndarray
    by_model: np.ndarray
    seen: Seen
    residual: np.ndarray | None = None
    fold: int = 0
    labels: np.ndarray | None = None
    residual_if_missing: np.ndarray | None = None
    opinions: dict[str, np.ndarray] = field(default_factory=dict)

    def named(self, weights: Weights) -> "Batch":
        """The same with cells named (`seen.codes`) as classifier and genes together say."""
        codes = pooled(weights, self.by_model, self.seen.by_genes).argmax(1)
        return Batch(**vars(self) | {"seen": self.seen.renamed(codes)})

    @property
    def known(self) -> np.ndarray:
        """Cells (places) whose true label the model has."""
        return np.flatnonzero(np.isin(self.labels, self.names))

    @property
    def truth(self) -> np.ndarray:
        """Codes of true labels of the `known`."""
        number = {name: k for k, name in enumerate(self.names)}
        return np.array([number[label] for label in self.labels[self.known]], int)

    @property
    def told(self) -> Told:
        """What weights are learned from."""
        return self.by_model[self.known], self.seen.by_genes[self.known], self.truth

    @property
    def all_told(self) -> tuple[list[str], Told]:
        """What weights of all opinions are learned from, and whose they are."""
        said = self.opinions | {"genes": self.seen.opinion}
        return list(said), (*(p[self.known] for p in said.values()), self.truth)

    @property
    def held(self) -> Held:
        """The known cells, as confidence is learned from them."""
        return Held(self.told, self.seen.codes[self.known], self.predicted[self.known])

    def has(self, score: str) -> bool:
        """Whether there is such a score."""
        return score == "correlation" or self.residual is not None

    def score(self, score: str) -> np.ndarray:
        """How unlike all labels each cell is (cells), on a logarithmic scale."""
        if score == "misfit":
            return np.log(np.maximum(self.residual, LEAST_RESIDUAL))
        return np.log(ABOVE_ONE - self.seen.like.max(1))

    def score_if_missing(self, score: str) -> np.ndarray:
        """The same of the known cells, if their label were not among those compared with."""
        if score == "misfit":
            return np.log(np.maximum(self.residual_if_missing[self.known], LEAST_RESIDUAL))
        like = self.seen.like[self.known]
        like[np.arange(len(like)), self.truth] = -1
        return np.log(ABOVE_ONE - like.max(1))


@dataclass(frozen=True)
class CutOffs:
    """A cell is novel whose `score` is above the cut-off of the label it was given (`by_label`), or
    of a label that no held-out cell was given above that `of_all`."""

    score: str
    of_all: float
    by_label: dict[str, float]

    def novelty(self, scores: np.ndarray, names: list[str], codes: np.ndarray) -> np.ndarray:
        """Above 1 where a cell (named by codes) is novel; a ratio of what the logarithms are of."""
        cuts = np.array([self.by_label.get(name, self.of_all) for name in names])
        return np.exp(scores - cuts[codes])


def cut_offs(
    held: list[Batch], score: str, false_novel: float, *, by_label: bool = True
) -> CutOffs:
    """Under which at most `false_novel` of the known cells of each fold are novel."""
    folds = sorted({batch.fold for batch in held})
    scores = {k: [] for k in folds}
    given = {k: [] for k in folds}
    for batch in held:
        scores[batch.fold].append(batch.score(score)[batch.known])
        given[batch.fold].append(np.array(batch.names, object)[batch.seen.codes[batch.known]])
    of_fold = [(np.concatenate(scores[k]), np.concatenate(given[k])) for k in folds]
    of_fold = [part for part in of_fold if len(part[0])]
    q, out = 1 - false_novel, {}
    of_all = max(float(np.quantile(values, q)) for values, _ in of_fold)
    for name in sorted({name for _, names in of_fold for name in names}) if by_label else ():
        own = [values[names == name] for values, names in of_fold]
        out[name] = max(
            float((np.quantile(v, q) * len(v) + of_all * SHRINK) / (len(v) + SHRINK))
            for v in own
            if len(v)
        )
    return CutOffs(score, of_all, out)


def told_apart(held: list[Batch], score: str, least: int) -> dict[str, float]:
    """AUROC of the cells of each label (of at least so many cells), if it were missing, against
    those of all others as they are."""
    if not all(batch.has(score) for batch in held):
        return {}
    labels = np.concatenate([batch.labels[batch.known] for batch in held])
    known = np.concatenate([batch.score(score)[batch.known] for batch in held])
    missing = np.concatenate([batch.score_if_missing(score) for batch in held])
    out = {}
    for label in np.unique(labels):
        own, others = (labels == label) & np.isfinite(missing), known[labels != label]
        if own.sum() >= least and len(others):
            truth = np.repeat([True, False], [own.sum(), len(others)])
            out[str(label)] = float(roc_auc_score(truth, np.concatenate([missing[own], others])))
    return out


def choose_score(held: list[Batch], least: int) -> tuple[str, dict[str, dict[str, float]]]:
    """The score that tells labels apart best, on average over labels, and what each does (score →
    label → AUROC)."""
    found = {score: told_apart(held, score, least) for score in SCORES}
    found = {score: of_labels for score, of_labels in found.items() if of_labels}
    best = max(found, key=lambda score: np.mean(list(found[score].values())), default=SCORES[0])
    return best, found


def would_be_found(
    held: list[Batch], cuts: CutOffs, weights: Weights, least: int
) -> list[dict[str, str | int | float]]:
    """Of each label, how many of its held-out cells were novel if the reference lacked it: label,
    n, detected, and its 95 % interval (Wilson 1927)."""
    labels, found = [], []
    for batch in held:
        p = pooled(weights, *batch.told[:2])
        p[np.arange(len(p)), batch.truth] = -1  # and the label that it would be given instead
        scores = batch.score_if_missing(cuts.score)
        found.append(cuts.novelty(scores, batch.names, p.argmax(1)) > 1)
        labels.append(batch.labels[batch.known])
    labels, found, rows = np.concatenate(labels), np.concatenate(found), []
    for label in np.unique(labels):
        own = found[labels == label]
        if len(own) >= least:
            low, high = binomtest(int(own.sum()), len(own)).proportion_ci(method="wilson")
            detected = {"detected": float(own.mean()), "low": float(low), "high": float(high)}
            rows.append({"label": str(label), "n": len(own)} | detected)
    return rows
