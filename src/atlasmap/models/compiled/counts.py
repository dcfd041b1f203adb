"""−log p(x) of the counts from the decoder's last hidden layer in one pass: `ops.counts_loss`
(kernels: `counts_kernels`).

The dense part (cells × genes) costs one exponential and one logarithm per entry; terms that vanish
for a zero count are computed at non-zero counts only. Small counts n need no ln Γ and no ψ: as
Γ(θ + n) / Γ(θ) = θ (θ + 1) … (θ + n − 1), these are sums of logarithms and quotients, tabulated
once per gene for all cells.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasmap.models.compiled import counts_kernels as kernels
from atlasmap.models.compiled.counts_kernels import BLOCK, GENES
from atlasmap.models.compiled.sparse import SparseRows
from atlasmap.models.compiled.threads import side_by_side
from atlasmap.models.operands import Logits

EPS = 1e-8
LARGEST = 15  # counts up to this are looked up in the tables of `kernels.rising`


class CountsLoss(torch.autograd.Function):
    """Returns (mean NLL, per-cell NLL). Only the mean is differentiable; its gradient is computed
    in forward (if `wanted`) and scaled in backward."""

    @staticmethod
    def forward(ctx, counts: SparseRows, code, wanted: bool, hidden, weight, bias, library, theta):
        n, n_genes = len(hidden), len(weight)
        of_weights, of_theta = (wanted and any(ctx.needs_input_grad[k] for k in part)
                                for part in ((4, 5), (7,)))  # fmt: skip
        n_blocks = -(-n // BLOCK)
        values, steep = weight.new_empty(2, LARGEST, n_genes)
        side_by_side(kernels.rising, n_genes, theta[0], values, steep)
        depth, log_theta = torch.exp(library)[:, 0], torch.log(theta[0] + EPS)
        told = counts.starts, counts.gene, counts.value, values, steep
        grad = weight.new_empty(n if wanted else 0, n_genes)
        log_prob, of_depth = weight.new_empty(2, n)
        of_hidden = torch.empty_like(hidden)
        sums = weight.new_zeros(n_blocks if of_theta else 0, n_genes)
        layer = hidden.contiguous(), weight, bias.contiguous(), code
        given = *layer, depth, theta[0], log_theta, *told, wanted, np.float32(-1 / n)
        side_by_side(kernels.counts, n_blocks, *given, grad, log_prob, of_hidden, of_depth, sums)
        of_weight, of_bias = torch.empty_like(weight), torch.zeros_like(bias)
        if of_weights:
            given = grad, layer[0], code, of_weight, of_bias
            side_by_side(kernels.weight_grad, -(-n_genes // GENES), *given)
        ctx.which = of_weights, of_theta
        ctx.save_for_backward(of_hidden, of_weight, of_bias, of_depth[:, None], sums.sum(0)[None])
        each = -log_prob
        ctx.mark_non_differentiable(each)
        return each.mean(), each

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        (of_weights, of_theta), times = ctx.which, float(upstream)
        known = True, of_weights, of_weights, True, of_theta
        grad = zip(known, ctx.saved_tensors, strict=True)
        return None, None, None, *((x if times == 1 else x * times) if k else None
                                   for k, x in grad)  # fmt: skip


def counts_loss(
    logits: Logits, library: Tensor, theta: Tensor, counts: SparseRows | Tensor
) -> tuple[Tensor, Tensor]:
    """As `ops.counts_loss`."""
    told = SparseRows.of(counts), logits.code, torch.is_grad_enabled()
    return CountsLoss.apply(*told, logits.hidden, logits.weight, logits.bias, library, theta)


def gamma_terms(x: Tensor, theta: Tensor) -> Tensor:
    """As `ops.gamma_terms`, computed at non-zero counts only."""
    at, theta = x.nonzero(as_tuple=True), theta.expand_as(x)
    x_, theta_ = x[at], theta[at]
    terms = torch.lgamma(x_ + theta_) - torch.lgamma(theta_) - torch.lgamma(x_ + 1)
    return torch.zeros_like(x, dtype=terms.dtype).index_put(at, terms)
