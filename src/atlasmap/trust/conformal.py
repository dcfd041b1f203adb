"""Prediction sets: labels such that the true one is among them as often as was asked.

Split-conformal (Vovk et al. 2005) with the score 1 − p (Sadinle et al. 2019), a threshold of its
own for each label that has the cells for it and one threshold for the others.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Thresholds:
    """A label is in a cell's set where 1 − its probability is at most the label's threshold."""

    coverage: float
    values: list[float]
    own: list[bool]

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Which labels are in each cell's set (cells × labels, bool)."""
        return 1 - probabilities <= np.array(self.values)


def quantile(scores: np.ndarray, coverage: float) -> float:
    """The threshold that a new score stays below with probability ≥ coverage; 1 (every label) for
    fewer scores than that takes."""
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


def fit_thresholds(
    probabilities: np.ndarray, codes: np.ndarray, coverage: float, min_cells: int
) -> Thresholds:
    """Of cells whose true label is column `codes` of calibrated `probabilities` (cells × labels).

    Labels with at least `min_cells` cells have a threshold of their own.
    """
    scores = 1 - probabilities[np.arange(len(codes)), codes]
    values, own = [], []
    for label in range(probabilities.shape[1]):
        of_label = scores[codes == label]
        own.append(len(of_label) >= min_cells)
        values.append(quantile(of_label if own[-1] else scores, coverage))
    return Thresholds(coverage, values, own)
