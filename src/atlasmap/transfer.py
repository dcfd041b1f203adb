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


def knn_soft_labels(
    reference: np.ndarray, labels: np.ndarray, query: np.ndarray, n_neighbors: int
) -> SoftLabels:
    """Weighted kNN transfer as in the Human Lung Cell Atlas (Sikkema et al. 2023, methods).

    Gaussian weights exp(−d / (2 / sd)²) with sd the standard deviation of a cell's distances, as
    scArches' `weighted_knn_transfer` has them; uncertainty is 1 − the winner's weight.
    `reference` (labelled cells × latent), `labels` (cells), `query` (cells × latent).
    """
    n_neighbors = min(n_neighbors, len(reference))
    distances, at = NearestNeighbors(n_neighbors=n_neighbors).fit(reference).kneighbors(query)
    bandwidth = np.square(2 / np.maximum(distances.std(1, keepdims=True), EPS))
    scaled = distances / bandwidth
    weights = np.exp(-(scaled - scaled.min(1, keepdims=True)))
    weights /= weights.sum(1, keepdims=True)
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    probabilities = np.zeros((len(query), len(names)))
    rows = np.repeat(np.arange(len(query)), n_neighbors)
    np.add.at(probabilities, (rows, codes[at].ravel()), weights.ravel())
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
