"""Prediction sets: labels such that the true one is among them as often as was asked.

Conformal (Vovk et al. 2005) with the score 1 − p (Sadinle et al. 2019), and 0 for the label that
the classifier gives, which is in every set: none is empty, none names others alone. A label that
has the cells for it has a threshold half-way between its own and that of all: its own alone is so
tight for large, easy labels that another batch breaks it, that of all alone leaves rare labels out.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Thresholds:
    """A label is in a cell's set where 1 − its probability is at most the label's threshold, or
    where it is the one that the classifier gives."""

    coverage: float
    values: list[float]
    own: list[bool]

    def sets(self, probabilities: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Which labels are in each cell's set (cells × labels, bool); `given` is the column of the
        classifier's label (cells)."""
        chosen = 1 - probabilities <= np.array(self.values)
        chosen[np.arange(len(given)), given] = True
        return chosen


def quantile(scores: np.ndarray, coverage: float) -> float:
    """The threshold that a new score stays below with probability ≥ coverage; 1 (every label) for
    fewer scores than that takes."""
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


def fit_thresholds(
    probabilities: np.ndarray, codes: np.ndarray, given: np.ndarray, coverage: float,
    min_cells: int,
) -> Thresholds:  # fmt: skip
    """Of cells whose true label is column `codes` of calibrated `probabilities` (cells × labels),
    the classifier's column `given`.

    Labels with at least `min_cells` cells have a threshold of their own, half-way to that of all.
    """
    scores = 1 - probabilities[np.arange(len(codes)), codes]
    scores = np.where(codes == given, 0.0, scores)
    of_all, values, own = quantile(scores, coverage), [], []
    for label in range(probabilities.shape[1]):
        of_label = scores[codes == label]
        own.append(len(of_label) >= min_cells)
        values.append((quantile(of_label, coverage) + of_all) / 2 if own[-1] else of_all)
    return Thresholds(coverage, values, own)
