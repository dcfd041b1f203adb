"""What follows a linear layer, as one operation: covariates' rows added, layer norm, ReLU, dropout.

On a CPU in float32 a single compiled pass each way; whether a value is dropped is a hash of its
place and a key, and on the way back what is not zero was kept. Elsewhere torch's operations.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atlasmap.models.random import Noise

ALL = np.uint32(0xFFFFFFFF)


class Rectified(torch.autograd.Function):
    """The compiled pass; `key`, `keep` and `scale` as kernels.rectify has them."""

    @staticmethod
    def forward(ctx, x, shift, key, keep, scale):
        from atlasmap.models.kernels import rectify
        from atlasmap.models.parts import side_by_side

        width, repeated = x.shape[-1], x.dim() < shift.dim()
        shape = (len(shift), *x.shape) if repeated else x.shape
        given = [t.detach().contiguous().view(-1, width) for t in (x, shift)]
        out = x.new_empty(math.prod(shape[:-1]), width)
        of_rows = x.new_empty(2, len(out))
        side_by_side(rectify, len(out), *given, key, keep, scale, out, *of_rows)
        ctx.scale, ctx.shapes = scale, (x.shape, shift.shape)
        ctx.save_for_backward(*given, out, of_rows)
        return out.view(shape)

    @staticmethod
    def backward(ctx, upstream):
        from atlasmap.models.kernels import rectify_slopes, sum_groups, sum_repeats
        from atlasmap.models.parts import side_by_side

        x, shift, out, of_rows = ctx.saved_tensors
        above, slopes = upstream.contiguous().view(out.shape), torch.empty_like(out)
        given = above, x, shift, out, ctx.scale, *of_rows, slopes
        side_by_side(rectify_slopes, len(out), *given)
        of_x, of_shift = (torch.zeros_like(t) if len(t) < len(out) else slopes for t in (x, shift))
        if of_x is not slopes:
            side_by_side(sum_repeats, len(x), slopes, of_x)
        if of_shift is not slopes:
            side_by_side(sum_groups, shift.shape[1], slopes, of_shift)
        of_given = (t.view(s) for t, s in zip((of_x, of_shift), ctx.shapes, strict=True))
        return *of_given, None, None, None


def dropout(rate: float, noise: Noise | None) -> tuple[np.uint32, np.uint32, np.float32]:
    """A key, the largest hash that is kept, and what is kept is times this."""
    if noise is None or not noise.dropout or rate == 0:
        return np.uint32(0), ALL, np.float32(1)
    keep = np.uint32(round((1 - rate) * 2**32) - 1)
    return noise.key(), keep, np.float32(1 / (1 - rate))


def rectified(x: Tensor, shift: Tensor | None, rate: float, noise: Noise | None) -> Tensor:
    """Layer norm without weights over the last axis of `x` (…, width), ReLU, then dropout at `rate`
    where `noise` switches it on.

    `shift` is added before: as many rows as `x` has, or one for each of a leading axis (n × 1 ×
    width), over which `x` is repeated if it lacks that axis.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        x = x if shift is None else x + shift
        out = torch.relu(F.layer_norm(x, x.shape[-1:]))
        return out if noise is None else noise.drop(out, rate)
    shift = x.new_zeros(1, x.shape[-1]) if shift is None else shift
    return Rectified.apply(x, shift, *dropout(rate, noise))
