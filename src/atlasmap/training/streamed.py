"""Counts that stay on disk: a window of cells is held in memory, and cells are shuffled by blocks.

Blocks are runs of neighbouring cells. An epoch takes the blocks in random order and shuffles the
cells of as many blocks as fit into a window. A minibatch then has cells of hundreds of blocks, and
the file is read in long pieces (the scheme of scDataset: D'Ascenzo & Cultrera di Montesano 2026,
PMLR 306).
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

WINDOW = 2**26  # bytes of counts held in memory
BLOCKS = 256  # per window; the cells of a block are neighbours on disk
LEAST = 16  # cells per block, at least
NEAR = 32  # gaps up to this many cells between wanted ones are read rather than skipped


class StreamedCounts:
    """The interface of `Counts` for a CSR matrix on disk (anndata's backed sparse data set)."""

    streamed = True

    def __init__(self, matrix, device: torch.device):
        self.device, (self.n_cells, self.n_genes) = device, matrix.shape
        # Read from the group, as each slice of `matrix` costs milliseconds.
        self.indptr, self.stored = matrix.group["indptr"][:], matrix.group
        check_pointers(self.indptr, self.n_cells, n_stored(matrix), self.n_genes)
        cells = WINDOW * self.n_cells // (BYTES * max(n_stored(matrix), 1))
        self.block = max(LEAST, cells // BLOCKS)
        self.window = max(self.block, cells)
        self.hold(np.empty(0, np.int64))

    def some(self, run: np.ndarray) -> sparse.csr_matrix:
        """Counts of the cells in `run` (sorted), read in one piece with all cells between them."""
        first, last = run[0], run[-1] + 1
        at = slice(self.indptr[first], self.indptr[last])
        parts = [self.stored[name][at] for name in ("data", "indices")]
        check_range(parts[1], self.n_genes)
        starts = self.indptr[first : last + 1] - self.indptr[first]
        read = sparse.csr_matrix((*parts, starts), (last - first, self.n_genes))
        return read if len(run) == last - first else read[run - first]

    def csr(self, index: np.ndarray) -> sparse.csr_matrix:
        """Counts of the cells in `index` (cells × genes) as scipy's CSR, read from disk."""
        at, place = np.unique(index, return_inverse=True)
        if not len(at):
            return sparse.csr_matrix((0, self.n_genes), dtype=np.float32)
        runs = np.split(at, np.flatnonzero(np.diff(at) > NEAR) + 1)
        parts = [self.some(run) for run in runs]
        read = sparse.vstack(parts, format="csr") if len(parts) > 1 else parts[0]
        return read if np.array_equal(place, np.arange(len(at))) else read[place]

    def hold(self, index: np.ndarray) -> None:
        """Read the cells in `index` (sorted, unique) into memory, in place of those held before."""
        self.at, self.held = index, None  # frees the memory before reading
        self.held = Counts.of(self.csr(index), self.device)

    def rows(self, index: Tensor) -> ops.Counts:
        """Counts of the cells in `index`; read from disk if not all of them are held in memory."""
        wanted = index.cpu().numpy()
        place = np.searchsorted(self.at, wanted)
        is_held = place < len(self.at)
        is_held[is_held] = self.at[place[is_held]] == wanted[is_held]
        if not is_held.all():
            read = Counts.of(self.csr(wanted), self.device)
            return read.rows(torch.arange(len(wanted), device=self.device))
        return self.held.rows(torch.as_tensor(place, device=self.device))

    def ahead(self, steps: Sequence) -> Iterator:
        """Iterate over `steps` (tuples of cell indices or None), reading many steps at once."""
        size = max(1, self.window // len(steps[0][0])) if steps else 1
        for first in range(0, len(steps), size):
            part = steps[first : first + size]
            told = [cells for step in part for cells in step if cells is not None]
            self.hold(np.unique(np.concatenate(told)))
            yield from part

    def shuffled(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`cells` in random order by blocks, so that each window is read in long pieces."""
        cells = np.sort(cells)
        ends = np.searchsorted(cells, np.arange(self.block, self.n_cells, self.block))
        blocks = [block for block in np.split(cells, ends) if len(block)]
        mixed = np.concatenate([cells[:0], *(blocks[k] for k in rng.permutation(len(blocks)))])
        windows = np.split(mixed, np.arange(self.window, len(mixed), self.window))
        return np.concatenate([rng.permutation(window) for window in windows])

    def arranged(self, cells: np.ndarray) -> np.ndarray:
        """`cells` in the order in which they are read fastest."""
        return np.sort(cells)


def counts_of(matrix, device: torch.device) -> Counts | StreamedCounts:
    """Counts of a CSR matrix: in memory for scipy's, else streamed from disk."""
    return Counts.of(matrix, device) if sparse.issparse(matrix) else StreamedCounts(matrix, device)
