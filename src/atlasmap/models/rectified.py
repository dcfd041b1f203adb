"""What follows a linear layer, as one operation: covariates' rows added, layer norm, ReLU, dropout.

On a CPU in float32 a single compiled pass each way; whether a value is dropped is a hash of its
place and a key, so that nothing is kept for the way back. Elsewhere torch's operations.
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

        shape, width = torch.broadcast_shapes(x.shape, shift.shape), x.shape[-1]
        given = [t.detach().contiguous().view(-1, width) for t in (x, shift)]
        out = x.new_empty(math.prod(shape[:-1]), width)
        of_rows = x.new_empty(2, len(out))
        rectify(*(t.numpy() for t in given), key, keep, scale, out.numpy(), *of_rows.numpy())
        ctx.told, ctx.shapes = (key, keep, scale), (x.shape, shift.shape)
        ctx.save_for_backward(*given, of_rows)
        return out.view(shape)

    @staticmethod
    def backward(ctx, upstream):
        from atlasmap.models.kernels import rectify_slopes

        *given, of_rows = ctx.saved_tensors
        above = upstream.contiguous().view(-1, upstream.shape[-1])
        out = [torch.zeros_like(t) for t in given]
        first, last = (above, *given), (*of_rows, *out)
        rectify_slopes(*(t.numpy() for t in first), *ctx.told, *(t.numpy() for t in last))
        return *(t.view(shape) for t, shape in zip(out, ctx.shapes, strict=True)), None, None, None


def rectified(x: Tensor, shift: Tensor | None, rate: float, noise: Noise | None) -> Tensor:
    """Layer norm without weights over the last axis of `x` (…, width), ReLU, then dropout at `rate`
    where `noise` switches it on.

    `shift` is added before: as many rows as `x` has, or one for each of a leading axis (n × 1 ×
    width), over which `x` is repeated if it lacks that axis.
    """
    drops = noise is not None and noise.dropout and rate > 0
    if x.device.type != "cpu" or x.dtype != torch.float32:
        x = x if shift is None else x + shift
        out = torch.relu(F.layer_norm(x, x.shape[-1:]))
        return noise.drop(out, rate) if drops else out
    shift = x.new_zeros(1, x.shape[-1]) if shift is None else shift
    if not drops:
        return Rectified.apply(x, shift, np.uint32(0), ALL, np.float32(1))
    keep = np.uint32(round((1 - rate) * 2**32) - 1)
    return Rectified.apply(x, shift, noise.key(), keep, np.float32(1 / (1 - rate)))
