"""Samples and densities of diagonal normals: `ops.draw` and `ops.log_density`."""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasmap.models.compiled import normal_kernels as kernels
from atlasmap.models.compiled.threads import side_by_side


class Draw(torch.autograd.Function):
    """Returns z (rows × width), KL and log-density (rows) of `packed` normals (rows × 2 width),
    given standard normal noise (rows × width)."""

    @staticmethod
    def forward(ctx, packed, noise, floor):
        packed, (var, z) = packed.contiguous(), noise.new_empty(2, *noise.shape)
        kl, log_density = noise.new_empty(2, len(noise))
        side_by_side(kernels.draw, len(z), packed, noise, floor, var, z, kl, log_density)
        ctx.floor = floor
        ctx.save_for_backward(packed, noise, var)
        return z, kl, log_density

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        out = torch.empty_like(ctx.saved_tensors[0])
        given = *(t.contiguous() for t in upstream), *ctx.saved_tensors, ctx.floor
        side_by_side(kernels.draw_grad, len(out), *given, out)
        return out, None, None


class Density(torch.autograd.Function):
    """Log-density of `x` under `packed` normals (rows × 2 width); row r takes x[r % len(x)]."""

    @staticmethod
    def forward(ctx, x, packed, floor):
        x, packed = x.contiguous(), packed.contiguous()
        out = packed.new_empty(len(packed))
        side_by_side(kernels.density, len(out), x, packed, floor, out)
        ctx.floor = floor
        ctx.save_for_backward(x, packed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        x, packed = ctx.saved_tensors
        of_packed, of_x = torch.empty_like(packed), torch.zeros_like(x)
        given = upstream.contiguous(), x, packed, ctx.floor, of_packed
        side_by_side(kernels.density_grad, len(packed), *given)
        side_by_side(kernels.sum_repeats, len(x), of_packed, of_x)
        return of_x.neg_(), of_packed, None


def draw(packed: Tensor, noise: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.draw`."""
    rows = packed.view(-1, packed.shape[-1]), noise.view(-1, noise.shape[-1])
    z, kl, log_density = Draw.apply(*rows, np.float32(floor))
    return z.view(noise.shape), kl.view(noise.shape[:-1]), log_density.view(noise.shape[:-1])


def log_density(x: Tensor, packed: Tensor, floor: float) -> Tensor:
    """As `ops.log_density`."""
    rows = x.reshape(-1, x.shape[-1]), packed.view(-1, packed.shape[-1])
    return Density.apply(*rows, np.float32(floor)).view(packed.shape[:-1])
