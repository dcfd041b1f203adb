"""Cells as tensors: counts stay sparse (CSR) until a minibatch is asked for."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from atlasmap.models.vae import Minibatch


@dataclass(frozen=True)
class Counts:
    """A CSR matrix of counts (cells × genes) on one device."""

    indptr: Tensor
    indices: Tensor
    data: Tensor
    n_genes: int

    @classmethod
    def of(cls, matrix: sparse.csr_matrix, device: torch.device) -> "Counts":
        """From scipy's CSR; values become float32."""
        return cls(
            torch.as_tensor(matrix.indptr.astype(np.int64), device=device),
            torch.as_tensor(matrix.indices.astype(np.int64), device=device),
            torch.as_tensor(matrix.data.astype(np.float32), device=device),
            matrix.shape[1],
        )

    def rows(self, index: Tensor) -> Tensor:
        """Dense counts (cells × genes) of the cells in `index`."""
        starts = self.indptr[index]
        lengths = self.indptr[index + 1] - starts
        ends = lengths.cumsum(0)
        row = torch.repeat_interleave(torch.arange(len(index), device=index.device), lengths)
        at = torch.arange(len(row), device=index.device) + (starts - ends + lengths)[row]
        dense = torch.zeros(len(index) * self.n_genes, device=index.device)
        dense[row * self.n_genes + self.indices[at]] = self.data[at]
        return dense.view(len(index), self.n_genes)

    def csr(self, index: np.ndarray) -> sparse.csr_matrix:
        """Sparse counts (cells × genes) of the cells in `index`, as scipy has them."""
        parts = (part.cpu().numpy() for part in (self.data, self.indices, self.indptr))
        return sparse.csr_matrix(tuple(parts), (len(self.indptr) - 1, self.n_genes))[index]


@dataclass(frozen=True)
class Cells:
    """All cells a model is trained on or asked about.

    `codes` cells × categorical covariates (batch first), `continuous` cells × covariates or None,
    `labels` cells (−1: unlabelled), `names` cell ids on the CPU, for error messages, `proteins`
    counts (cells × proteins; NaN: not measured) or None.
    """

    counts: Counts
    codes: Tensor
    continuous: Tensor | None
    labels: Tensor
    names: np.ndarray
    proteins: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.labels.device

    def minibatch(self, index: np.ndarray) -> Minibatch:
        """The cells in `index`, dense."""
        at = torch.as_tensor(index, device=self.device)
        continuous = None if self.continuous is None else self.continuous[at]
        cells = self.counts.rows(at), tuple(self.codes[at].T), continuous, self.labels[at]
        if self.proteins is None:
            return Minibatch(*cells)
        proteins = self.proteins[at]
        measured = ~proteins.isnan()
        return Minibatch(*cells, torch.where(measured, proteins, 0.0), measured)

    def taken(self, index: np.ndarray) -> "Cells":
        """The cells in `index` alone."""
        at = torch.as_tensor(index, device=self.device)
        continuous = None if self.continuous is None else self.continuous[at]
        counts = Counts.of(self.counts.csr(index), self.device)
        proteins = None if self.proteins is None else self.proteins[at]
        return Cells(
            counts, self.codes[at], continuous, self.labels[at], self.names[index], proteins
        )

    def in_order(self, size: int):
        """Minibatches of all cells in their order, for inference."""
        for start in range(0, len(self), size):
            yield self.minibatch(np.arange(start, min(start + size, len(self))))
