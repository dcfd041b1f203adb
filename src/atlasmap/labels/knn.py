"""Labels of query cells: the classifier's soft labels, and weighted kNN as a second opinion."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

EPS = 1e-12


@dataclass(frozen=True)
class SoftLabels:
    """Probabilities (cells × labels, rows sum to one) and the labels' names."""

    probabilities: np.ndarray
    names: list[str]

    def predicted(self) -> np.ndarray:
        """Most probable label of each cell."""
        return np.asarray(self.names, dtype=object)[self.probabilities.argmax(1)]

    def confidence(self) -> np.ndarray:
        """Probability of the predicted label of each cell."""
        return self.probabilities.max(1)

    def frame(self, cells) -> pd.DataFrame:
        """Table of all probabilities, one row per cell."""
        return pd.DataFrame(self.probabilities, index=cells, columns=self.names)


def soft_labels_of(latent: anndata.AnnData) -> SoftLabels:
    """The classifier's soft labels in a latent file."""
    names = [str(name) for name in latent.uns["soft_label_names"]]
    return SoftLabels(np.asarray(latent.obsm["soft_labels"], np.float64), names)


@dataclass(frozen=True)
class Nearest:
    """Nearest reference cells of each query cell, the nearest first: `distances`, and their indices
    `at` (both cells × neighbours). Computed once for labels and UMAP."""

    distances: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, reference: np.ndarray, query: np.ndarray, n_neighbors: int) -> "Nearest":
        """Search exactly, by Euclidean distance in latent space (both arrays cells × latent)."""
        search = NearestNeighbors(n_neighbors=min(n_neighbors, len(reference)))
        return cls(*search.fit(reference).kneighbors(query))

    def first(self, n_neighbors: int) -> "Nearest":
        """Return the `n_neighbors` nearest of them."""
        return Nearest(self.distances[:, :n_neighbors], self.at[:, :n_neighbors])

    def only(self, cells: np.ndarray) -> "Nearest":
        """Return those of some query cells (a mask)."""
        return Nearest(self.distances[cells], self.at[cells])


@dataclass(frozen=True)
class Neighbors:
    """Weighted reference neighbours of each query cell: their indices `at` and `weights` (both
    cells × neighbours)."""

    at: np.ndarray
    weights: np.ndarray


def weighted_neighbors(reference: np.ndarray, query: np.ndarray, n_neighbors: int) -> Neighbors:
    """Weighted nearest `reference` cells of each `query` cell (both cells × latent)."""
    return weighted(Nearest.of(reference, query, n_neighbors))


def weighted(nearest: Nearest) -> Neighbors:
    """Weight neighbours as in the Human Lung Cell Atlas (Sikkema et al. 2023, methods).

    Weights are exp(−d / (2 / sd)²), with sd the standard deviation of a cell's distances, as in
    scArches' `weighted_knn_transfer`; the weights of a cell sum to one.
    """
    distances = nearest.distances
    bandwidth = np.square(2 / np.maximum(distances.std(1, keepdims=True), EPS))
    scaled = distances / bandwidth
    # The minimum cancels in the normalisation; without it, all weights could underflow to zero.
    weights = np.exp(-(scaled - scaled.min(1, keepdims=True)))
    return Neighbors(nearest.at, weights / weights.sum(1, keepdims=True))


def votes(neighbors: Neighbors, labels: np.ndarray) -> SoftLabels:
    """Soft labels of query cells: summed weights of their neighbours per label.

    `labels` are those of the reference cells.
    """
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    n_cells, n_neighbors = neighbors.at.shape
    probabilities = np.zeros((n_cells, len(names)))
    rows = np.repeat(np.arange(n_cells), n_neighbors)
    np.add.at(probabilities, (rows, codes[neighbors.at].ravel()), neighbors.weights.ravel())
    return SoftLabels(probabilities, list(names))


def label_table(soft: SoftLabels, cells) -> pd.DataFrame:
    """Table with one row per cell: predicted_label, confidence, entropy (nats), runner_up and
    runner_up_probability."""
    order = np.argsort(-soft.probabilities, axis=1, kind="stable")
    names = np.asarray(soft.names, dtype=object)
    rows = np.arange(len(order))
    p = np.clip(soft.probabilities, EPS, 1)
    return pd.DataFrame(
        {
            "predicted_label": names[order[:, 0]],
            "confidence": soft.probabilities[rows, order[:, 0]],
            "entropy": np.abs(-(p * np.log(p)).sum(1)),
            "runner_up": names[order[:, 1]],
            "runner_up_probability": soft.probabilities[rows, order[:, 1]],
        },
        index=cells,
    )
