"""Cells as tensors; counts stay sparse (CSR) until a minibatch is made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from atlasmap.models import ops
from atlasmap.models.vae import Minibatch


@dataclass(frozen=True)
class Counts:
    """A CSR matrix of counts (cells × genes) on one device."""

    indptr: Tensor
    indices: Tensor
    data: Tensor
    n_genes: int
    streamed: ClassVar[bool] = False

    @classmethod
    def of(cls, matrix: sparse.csr_matrix, device: torch.device) -> "Counts":
        """From scipy's CSR. Values become float32, explicit zeros are removed, and memory is shared
        with `matrix` where possible."""
        if np.count_nonzero(matrix.data) < matrix.nnz:
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        parts = {"indptr": np.int64, "indices": np.int32, "data": np.float32}
        arrays = (getattr(matrix, name).astype(kind, copy=False) for name, kind in parts.items())
        return cls(*(torch.as_tensor(x, device=device) for x in arrays), matrix.shape[1])

    def rows(self, index: Tensor) -> ops.Counts:
        """Counts of the cells in `index`."""
        return ops.rows(self.indptr, self.indices, self.data, self.n_genes, index)

    def csr(self, index: np.ndarray) -> sparse.csr_matrix:
        """Counts of the cells in `index` (cells × genes) as scipy's CSR."""
        parts = (part.cpu().numpy() for part in (self.data, self.indices, self.indptr))
        return sparse.csr_matrix(tuple(parts), (len(self.indptr) - 1, self.n_genes))[index]

    def ahead(self, steps: Sequence) -> Iterator:
        """Iterate over `steps` (tuples of cell indices or None); all counts are in memory."""
        return iter(steps)

    def shuffled(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`cells` in random order."""
        return rng.permutation(cells)

    def arranged(self, cells: np.ndarray) -> np.ndarray:
        """`cells` in the order in which they are read fastest."""
        return cells


@dataclass(frozen=True)
class Cells:
    """All cells for a training or an inference.

    `codes`: cells × categorical covariates (batch first); `continuous`: cells × covariates, or
    None; `labels`: label codes (cells; −1: unlabelled; codes from the number of labels on:
    ancestors of labels in the label tree); `names`: cell ids on the CPU, for error messages;
    `proteins`: counts (cells × proteins; NaN: not measured), or None; `product`: cached W x + b of
    the encoder's first layer (cells × width) while W is frozen, or None; `may_be`: the labels that
    a cell may have, per label code (codes, the last for −1, × labels; bool), or None if no cell is
    labelled with an ancestor.
    """

    counts: Counts
    codes: Tensor
    continuous: Tensor | None
    labels: Tensor
    names: np.ndarray
    proteins: Tensor | None = None
    product: Tensor | None = None
    may_be: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.labels.device

    def minibatch(self, index: np.ndarray) -> Minibatch:
        """The minibatch of the cells in `index`."""
        at = torch.as_tensor(index, device=self.device)
        continuous = None if self.continuous is None else self.continuous[at]
        cells = self.counts.rows(at), tuple(self.codes[at].T), continuous, self.labels[at]
        others = {
            "product": None if self.product is None else self.product[at],
            "may_be": None if self.may_be is None else self.may_be[self.labels[at]],
        }
        if self.proteins is None:
            return Minibatch.of(*cells, **others)
        proteins = self.proteins[at]
        measured = ~proteins.isnan()
        return Minibatch.of(*cells, torch.where(measured, proteins, 0.0), measured, **others)

    def taken(self, index: np.ndarray) -> "Cells":
        """A copy with only the cells in `index`, with counts in memory."""
        at = torch.as_tensor(index, device=self.device)
        continuous = None if self.continuous is None else self.continuous[at]
        counts = Counts.of(self.counts.csr(index), self.device)
        proteins, product = (
            None if part is None else part[at] for part in (self.proteins, self.product)
        )
        labels, names = self.labels[at], self.names[index]
        own = counts, self.codes[at], continuous, labels, names, proteins, product
        return Cells(*own, self.may_be)

    def in_order(self, size: int):
        """Iterate over minibatches of `size` cells in their order, for inference."""
        parts = (range(start, min(start + size, len(self))) for start in range(0, len(self), size))
        for (index,) in self.counts.ahead([(np.array(part),) for part in parts]):
            yield self.minibatch(index)
