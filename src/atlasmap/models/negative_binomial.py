"""The negative binomial of a minibatch, from the decoder's logits, with its own gradient.

The same numbers as `likelihoods`, summed over genes. Of the dense matrix (cells × genes) one
exponential and one logarithm an entry are taken; what is zero where the count is zero is computed
at the other entries alone. Small counts need no ln Γ and no ψ: as
Γ(θ + n) / Γ(θ) = θ (θ + 1) … (θ + n − 1), sums of logarithms and quotients serve all cells.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPS = 1e-8
LARGEST = 15  # counts up to here are looked up


@dataclass(frozen=True)
class Entries:
    """Counts above zero, cell by cell: `gene` (int64) and `count` (float) of each; those of cell c
    are from starts[c] to starts[c + 1]."""

    starts: Tensor
    gene: Tensor
    count: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Entries":
        """Of dense counts (cells × genes)."""
        cell, gene = x.nonzero(as_tuple=True)
        ends = torch.bincount(cell, minlength=len(x)).cumsum(0)
        return cls(F.pad(ends, (1, 0)), gene, x[cell, gene])

    @property
    def cell(self) -> Tensor:
        """The cell of each."""
        each = torch.arange(len(self.starts) - 1, device=self.gene.device)
        return each.repeat_interleave(self.starts.diff())

    def dense(self, values: Tensor, n_genes: int) -> Tensor:
        """`values`, one an entry, in their places among zeros (cells × genes)."""
        out = values.new_zeros(len(self.starts) - 1, n_genes)
        if values.device.type != "cpu":
            out[self.cell, self.gene] = values
            return out
        from atlasmap.models.kernels import spread
        from atlasmap.models.parts import side_by_side

        side_by_side(spread, len(out), self.starts, self.gene, values, out)
        return out


def rising(theta: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
    """ln Γ(x + θ) − ln Γ(θ) − ln x! of each entry, and its derivative ψ(x + θ) − ψ(θ).

    `theta` is 1 × genes or cells × genes.
    """
    if len(theta) > 1:
        return rising_of_any(entries.count, theta[entries.cell, entries.gene])
    n = torch.arange(LARGEST, device=theta.device, dtype=theta.dtype)[:, None]
    factors = theta + n  # of Γ(θ + n + 1) / Γ(θ)
    at = (entries.count - 1).clamp(0, LARGEST - 1).long() * theta.shape[1] + entries.gene
    value = (factors / (n + 1)).log().cumsum(0).view(-1).index_select(0, at)
    slope = factors.reciprocal().cumsum(0).view(-1).index_select(0, at)
    other = ((entries.count > LARGEST) | (entries.count != entries.count.round())).nonzero()[:, 0]
    if len(other):
        of_other = theta[0, entries.gene[other]]
        value[other], slope[other] = rising_of_any(entries.count[other], of_other)
    return value, slope


def rising_of_any(count: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The same for any count, also one that is not an integer."""
    return (
        torch.lgamma(count + theta) - torch.lgamma(theta) - torch.lgamma(count + 1),
        torch.digamma(count + theta) - torch.digamma(theta),
    )


def nb_of_cells(
    logits: Tensor, library: Tensor, theta: Tensor, zi_logits: Tensor | None, entries: Entries
) -> Tensor:
    """log p(x) a cell of the negative binomial, or of its zero-inflated form.

    `logits` (cells × genes; a softmax gives each gene's share of the library), `library` log size
    (cells × 1), `theta` inverse dispersion (1 × genes or cells × genes), `zi_logits` those of the
    zero inflation (cells × genes) or None.
    """
    at = entries.cell, entries.gene
    rate, log_theta = torch.exp(library) * torch.softmax(logits, -1), torch.log(theta + EPS)
    log_total = torch.log(theta + rate + EPS)
    of_zero = theta * (log_theta - log_total)
    terms = entries.count * (torch.log(rate[at] + EPS) - log_total[at])
    terms = terms + Rising.apply(theta, entries)
    if zi_logits is None:
        dense = of_zero
    else:
        dense = F.softplus(of_zero - zi_logits) - F.softplus(-zi_logits)
        given = of_zero - zi_logits
        terms = terms + (given - F.softplus(given))[at]
    return dense.sum(-1).index_add(0, at[0], terms)


class Rising(torch.autograd.Function):
    """`rising` with its derivative."""

    @staticmethod
    def forward(ctx, theta, entries: Entries):
        value, slope = rising(theta, entries)
        ctx.entries, ctx.shape = entries, theta.shape
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (slope,) = ctx.saved_tensors
        out, entries = slope.new_zeros(ctx.shape), ctx.entries
        row = entries.cell if ctx.shape[0] > 1 else torch.zeros_like(entries.gene)
        return out.index_put((row, entries.gene), upstream * slope, accumulate=True), None
