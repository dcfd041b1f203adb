"""Which cells train and which validate, and how an epoch is cut into minibatches.

Splits equal those of scvi-tools (`RandomState(seed)`, validation first), so that comparisons with
it use the same cells.
"""

import math
from dataclasses import dataclass

import numpy as np

LEAST = 3  # cells per minibatch: batch statistics of one or two cells are noise


@dataclass(frozen=True)
class Split:
    """Indices of training and validation cells."""

    train: np.ndarray
    validation: np.ndarray

    def join(self, other: "Split") -> "Split":
        """The union of both splits."""
        return Split(
            np.concatenate([self.train, other.train]),
            np.concatenate([self.validation, other.validation]),
        )


def split_cells(
    cells: np.ndarray, train_size: float, seed: int, move_left_over: int | None = None
) -> Split:
    """Split `cells` (indices) at random: ⌈`train_size` · n⌉ training cells, the rest validation.

    `move_left_over`: minibatch size; if 1–2 training cells would remain after full minibatches,
    these are moved to validation, as scvi-tools does for scVI, but not for scANVI.
    """
    n_train = math.ceil(train_size * len(cells))
    n_validation = len(cells) - n_train
    if move_left_over and n_train > move_left_over and n_validation > 0:
        left_over = n_train % move_left_over
        n_validation += left_over if left_over < LEAST else 0
    order = cells[np.random.RandomState(seed).permutation(len(cells))]
    return Split(order[n_validation:], order[:n_validation])


def split_by_labels(labels: np.ndarray, train_size: float, seed: int) -> Split:
    """Split labelled cells (label ≥ 0) and unlabelled ones separately, as scANVI does."""
    parts = [np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)]
    splits = [split_cells(part, train_size, seed) for part in parts if len(part)]
    return splits[0] if len(splits) == 1 else splits[0].join(splits[1])


def minibatches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut `order` into minibatches; a last one of 1–2 cells joins the one before it."""
    cuts = np.arange(batch_size, len(order), batch_size)
    if len(cuts) and len(order) - cuts[-1] < LEAST:
        cuts = cuts[:-1]
    return np.split(order, cuts) if len(order) else []
