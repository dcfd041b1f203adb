"""Sparse counts of a minibatch: `ops.rows` and `ops.product` (kernels: `sparse_kernels`)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atlasmap.models.compiled import sparse_kernels as kernels
from atlasmap.models.compiled.threads import side_by_side

DENSE = 0.2  # fraction of non-zero entries from which a dense product is faster


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix (cells × genes), as CSR: the entries of cell c are starts[c] to
    starts[c + 1] (exclusive) of `gene` (int64) and `value`. `sums`: total counts per cell
    (cells × 1); `log1p` and division leave them unchanged."""

    starts: Tensor
    gene: Tensor
    value: Tensor
    n_genes: int
    sums: Tensor

    @classmethod
    def of(cls, x: "Tensor | SparseRows") -> "SparseRows":
        """From dense counts (cells × genes); sparse ones are returned as they are."""
        if isinstance(x, SparseRows):
            return x
        cell, gene = x.nonzero(as_tuple=True)
        ends = torch.bincount(cell, minlength=len(x)).cumsum(0)
        return cls(F.pad(ends, (1, 0)), gene, x[cell, gene], x.shape[1], x.sum(1, keepdim=True))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """cells × genes."""
        return len(self), self.n_genes

    def __getitem__(self, cells: slice) -> "SparseRows":
        """The rows of these cells."""
        first, last, _ = cells.indices(len(self))
        starts = self.starts[first : last + 1]
        at = slice(int(starts[0]), int(starts[-1]))
        own = {"gene": self.gene[at], "value": self.value[at], "sums": self.sums[cells]}
        return replace(self, starts=starts - starts[0], **own)

    def sum(self, dim: int, keepdim: bool) -> Tensor:
        """Total counts per cell (cells × 1); the only sum supported is sum(1, keepdim=True)."""
        return self.sums

    def log1p(self) -> "SparseRows":
        """ln(1 + x), elementwise."""
        return replace(self, value=torch.log1p(self.value))

    def __truediv__(self, by: Tensor) -> "SparseRows":
        """Each cell's entries divided by its value in `by` (cells × 1)."""
        cell = torch.arange(len(self)).repeat_interleave(self.starts.diff())
        return replace(self, value=self.value / by[cell, 0])

    def dense(self) -> Tensor:
        """The matrix as a dense tensor (cells × genes)."""
        out = self.value.new_zeros(self.shape)
        side_by_side(kernels.spread, len(out), self.starts, self.gene, self.value, out)
        return out


class SparseProduct(torch.autograd.Function):
    """W x + b for sparse `x` (cells × genes); `weight` is outputs × genes."""

    @staticmethod
    def forward(ctx, weight, bias, x):
        told = x.starts, x.gene, x.value
        out = weight.new_empty(len(x), len(weight))
        by_gene = weight.detach().t().contiguous()
        side_by_side(kernels.sparse_product, len(out), *told, by_gene, bias, out)
        ctx.save_for_backward(*told)
        ctx.n_genes = weight.shape[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        if not ctx.needs_input_grad[0]:
            return None, upstream.sum(0), None
        of_weight = upstream.new_empty(ctx.n_genes, upstream.shape[1])
        told = *ctx.saved_tensors, upstream.contiguous(), of_weight
        side_by_side(kernels.sparse_product_grad, len(of_weight), *told)
        return of_weight.t(), upstream.sum(0), None


def product(x: SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
    """As `ops.product`."""
    if len(x.value) < DENSE * x.n_genes * len(x):
        return SparseProduct.apply(weight, bias, x)
    return F.linear(x.dense(), weight, bias)


def rows(indptr: Tensor, indices: Tensor, data: Tensor, n_genes: int, index: Tensor) -> SparseRows:
    """As `ops.rows`."""
    starts = F.pad((indptr[index + 1] - indptr[index]).cumsum(0), (1, 0))
    n, sums = int(starts[-1]), data.new_zeros(len(index), 1)
    out = SparseRows(starts, starts.new_empty(n), data.new_empty(n), n_genes, sums)
    given = indptr, indices, data, index, starts, out.gene, out.value, sums
    side_by_side(kernels.take_rows, len(index), *given)
    return out
