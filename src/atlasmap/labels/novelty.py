"""Novelty: query cells that resemble none of the reference's labels.

There are two scores. `correlation`: the cell, averaged with similar cells of its batch, correlates
with no label's profile. `misfit`: the decoder reconstructs the cell poorly. Which one works better
depends on the reference, so each label is left out in turn of what held-out cells are compared
with, and the score with the higher mean AUROC for the left-out labels is used. Cut-offs are learned
on held-out batches, per label that a cell was given: the largest over folds, shrunk towards the
cut-off of all labels.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from atlasmap.labels.confidence import Held, Told, Weights, pooled
from atlasmap.labels.profiles import Seen

SCORES = ("correlation", "misfit")
SHRINK = 10  # weight, in cells, of the cut-off of all labels against a label's own
LEAST_RESIDUAL = 1e-6
ABOVE_ONE = 1.02  # keeps log(ABOVE_ONE − correlation) finite


def relative(values: np.ndarray, to: np.ndarray | None = None) -> np.ndarray:
    """Values divided by the median of `to` (default: of the values themselves)."""
    return values / max(float(np.median(values if to is None else to)), LEAST_RESIDUAL)


@dataclass(frozen=True)
class Batch:
    """A mapped batch.

    `names`: the model's labels; `predicted`: the classifier's labels (codes); `by_model`: its
    probabilities averaged over the posterior (cells × names); `seen`: the comparison of the cells'
    genes with the reference; `residual`: residual score relative to the batch's median (None
    without counts).

    Of a held-out batch also: `fold`; true `labels` (names); `residual_if_missing`: residual score
    of each cell if the model lacked its label; `opinions` on labels (name → cells × names) besides
    that of the genes.
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
        """Return the batch with the labels (`seen.codes`) of the pool of classifier and genes."""
        codes = pooled(weights, self.by_model, self.seen.by_genes).argmax(1)
        return Batch(**vars(self) | {"seen": self.seen.renamed(codes)})

    @property
    def known(self) -> np.ndarray:
        """Indices of the cells whose true label the model has."""
        return np.flatnonzero(np.isin(self.labels, self.names))

    @property
    def truth(self) -> np.ndarray:
        """True labels (codes) of the `known` cells."""
        number = {name: k for k, name in enumerate(self.names)}
        return np.array([number[label] for label in self.labels[self.known]], int)

    @property
    def told(self) -> Told:
        """Input of `fit_weights` for classifier and genes, from the `known` cells."""
        return self.by_model[self.known], self.seen.by_genes[self.known], self.truth

    @property
    def all_told(self) -> tuple[list[str], Told]:
        """Names of all opinions, and the input of `fit_weights` for them, from the `known`
        cells."""
        said = self.opinions | {"genes": self.seen.opinion}
        return list(said), (*(p[self.known] for p in said.values()), self.truth)

    @property
    def held(self) -> Held:
        """The `known` cells in the form from which `Confidence` is learned."""
        return Held(self.told, self.seen.codes[self.known], self.predicted[self.known])

    def has(self, score: str) -> bool:
        """Whether a score can be computed."""
        return score == "correlation" or self.residual is not None

    def score(self, score: str) -> np.ndarray:
        """Novelty score of each cell on a log scale: larger for cells less like any label."""
        if score == "misfit":
            return np.log(np.maximum(self.residual, LEAST_RESIDUAL))
        return np.log(ABOVE_ONE - self.seen.like.max(1))

    def score_if_missing(self, score: str) -> np.ndarray:
        """The same for the `known` cells, with their true label left out of the comparison."""
        if score == "misfit":
            return np.log(np.maximum(self.residual_if_missing[self.known], LEAST_RESIDUAL))
        like = self.seen.like[self.known]
        like[np.arange(len(like)), self.truth] = -1
        return np.log(ABOVE_ONE - like.max(1))


@dataclass(frozen=True)
class CutOffs:
    """Cut-offs of a novelty `score`: a cell is novel above the cut-off of the label it was given
    (`by_label`), or above `of_all` if no held-out cell was given that label."""

    score: str
    of_all: float
    by_label: dict[str, float]

    def novelty(self, scores: np.ndarray, names: list[str], codes: np.ndarray) -> np.ndarray:
        """exp(score − cut-off) of cells that were given the labels `codes`; novel above 1."""
        cuts = np.array([self.by_label.get(name, self.of_all) for name in names])
        return np.exp(scores - cuts[codes])


def cut_offs(
    held: list[Batch], score: str, false_novel: float, *, by_label: bool = True
) -> CutOffs:
    """Learn cut-offs: the 1 − `false_novel` quantile of the scores of each fold's known cells, and
    of these the largest.

    For all labels together and, if `by_label`, per label that cells were given, shrunk towards the
    cut-off of all labels.
    """
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
    """Label → AUROC of its cells, scored as if the label were missing, against the known cells of
    all other labels.

    Labels with fewer than `least` cells are left out. Empty if a batch lacks the score.
    """
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
    """Return the score with the largest mean AUROC over labels, and the AUROCs of both scores
    (score → label → AUROC)."""
    found = {score: told_apart(held, score, least) for score in SCORES}
    found = {score: of_labels for score, of_labels in found.items() if of_labels}
    best = max(found, key=lambda score: np.mean(list(found[score].values())), default=SCORES[0])
    return best, found


def would_be_found(
    held: list[Batch], cuts: CutOffs, weights: Weights, least: int
) -> list[dict[str, str | int | float]]:
    """Fraction of each label's held-out cells that would be called novel if the reference lacked
    the label: rows label, n, detected, and its 95 % interval low, high (Wilson 1927).

    Labels with fewer than `least` cells are left out.
    """
    labels, found = [], []
    for batch in held:
        p = pooled(weights, *batch.told[:2])
        p[np.arange(len(p)), batch.truth] = -1  # so that another label is given
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
