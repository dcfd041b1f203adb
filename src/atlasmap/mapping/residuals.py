"""Residual score: how badly the decoder explains a cell and its neighbours (Pearson residuals).

The residuals of one cell are mostly noise. Cells of a type that the reference lacks deviate in the
same genes and direction, so the mean residual over a cell's neighbours in count space keeps this
deviation. Noise is averaged out, and the mean of the batch (chemistry) is subtracted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

from atlasmap.models.random import keyed_seed
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import vae_of
from atlasmap.training.cells import Cells

N_NEIGHBORS = 40
SHARE = 8  # at most 1 / SHARE of a batch's cells are neighbours of a cell
N_COMPONENTS = 30
MAX_ANCHORS = 20_000  # cells whose residuals are held in memory at once
N_NEAREST = 15  # reference cells that replace a missing label
CHUNK = 512
CLIP = 10.0  # standard deviations; limits the influence of a single count


@torch.no_grad()
def residuals(
    model: Scvi | Scanvi, cells: Cells, index: np.ndarray, latent: np.ndarray
) -> np.ndarray:
    """Pearson residuals (cells × genes) of cells `index`, decoded at `latent` (cells × latent)."""
    scvi, out = vae_of(model), []
    for start in range(0, len(index), CHUNK):
        at = slice(start, start + CHUNK)
        chunk = cells.minibatch(index[at])
        library = scvi.inference(chunk, None).library
        z = torch.as_tensor(latent[at], device=cells.device)
        px = scvi.generative(z, library, chunk, None)
        scaled = (chunk.x - px.mean) / px.variance.sqrt()
        out.append(scaled.clamp(-CLIP, CLIP).cpu().numpy())
    return np.concatenate(out)


def log_normalised(counts: sparse.csr_matrix, median: float) -> sparse.csr_matrix:
    """log1p of counts scaled to a library size of `median`."""
    depth = np.asarray(counts.sum(1)).ravel()
    scale = sparse.diags_array(median / np.maximum(depth, 1))
    logs = (scale @ counts).tocsr().astype(np.float32)
    logs.data = np.log1p(logs.data)
    return logs


def count_space(cells: Cells, index: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """SVD components (cells × components) of the log-normalised counts of the cells in `index`.

    Independent of any model. The SVD is fitted on the `anchors` (positions in `index`).
    """
    counts = cells.counts.csr(index[anchors])
    median = float(np.median(np.asarray(counts.sum(1))))
    logs = log_normalised(counts, median)
    n = min(N_COMPONENTS, min(logs.shape) - 1)
    if n < 1:
        return logs.toarray()
    svd = TruncatedSVD(n, random_state=0)
    space = svd.fit_transform(logs)
    if len(anchors) == len(index):
        return space
    parts = np.array_split(index, -(-len(index) // MAX_ANCHORS))
    logs = (log_normalised(cells.counts.csr(part), median) for part in parts)
    return np.concatenate([svd.transform(part) for part in logs])


@dataclass(frozen=True)
class Pooling:
    """Neighbours over which the residuals of each cell of a batch are averaged.

    `anchors`: positions in the batch of the cells that can be neighbours; `at`: neighbours of each
    cell (cells × neighbours), as positions in `anchors`.
    """

    anchors: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, cells: Cells, index: np.ndarray) -> "Pooling":
        """Find the neighbours in count space of the cells of a batch (`index`).

        The nearest anchor, which is the cell itself if it is an anchor, is left out.
        """
        n_cells = len(index)
        n_neighbors = max(1, min(N_NEIGHBORS, n_cells // SHARE))
        anchors = np.arange(n_cells)
        if n_cells > MAX_ANCHORS:
            rng = np.random.default_rng(keyed_seed(0, "misfit", n_cells))
            anchors = np.sort(rng.choice(anchors, MAX_ANCHORS, replace=False))
        space = count_space(cells, index, anchors)
        search = NearestNeighbors(n_neighbors=min(n_neighbors + 1, len(anchors)))
        at = search.fit(space[anchors]).kneighbors(space, return_distance=False)
        return cls(anchors, at[:, 1:])

    def energy(self, of_anchors: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Residual score of the cells at positions `cells` of the batch.

        Mean square of the pooled residual times the number of neighbours, relative to the mean
        square of single residuals: 1 if the neighbours' residuals are independent.
        `of_anchors`: residuals (anchors × genes).
        """
        of_anchors = of_anchors - of_anchors.mean(0)
        single = float(np.square(of_anchors).mean())
        out = np.empty(len(cells), np.float32)
        for start in range(0, len(cells), CHUNK):
            at = self.at[cells[start : start + CHUNK]]
            n_cells, n_neighbors = at.shape
            share = np.full(at.size, 1 / n_neighbors, np.float32)
            ends = n_neighbors * np.arange(n_cells + 1)
            mean = sparse.csr_matrix((share, at.ravel(), ends), (n_cells, len(of_anchors)))
            pooled = mean @ of_anchors  # of_anchors[at] would need n_neighbors times the memory
            out[start : start + CHUNK] = np.square(pooled).mean(1) * n_neighbors / single
        return out


def residual_score(model: Scvi | Scanvi, cells: Cells, latent: np.ndarray) -> np.ndarray:
    """Residual score of every cell (cells), with neighbours in the same batch.

    `latent` (cells × latent): positions that are decoded, the posterior means.
    """
    out = np.empty(len(cells), np.float32)
    for index in by_batch(cells):
        pooling = Pooling.of(cells, index)
        at = index[pooling.anchors]
        of_anchors = residuals(model, cells, at, latent[at])
        out[index] = pooling.energy(of_anchors, np.arange(len(index)))
    return out


def residual_score_if_missing(
    model: Scvi | Scanvi, cells: Cells, latent: np.ndarray, labels: np.ndarray,
    reference: np.ndarray, reference_labels: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Estimate the residual score of each cell if the reference lacked its label.

    Cells of a label are decoded at the mean of the nearest `reference` cells (latent) with other
    labels, without retraining. NaN if the reference has no other label.
    """
    out = np.empty(len(cells), np.float32)
    for index in by_batch(cells):
        pooling = Pooling.of(cells, index)
        at = index[pooling.anchors]
        of_anchors = residuals(model, cells, at, latent[at])
        for label in np.unique(labels[index]):
            among = np.flatnonzero(labels[at] == label)
            others = reference[reference_labels != label]
            if not len(others):
                out[index[labels[index] == label]] = np.nan
                continue
            moved = of_anchors.copy()
            if len(among):
                elsewhere = nearest_mean(others, latent[at[among]])
                moved[among] = residuals(model, cells, at[among], elsewhere)
            own = np.flatnonzero(labels[index] == label)
            out[index[own]] = pooling.energy(moved, own)
    return out


def nearest_mean(reference: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """Mean of the N_NEAREST `reference` positions nearest to each of `latent` (cells × latent)."""
    n_neighbors = min(N_NEAREST, len(reference))
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(reference)
    return reference[search.kneighbors(latent, return_distance=False)].mean(1)


def by_batch(cells: Cells) -> Iterator[np.ndarray]:
    """Yield the indices of the cells of each batch."""
    codes = cells.codes[:, 0].cpu().numpy()
    for code in np.unique(codes):
        yield np.flatnonzero(codes == code)
