"""Which cells train and which validate, and how an epoch is cut into minibatches.

Splits are scvi-tools' own (`RandomState(seed)`, validation first), so that a comparison with it
runs on the same cells.
"""

import math
from dataclasses import dataclass

import numpy as np

LEAST = 3  # cells in a minibatch: batch statistics of one or two cells are noise


@dataclass(frozen=True)
class Split:
    """Indices of training and validation cells."""

    train: np.ndarray
    validation: np.ndarray

    def join(self, other: "Split") -> "Split":
        """Both splits' cells."""
        return Split(
            np.concatenate([self.train, other.train]),
            np.concatenate([self.validation, other.validation]),
        )


def split_cells(
    cells: np.ndarray, train_size: float, seed: int, move_left_over: int | None = None
) -> Split:
    """Split `cells` (indices).

    `move_left_over` (a minibatch size) moves 1–2 training cells that would be left over after full
    minibatches to validation, as scvi-tools does for scVI, not for scANVI.
    """
    n_train = math.ceil(train_size * len(cells))
    n_validation = len(cells) - n_train
    if move_left_over and n_train > move_left_over and n_validation > 0:
        left_over = n_train % move_left_over
        n_validation += left_over if left_over < LEAST else 0
    order = cells[np.random.RandomState(seed).permutation(len(cells))]
    return Split(order[n_validation:], order[:n_validation])


def split_by_labels(labels: np.ndarray, train_size: float, seed: int) -> Split:
    """Labelled cells (label ≥ 0) and unlabelled ones split separately, as scANVI does."""
    parts = [np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)]
    splits = [split_cells(part, train_size, seed) for part in parts if len(part)]
    return splits[0] if len(splits) == 1 else splits[0].join(splits[1])


def minibatches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut `order` into minibatches; a last one of 1–2 cells joins the one before it."""
    cuts = np.arange(batch_size, len(order), batch_size)
    if len(cuts) and len(order) - cuts[-1] < LEAST:
        cuts = cuts[:-1]
    return np.split(order, cuts) if len(order) else []
