"""Names for query cells: the classifier's soft labels, and weighted kNN as a second opinion."""

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
        """Its probability."""
        return self.probabilities.max(1)

    def frame(self, cells) -> pd.DataFrame:
        """The full table, a row a cell."""
        return pd.DataFrame(self.probabilities, index=cells, columns=self.names)


def soft_labels_of(latent: anndata.AnnData) -> SoftLabels:
    """What the classifier said of the cells of a latent file."""
    names = [str(name) for name in latent.uns["soft_label_names"]]
    return SoftLabels(np.asarray(latent.obsm["soft_labels"], np.float64), names)


@dataclass(frozen=True)
class Nearest:
    """Nearest reference cells of each query cell, the nearest first: `distances` and their places
    `at` (cells × neighbours). Labels and the map ask the same ones."""

    distances: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, reference: np.ndarray, query: np.ndarray, n_neighbors: int) -> "Nearest":
        """Exact ones, by Euclidean distance in the latent space (cells × latent)."""
        search = NearestNeighbors(n_neighbors=min(n_neighbors, len(reference)))
        return cls(*search.fit(reference).kneighbors(query))

    def first(self, n_neighbors: int) -> "Nearest":
        """The nearest of them."""
        return Nearest(self.distances[:, :n_neighbors], self.at[:, :n_neighbors])

    def only(self, cells: np.ndarray) -> "Nearest":
        """Those of some query cells (a mask)."""
        return Nearest(self.distances[cells], self.at[cells])


@dataclass(frozen=True)
class Neighbors:
    """Reference cells that each query cell asks: their places and weights (cells × neighbours)."""

    at: np.ndarray
    weights: np.ndarray


def weighted_neighbors(reference: np.ndarray, query: np.ndarray, n_neighbors: int) -> Neighbors:
    """Nearest `reference` cells (cells × latent) of each `query` cell, weighted."""
    return weighted(Nearest.of(reference, query, n_neighbors))


def weighted(nearest: Nearest) -> Neighbors:
    """Reference cells as the Human Lung Cell Atlas weighs them (Sikkema et al. 2023, methods).

    Gaussian weights exp(−d / (2 / sd)²) with sd the standard deviation of a cell's distances, as
    scArches' `weighted_knn_transfer` has them; they sum to one.
    """
    distances = nearest.distances
    bandwidth = np.square(2 / np.maximum(distances.std(1, keepdims=True), EPS))
    scaled = distances / bandwidth
    weights = np.exp(-(scaled - scaled.min(1, keepdims=True)))
    return Neighbors(nearest.at, weights / weights.sum(1, keepdims=True))


def votes(neighbors: Neighbors, labels: np.ndarray) -> SoftLabels:
    """Labels of reference cells (cells) carried over; uncertainty is 1 − the winner's weight."""
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    n_cells, n_neighbors = neighbors.at.shape
    probabilities = np.zeros((n_cells, len(names)))
    rows = np.repeat(np.arange(n_cells), n_neighbors)
    np.add.at(probabilities, (rows, codes[neighbors.at].ravel()), neighbors.weights.ravel())
    return SoftLabels(probabilities, list(names))


def label_table(soft: SoftLabels, cells) -> pd.DataFrame:
    """A row a cell: predicted_label, confidence, entropy (nats), runner_up and its probability."""
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
