"""Training history as a tidy table: one row per epoch, split and metric."""

from collections import defaultdict

import pandas as pd
import torch
from torch import Tensor

N_BINS = 15


class Averages:
    """Per-cell averages over an epoch; sums stay on the device until `values` is called."""

    def __init__(self, sums: dict[str, Tensor] | None = None, weights: dict | None = None):
        self.sums: dict[str, Tensor | float] = defaultdict(float, sums or {})
        self.weights: dict[str, int] = defaultdict(int, weights or {})

    def add(self, sums: dict[str, Tensor], weight: int) -> None:
        """Add to each metric its sum over `weight` cells."""
        for name, value in sums.items():
            self.sums[name] += value
            self.weights[name] += weight

    def values(self) -> dict[str, float]:
        """Mean of every metric."""
        return {name: float(total) / self.weights[name] for name, total in self.sums.items()}


class History:
    """A list of rows (epoch, split, metric, value)."""

    def __init__(self, rows: list[tuple[int, str, str, float]] | None = None):
        self.rows = rows or []

    def add(self, epoch: int, split: str, values: dict[str, float]) -> None:
        """Add one epoch's metrics of one split."""
        self.rows += [(epoch, split, name, value) for name, value in values.items()]

    def table(self) -> pd.DataFrame:
        """The history as a table: epoch, split, metric, value."""
        return pd.DataFrame(self.rows, columns=["epoch", "split", "metric", "value"])

    def last(self, split: str, metric: str) -> float | None:
        """The latest value of a metric of a split; None before the first."""
        for _, row_split, row_metric, value in reversed(self.rows):
            if (row_split, row_metric) == (split, metric):
                return value
        return None


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> Tensor:
    """ECE (Guo et al. 2017), scalar: Σ over 15 bins of equal width of the fraction of cells in the
    bin · |accuracy − mean confidence| (l1).

    `confidence` in [0, 1] and `correct` (0 or 1), one value per cell. A confidence of exactly 1 is
    in the last bin.
    """
    return binned_gap(confidence, correct, N_BINS, N_BINS)


def peer_calibration_error(confidence: Tensor, correct: Tensor) -> Tensor:
    """ECE as torchmetrics computes it: a confidence of exactly 1 has a bin of its own."""
    return binned_gap(confidence, correct, N_BINS, N_BINS + 1)


def binned_gap(confidence: Tensor, correct: Tensor, n_edges: int, n_bins: int) -> Tensor:
    """Σ over bins of |Σ (correct − confidence)|, divided by the number of cells."""
    edges = torch.linspace(0, 1, n_edges + 1, device=confidence.device, dtype=confidence.dtype)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, n_bins - 1)
    gap = torch.zeros(n_bins, device=confidence.device, dtype=confidence.dtype)
    gap.index_add_(0, bins, correct.to(confidence.dtype) - confidence)
    return gap.abs().sum() / len(confidence)
