"""Does a reference fit a batch? Its distance to the reference in latent space is compared with that
of held-out batches, and with that of cells whose label the reference lacks."""

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

N_NEIGHBORS = 15


def local_distance(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Mean distance of each `query` cell to its nearest `reference` cells (both cells × latent),
    divided by the mean distance of these to their own nearest reference cells.

    About 1 inside the reference.
    """
    n_neighbors = min(N_NEIGHBORS, len(reference) - 1)
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(reference)
    distances, at = search.kneighbors(query)
    asked, place = np.unique(at, return_inverse=True)
    among = search.kneighbors(reference[asked], n_neighbors + 1)[0][:, 1:].mean(1)
    return distances.mean(1) / np.maximum(among[place.reshape(at.shape)].mean(1), 1e-12)


def distances_if_missing(
    reference: np.ndarray, reference_labels: np.ndarray, query: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """`local_distance` of each query cell to the reference without the cells that have its label;
    NaN if fewer than two cells remain."""
    out = np.empty(len(query))
    for label in np.unique(labels):
        own, others = labels == label, reference[reference_labels != label]
        out[own] = local_distance(others, query[own]) if len(others) > 1 else np.nan
    return out


@dataclass(frozen=True)
class BatchFit:
    """Scale of the batch shift, in units of `local_distance`.

    typical: largest median distance of a held-out batch; missing: median over labels of the median
    distance of the label's cells if it is left out of the reference.
    """

    typical: float
    missing: float

    def batch_shift(self, distance: np.ndarray) -> float:
        """Batch shift of a batch from the `local_distance` of its cells: 0 if it is no farther than
        a held-out batch, 1 if it is as far as cells of a label that the reference lacks."""
        beyond = float(np.median(distance)) - self.typical
        return max(beyond / (self.missing - self.typical), 0.0)


def fit_batches(
    distances: list[np.ndarray], if_missing: np.ndarray, labels: np.ndarray
) -> BatchFit | None:
    """Fit the scale of the batch shift; None if missing labels are no farther than batches.

    `distances`: `local_distance` of the cells of each held-out batch; `if_missing`:
    `distances_if_missing` of the labelled cells of all batches, and their `labels`.
    """
    typical = max(float(np.median(one)) for one in distances)
    far = [np.median(if_missing[labels == label]) for label in np.unique(labels)]
    missing = float(np.nanmedian(far)) if np.isfinite(far).any() else typical
    return BatchFit(typical, missing) if missing > typical else None
