"""How sure a label is: classifier and genes pooled, and what that is worth on held-out batches.

The probability that a label is right is a log-linear pool (Genest & Zidek 1986) of the
classifier's, averaged over the posterior, and of the regression's on genes; its two weights are
learned on held-out batches, and soften where they are below one.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

EPS = 1e-9
LEAST_P = 1e-6
MOST_TOLD = 20_000  # cells that weights are learned from
MIN_UNSURE = 30  # cells from which sets are learned, at least
START, TIED = np.log(0.5), 1e-3  # of logarithms of weights, and how much they are held together

Weights = list[float]  # of opinions, here the classifier's and the genes'
# Probabilities by each opinion (cells × labels), last the true labels (codes).
Told = tuple[np.ndarray, ...]


def logs_of(opinion: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities (cells × labels), all alike where an opinion is NaN."""
    return np.nan_to_num(np.log(np.clip(opinion, LEAST_P, 1)))


def pooled(weights: Weights, *opinions: np.ndarray) -> np.ndarray:
    """Probabilities of labels (cells × labels) by weighted opinions (cells × labels each)."""
    parts = zip(weights, opinions, strict=True)
    return softmax(sum(weight * logs_of(opinion) for weight, opinion in parts), axis=1)


def fit_weights(told: list[Told]) -> Weights:
    """Those under which true labels are most probable, over all parts (of many cells some)."""
    step = max(1, sum(len(truth) for *_, truth in told) // MOST_TOLD)
    some = [[values[::step] for values in one] for one in told]
    parts = [(np.stack([logs_of(p) for p in opinions]), truth) for *opinions, truth in some]
    n_cells = sum(len(truth) for _, truth in parts)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        """And its gradient, both by the logarithms of weights."""
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
    """Of each fold the weights that the others teach; those of all where there are no others."""
    parts = list(zip(told, folds, strict=True))
    others = {fold: [one for one, of in parts if of != fold] for fold in sorted(set(folds))}
    return {fold: fit_weights(of_others or told) for fold, of_others in others.items()}


def risk_threshold(p: np.ndarray, right: np.ndarray, risk: float) -> float:
    """The least probability such that of the cells that have at least that much no more than `risk`
    are wrong (one more than are seen, divided by one cell more)."""
    order = np.argsort(-p, kind="stable")
    n = np.arange(2, len(p) + 2)
    fine = np.flatnonzero((np.cumsum(~right[order]) + 1) / n <= risk)
    return float(p[order][fine[-1]]) if len(fine) else float(np.nextafter(p.max(initial=1), 2))


def set_threshold(p_of_truth: np.ndarray, unsure: np.ndarray, coverage: float) -> float:
    """1 − p up to which labels are in a set, so that it holds the truth of `unsure` cells (mask) as
    often as asked (split conformal: Vovk et al. 2005)."""
    scores = np.sort(1 - p_of_truth[unsure])
    rank = int(np.ceil((len(scores) + 1) * coverage)) - 1
    return float(scores[min(rank, len(scores) - 1)])


@dataclass(frozen=True)
class Held:
    """Held-out cells: what is `told` of them, and the labels (codes) that they were `given`, and
    that the classifier `predicted`."""

    told: Told
    given: np.ndarray
    predicted: np.ndarray

    def weighed(self, weights: Weights) -> tuple[np.ndarray, ...]:
        """The probability of the given label, whether the classifier says the same, whether it is
        right, and the probability of the true label."""
        by_model, by_genes, truth = self.told
        p, rows = pooled(weights, by_model, by_genes), np.arange(len(truth))
        agree, right = self.given == self.predicted, self.given == truth
        return p[rows, self.given], agree, right, p[rows, truth]


@dataclass(frozen=True)
class Confidence:
    """From `threshold` on a pooled probability is sure, where classifier and genes agree; of other
    cells labels are in the set whose 1 − p is at most `in_set`."""

    weights: Weights
    threshold: float
    in_set: float

    @classmethod
    def learned(
        cls, held: list[Held], folds: list[int], of_others: dict[int, Weights], risk: float,
        coverage: float,
    ):  # fmt: skip
        """From held-out batches, each by weights of the other folds; of the folds' thresholds the
        largest."""
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
        """Labels in each cell's set (cells × labels, bool): those probable enough, and those that
        it was given (codes)."""
        out = 1 - p <= self.in_set
        for codes in given:
            out[np.arange(len(p)), codes] = True
        return out
