"""−log p(x) of the counts from the decoder's last hidden layer: one compiled pass, there and back
(`counts_kernels`)."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atlasmap.models.negative_binomial import EPS, LARGEST, Entries
from atlasmap.models.network import has_products


@dataclass(frozen=True)
class Logits:
    """The decoder's last layer, not computed yet: `hidden` (cells × width) · `weight` (genes ×
    width)ᵀ and the row of `bias` (rows × genes) that `code` (cells) names; whether gradients are
    `followed` is said when it is made."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    code: Tensor
    followed: bool = field(default_factory=torch.is_grad_enabled)

    @cached_property
    def value(self) -> Tensor:
        """cells × genes."""
        with torch.set_grad_enabled(self.followed):
            if len(self.bias) == 1:
                return F.linear(self.hidden, self.weight, self.bias[0])
            return F.linear(self.hidden, self.weight) + F.embedding(self.code, self.bias)


def compiles(logits: Logits | Tensor, theta: Tensor | None) -> bool:
    """Whether there is a compiled pass: on a CPU in float32, of θ that all cells share."""
    if not isinstance(logits, Logits) or theta is None or len(theta) > 1:
        return False
    return has_products(logits.hidden)


class CountsLoss(torch.autograd.Function):
    """The mean of −log p(x) over cells, and that of each, of which no gradient is known. That
    of the mean is found on the way there, if it is wanted."""

    @staticmethod
    def forward(ctx, entries: Entries, code, wanted: bool, hidden, weight, bias, library, theta):
        from atlasmap.models.counts_kernels import (
            BLOCK,
            GENES,
            counts,
            weight_slopes,
        )
        from atlasmap.models.kernels import rising
        from atlasmap.models.parts import side_by_side

        n, n_genes = len(hidden), len(weight)
        of_weights, of_theta = (wanted and any(ctx.needs_input_grad[k] for k in part)
                                for part in ((4, 5), (7,)))  # fmt: skip
        n_blocks = -(-n // BLOCK)
        values, steep = weight.new_empty(2, LARGEST, n_genes)
        side_by_side(rising, n_genes, theta[0], values, steep)
        depth, log_theta = torch.exp(library)[:, 0], torch.log(theta[0] + EPS)
        told = entries.starts, entries.gene, entries.count, values, steep
        slopes = weight.new_empty(n if wanted else 0, n_genes)
        log_prob, of_depth = weight.new_empty(2, n)
        of_hidden = torch.empty_like(hidden)
        sums = weight.new_zeros(n_blocks if of_theta else 0, n_genes)
        layer = hidden.contiguous(), weight, bias.contiguous(), code
        given = *layer, depth, theta[0], log_theta, *told, wanted, np.float32(-1 / n)
        side_by_side(counts, n_blocks, *given, slopes, log_prob, of_hidden, of_depth, sums)
        of_weight, of_bias = torch.empty_like(weight), torch.zeros_like(bias)
        if of_weights:
            given = slopes, layer[0], code, of_weight, of_bias
            side_by_side(weight_slopes, -(-n_genes // GENES), *given)
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
        slopes = zip(known, ctx.saved_tensors, strict=True)
        return None, None, None, *((x if times == 1 else x * times) if k else None
                                   for k, x in slopes)  # fmt: skip


def counts_loss(
    logits: Logits, library: Tensor, theta: Tensor, entries: Entries
) -> tuple[Tensor, Tensor]:
    """Mean over cells of −log p(x) of the negative binomial, where it `compiles`; and that of
    each cell, without gradients.

    `library` is the log size (cells × 1), `theta` the inverse dispersion (1 × genes).
    """
    how = entries, logits.code, torch.is_grad_enabled()
    return CountsLoss.apply(*how, logits.hidden, logits.weight, logits.bias, library, theta)
