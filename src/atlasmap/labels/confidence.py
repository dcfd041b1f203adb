"""Calibrated label probabilities, and thresholds on them learned on held-out batches.

The probability of a label is a log-linear pool (Genest & Zidek 1986) of two opinions: that of the
classifier, averaged over the posterior, and that of a logistic regression on genes. The two weights
are learned on held-out batches; weights below one make probabilities less extreme.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

EPS = 1e-9
LEAST_P = 1e-6
MOST_TOLD = 20_000  # cells that weights are learned from: with more, every n-th cell
MIN_UNSURE = 30  # fewest cells that prediction sets are learned from
START, TIED = np.log(0.5), 1e-3  # log weights: initial value, and strength of their L2 penalty

Weights = list[float]  # one per opinion, here the classifier's and the genes'
# Probabilities of each opinion (cells × labels), then the true labels (codes).
Told = tuple[np.ndarray, ...]


def logs_of(opinion: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities (cells × labels); 0 for NaN, so that such an opinion has no
    effect in a pool."""
    return np.nan_to_num(np.log(np.clip(opinion, LEAST_P, 1)))


def pooled(weights: Weights, *opinions: np.ndarray) -> np.ndarray:
    """Log-linear pool (cells × labels) of weighted opinions (each cells × labels)."""
    parts = zip(weights, opinions, strict=True)
    return softmax(sum(weight * logs_of(opinion) for weight, opinion in parts), axis=1)


def fit_weights(told: list[Told]) -> Weights:
    """Fit the weights that maximise the likelihood of the true labels over all parts; of many
    cells a subsample is used."""
    step = max(1, sum(len(truth) for *_, truth in told) // MOST_TOLD)
    some = [[values[::step] for values in one] for one in told]
    parts = [(np.stack([logs_of(p) for p in opinions]), truth) for *opinions, truth in some]
    n_cells = sum(len(truth) for _, truth in parts)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Penalised mean negative log-likelihood and its gradient, as functions of log weights."""
        value, gradient, weights = 0.0, np.zeros_like(logs), np.exp(logs)
        for of_opinions, truth in parts:
            rows = np.arange(len(truth))
            p = softmax(np.tensordot(weights, of_opinions, 1), axis=1)
            value -= np.log(p[rows, truth] + EPS).sum()
            expected = np.einsum("ncl,cl->n", of_opinions, p)
            gradient += weights * (expected - of_opinions[:, rows, truth].sum(1))
        tied = TIED * np.square(logs).sum()
        return value / n_cells + tied, gradient / n_cells + 2 * TIED * logs

    start = np.full(len(told[0]) - 1, START)
    return np.exp(minimize(loss, start, jac=True, method="BFGS").x).tolist()


def weights_of_others(told: list[Told], folds: list[int]) -> dict[int, Weights]:
    """For each fold, the weights learned on all other folds (on all cells if there is one fold)."""
    parts = list(zip(told, folds, strict=True))
    others = {fold: [one for one, of in parts if of != fold] for fold in sorted(set(folds))}
    return {fold: fit_weights(of_others or told) for fold, of_others in others.items()}


def risk_threshold(p: np.ndarray, right: np.ndarray, risk: float) -> float:
    """Smallest probability from which at most a fraction `risk` of labels is wrong, estimated as
    (wrong + 1) / (n + 1); a value above 1 if there is none.

    `p`: probability of each cell's label; `right`: whether the label is right (mask).
    """
    order = np.argsort(-p, kind="stable")
    n = np.arange(2, len(p) + 2)
    fine = np.flatnonzero((np.cumsum(~right[order]) + 1) / n <= risk)
    return float(p[order][fine[-1]]) if len(fine) else float(np.nextafter(p.max(initial=1), 2))


def set_threshold(p_of_truth: np.ndarray, unsure: np.ndarray, coverage: float) -> float:
    """Largest 1 − p of labels in a prediction set, such that the sets of a fraction `coverage` of
    the `unsure` cells (mask) contain the true label (split conformal: Vovk et al. 2005)."""
    scores = np.sort(1 - p_of_truth[unsure])
    rank = int(np.ceil((len(scores) + 1) * coverage)) - 1
    return float(scores[min(rank, len(scores) - 1)])


@dataclass(frozen=True)
class Held:
    """Held-out cells: opinions and true labels (`told`), the labels (codes) that they were `given`
    by the pool, and those that the classifier `predicted`."""

    told: Told
    given: np.ndarray
    predicted: np.ndarray

    def weighed(self, weights: Weights) -> tuple[np.ndarray, ...]:
        """Per cell: probability of the given label, whether the classifier agrees with it, whether
        it is right, and probability of the true label."""
        by_model, by_genes, truth = self.told
        p, rows = pooled(weights, by_model, by_genes), np.arange(len(truth))
        agree, right = self.given == self.predicted, self.given == truth
        return p[rows, self.given], agree, right, p[rows, truth]


@dataclass(frozen=True)
class Confidence:
    """Thresholds on pooled probabilities p.

    A label with p ≥ `threshold` is confident, if it is also the classifier's. The prediction set of
    other cells has the labels with 1 − p ≤ `in_set`.
    """

    weights: Weights
    threshold: float
    in_set: float

    @classmethod
    def learned(
        cls, held: list[Held], folds: list[int], of_others: dict[int, Weights], risk: float,
        coverage: float,
    ):  # fmt: skip
        """Learn from held-out batches (`folds`: their folds), each weighted by `of_others`, the
        weights of the other folds; `threshold` is the largest over folds."""
        thresholds, known = [], []
        for fold in sorted(set(folds)):
            own = [one for one, of in zip(held, folds, strict=True) if of == fold]
            sure, agree, right, of_truth = map(
                np.concatenate, zip(*(one.weighed(of_others[fold]) for one in own), strict=True)
            )
            thresholds.append(risk_threshold(sure[agree], right[agree], risk))
            known.append((np.where(agree, sure, 0), of_truth))
        threshold, (sure, of_truth) = max(thresholds), map(np.concatenate, zip(*known, strict=True))
        unsure = (sure < threshold) | (np.argsort(np.argsort(sure)) < MIN_UNSURE)
        weights = fit_weights([one.told for one in held])
        return cls(weights, threshold, set_threshold(of_truth, unsure, coverage))

    def sets(self, p: np.ndarray, *given: np.ndarray) -> np.ndarray:
        """Prediction sets (cells × labels, bool): labels with 1 − p ≤ `in_set`, and each cell's
        `given` labels (codes)."""
        out = 1 - p <= self.in_set
        for codes in given:
            out[np.arange(len(p)), codes] = True
        return out
