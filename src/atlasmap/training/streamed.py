"""Counts that stay on disk: some cells at a time are held in memory, and shuffled by blocks.

An epoch goes through the blocks in random order. The cells of as many blocks as fit into a window
are mixed at random, so that a minibatch has cells of hundreds of blocks, and the file is read in
long pieces (the scheme of scDataset: D'Ascenzo & Cultrera di Montesano 2026, PMLR 306).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from atlasmap.data.blocks import BYTES, n_stored
from atlasmap.data.structure import check_pointers, check_range
from atlasmap.models import ops
from atlasmap.training.cells import Counts

WINDOW = 2**26  # bytes of counts that are held at a time
BLOCKS = 256  # that a window is mixed from: cells that lie together on disk come together
LEAST = 16  # cells of a block
NEAR = 32  # cells between two wanted ones that are read rather than skipped


class StreamedCounts:
    """What `Counts` is, of a CSR matrix on disk (anndata's backed sparse data set)."""

    streamed = True

    def __init__(self, matrix, device: torch.device):
        self.device, (self.n_cells, self.n_genes) = device, matrix.shape
        # Not through `matrix`, whose every slice costs milliseconds.
        self.indptr, self.stored = matrix.group["indptr"][:], matrix.group
        check_pointers(self.indptr, self.n_cells, n_stored(matrix), self.n_genes)
        cells = WINDOW * self.n_cells // (BYTES * max(n_stored(matrix), 1))
        self.block = max(LEAST, cells // BLOCKS)
        self.window = max(self.block, cells)
        self.hold(np.empty(0, np.int64))

    def some(self, run: np.ndarray) -> sparse.csr_matrix:
        """Sparse counts of the cells in `run` (sorted), read with all that lies between them."""
        first, last = run[0], run[-1] + 1
        at = slice(self.indptr[first], self.indptr[last])
        parts = [self.stored[name][at] for name in ("data", "indices")]
        check_range(parts[1], self.n_genes)
        starts = self.indptr[first : last + 1] - self.indptr[first]
        read = sparse.csr_matrix((*parts, starts), (last - first, self.n_genes))
        return read if len(run) == last - first else read[run - first]

    def csr(self, index: np.ndarray) -> sparse.csr_matrix:
        """Sparse counts (cells × genes) of the cells in `index`, read from disk."""
        at, place = np.unique(index, return_inverse=True)
        if not len(at):
            return sparse.csr_matrix((0, self.n_genes), dtype=np.float32)
        runs = np.split(at, np.flatnonzero(np.diff(at) > NEAR) + 1)
        parts = [self.some(run) for run in runs]
        read = sparse.vstack(parts, format="csr") if len(parts) > 1 else parts[0]
        return read if np.array_equal(place, np.arange(len(at))) else read[place]

    def hold(self, index: np.ndarray) -> None:
        """Keep the cells in `index` in memory, and no others."""
        self.at, self.held = index, None  # what was held goes first
        self.held = Counts.of(self.csr(index), self.device)

    def rows(self, index: Tensor) -> ops.Counts:
        """Counts of the cells in `index`."""
        wanted = index.cpu().numpy()
        place = np.searchsorted(self.at, wanted)
        is_held = place < len(self.at)
        is_held[is_held] = self.at[place[is_held]] == wanted[is_held]
        if not is_held.all():
            read = Counts.of(self.csr(wanted), self.device)
            return read.rows(torch.arange(len(wanted), device=self.device))
        return self.held.rows(torch.as_tensor(place, device=self.device))

    def ahead(self, steps: Sequence) -> Iterator:
        """`steps` (tuples of cells, or None) one by one, with the cells of many read at once."""
        size = max(1, self.window // len(steps[0][0])) if steps else 1
        for first in range(0, len(steps), size):
            part = steps[first : first + size]
            told = [cells for step in part for cells in step if cells is not None]
            self.hold(np.unique(np.concatenate(told)))
            yield from part

    def shuffled(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`cells` in a random order in which neighbours on disk come near each other."""
        cells = np.sort(cells)
        ends = np.searchsorted(cells, np.arange(self.block, self.n_cells, self.block))
        blocks = [block for block in np.split(cells, ends) if len(block)]
        mixed = np.concatenate([cells[:0], *(blocks[k] for k in rng.permutation(len(blocks)))])
        windows = np.split(mixed, np.arange(self.window, len(mixed), self.window))
        return np.concatenate([rng.permutation(window) for window in windows])

    def arranged(self, cells: np.ndarray) -> np.ndarray:
        """`cells` in the order in which they are best read."""
        return np.sort(cells)


def counts_of(matrix, device: torch.device) -> Counts | StreamedCounts:
    """Counts of a CSR matrix, in memory if that is where it is."""
    return Counts.of(matrix, device) if sparse.issparse(matrix) else StreamedCounts(matrix, device)
