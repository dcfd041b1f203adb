"""Novelty: far from every reference cell, or poorly explained by the decoder.

Both scores are taken relative to the median of the cell's own batch, so that a chemistry which the
whole batch shares makes nobody novel. Cut-offs come from reference cells whose batch was held out,
and the balance between the two scores from leaving out one label at a time. What this cannot see, a
batch that is strange as a whole, is told by the median itself.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

N_NEIGHBORS = 15
# Of the false positives, that the distance may make; the most balanced first.
SHARES = (0.5, 0.25, 0.75, 0.0, 1.0)


@dataclass(frozen=True)
class CutOffs:
    """Relative distance and misfit at which a cell is novel; None: that score is not there."""

    distance: float | None
    misfit: float | None

    def novelty(self, distance: np.ndarray, misfit: np.ndarray | None) -> np.ndarray:
        """The larger of the scores over their cut-offs (cells): novel above 1."""
        parts = []
        if self.distance is not None:
            parts.append(distance / self.distance)
        if self.misfit is not None and misfit is not None:
            parts.append(misfit / self.misfit)
        return np.max(parts, 0) if parts else np.zeros(len(distance))


def local_distance(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Mean distance of `query` cells to their nearest `reference` cells (both cells × latent), over
    the distance that these have among themselves: about 1 inside the reference."""
    n_neighbors = min(N_NEIGHBORS, len(reference) - 1)
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(reference)
    distances, at = search.kneighbors(query)
    asked, place = np.unique(at, return_inverse=True)
    among = search.kneighbors(reference[asked], n_neighbors + 1)[0][:, 1:].mean(1)
    return distances.mean(1) / np.maximum(among[place.reshape(at.shape)].mean(1), 1e-12)


def batch_medians(values: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """The median of each cell's batch (cells)."""
    out = np.empty(len(values))
    for batch in np.unique(batches):
        own = batches == batch
        out[own] = max(float(np.median(values[own])), 1e-12)
    return out


@dataclass(frozen=True)
class BatchFit:
    """Median distance of a held-out batch (the farthest one's), and of a batch of nothing but cells
    of a label that the reference lacks (the median of labels)."""

    typical: float
    missing: float

    def strangeness(self, distance: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Of each cell's batch (cells): 0 no farther than a held-out batch, 1 as far as cells of a
        label that the reference lacks."""
        beyond = batch_medians(distance, batches) - self.typical
        return np.maximum(beyond / (self.missing - self.typical), 0)


def fit_batches(
    distance: np.ndarray, batches: np.ndarray, if_missing: np.ndarray, labels: np.ndarray
) -> BatchFit | None:
    """From held-out cells: distances as they are and without the cell's own label (of those that
    `labels` names); None where missing labels are no farther."""
    typical = float(batch_medians(distance, batches).max())
    far = [np.median(if_missing[labels == label]) for label in np.unique(labels)]
    missing = float(np.nanmedian(far)) if np.isfinite(far).any() else typical
    return BatchFit(typical, missing) if missing > typical else None


@dataclass(frozen=True)
class HeldOut:
    """Scores of held-out cells, each relative to its batch: `distance`, `misfit` (None without
    counts) as they are, and as they would be if the reference lacked the cell's own label."""

    labels: np.ndarray
    batches: np.ndarray
    distance: np.ndarray
    distance_if_missing: np.ndarray
    misfit: np.ndarray | None
    misfit_if_missing: np.ndarray | None


def distances_if_missing(
    reference: np.ndarray, reference_labels: np.ndarray, query: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """`local_distance` of each query cell to the reference without the cell's own label."""
    out = np.empty(len(query))
    for label in np.unique(labels):
        own, others = labels == label, reference[reference_labels != label]
        out[own] = local_distance(others, query[own]) if len(others) > 1 else np.nan
    return out


def typical_quantile(values: np.ndarray, batches: np.ndarray, q: float) -> float:
    """The quantile of each batch, and of these the value that nine batches in ten stay below: a new
    batch may be any."""
    each = [np.quantile(values[batches == batch], q) for batch in np.unique(batches)]
    return float(np.quantile(each, 0.9))


def cut_offs(held: HeldOut, share: float, false_novel: float) -> CutOffs:
    """Cut-offs under which `false_novel` of the held-out cells are novel, `share` of them by
    distance alone."""
    if held.misfit is None or share == 1:
        return CutOffs(typical_quantile(held.distance, held.batches, 1 - false_novel), None)
    if share == 0:
        return CutOffs(None, typical_quantile(held.misfit, held.batches, 1 - false_novel))
    both = CutOffs(
        typical_quantile(held.distance, held.batches, 1 - share * false_novel),
        typical_quantile(held.misfit, held.batches, 1 - (1 - share) * false_novel),
    )
    # some cells are over both: bring the share that is novel back to what was asked for
    novelty = both.novelty(held.distance, held.misfit)
    factor = typical_quantile(novelty, held.batches, 1 - false_novel)
    return CutOffs(both.distance * factor, both.misfit * factor)


def left_out(held: HeldOut, cuts: CutOffs, min_cells: int) -> list[dict]:
    """What leaving out each label (of enough cells) would show: label, n, detected, auroc."""
    known = cuts.novelty(held.distance, held.misfit)
    novel = cuts.novelty(held.distance_if_missing, held.misfit_if_missing)
    rows = []
    for label in np.unique(held.labels):
        own = (held.labels == label) & np.isfinite(novel)
        if own.sum() < min_cells or not (held.labels != label).any():
            continue
        others = known[held.labels != label]
        truth = np.repeat([True, False], [own.sum(), len(others)])
        scores = np.concatenate([novel[own], others])
        rows.append(
            {
                "label": str(label),
                "n": int(own.sum()),
                "detected": float((novel[own] > 1).mean()),
                "auroc": float(roc_auc_score(truth, scores)),
            }
        )
    return rows


def fit_cut_offs(held: HeldOut, false_novel: float, min_cells: int) -> tuple[CutOffs, list[dict]]:
    """The most balanced cut-offs that detect left-out labels about as well as any (within a
    standard error over labels; Breiman et al. 1984), and what they detect."""
    tried = []
    for share in SHARES if held.misfit is not None else (1.0,):
        cuts = cut_offs(held, share, false_novel)
        tried.append((cuts, left_out(held, cuts, min_cells)))
    detected = [np.array([row["detected"] for row in found] or [0.0]) for _, found in tried]
    best = max(detected, key=np.mean)
    enough = best.mean() - best.std() / np.sqrt(len(best))
    return next(one for one, d in zip(tried, detected, strict=True) if d.mean() >= enough)
