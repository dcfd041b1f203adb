"""Does a reference fit a batch? How far its cells are, as a whole, from the reference's in the
latent space: beside held-out batches, and beside labels that the reference lacks."""

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

N_NEIGHBORS = 15


def local_distance(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Mean distance of `query` cells to their nearest `reference` cells (both cells × latent), over
    the distance that these have among themselves: about 1 inside the reference."""
    n_neighbors = min(N_NEIGHBORS, len(reference) - 1)
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(reference)
    distances, at = search.kneighbors(query)
    asked, place = np.unique(at, return_inverse=True)
    among = search.kneighbors(reference[asked], n_neighbors + 1)[0][:, 1:].mean(1)
    return distances.mean(1) / np.maximum(among[place.reshape(at.shape)].mean(1), 1e-12)


def distances_if_missing(
    reference: np.ndarray, reference_labels: np.ndarray, query: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """`local_distance` of each query cell to the reference without the cell's own label."""
    out = np.empty(len(query))
    for label in np.unique(labels):
        own, others = labels == label, reference[reference_labels != label]
        out[own] = local_distance(others, query[own]) if len(others) > 1 else np.nan
    return out


@dataclass(frozen=True)
class BatchFit:
    """typical: largest median distance among held-out batches; missing: median over labels of the
    median distance when that label is left out of the reference."""

    typical: float
    missing: float

    def batch_shift(self, distance: np.ndarray) -> float:
        """Of a batch whose cells are so far: 0 no farther than a held-out batch, 1 as far as cells
        of a label that the reference lacks."""
        beyond = float(np.median(distance)) - self.typical
        return max(beyond / (self.missing - self.typical), 0.0)


def fit_batches(
    distances: list[np.ndarray], if_missing: np.ndarray, labels: np.ndarray
) -> BatchFit | None:
    """From the distances of each held-out batch, and those of labelled cells (all batches) without
    the cell's own label; None where missing labels are no farther."""
    typical = max(float(np.median(one)) for one in distances)
    far = [np.median(if_missing[labels == label]) for label in np.unique(labels)]
    missing = float(np.nanmedian(far)) if np.isfinite(far).any() else typical
    return BatchFit(typical, missing) if missing > typical else None
