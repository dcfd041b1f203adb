"""Diagonal normals as a network gives them: draws, KL divergences and densities.

On a CPU in float32 compiled passes with their own gradients; elsewhere torch's operations.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasmap.models.random import Noise


def kl_standard_normal(mean: Tensor, var: Tensor) -> Tensor:
    """KL(N(mean, var) ‖ N(0, 1)), elementwise."""
    return 0.5 * (var + mean.square() - 1 - torch.log(var))


def kl_normal(mean: Tensor, var: Tensor, prior_mean: Tensor, prior_var: Tensor) -> Tensor:
    """KL(N(mean, var) ‖ N(prior_mean, prior_var)), elementwise."""
    ratio = var / prior_var
    return 0.5 * (ratio + (mean - prior_mean).square() / prior_var - 1 - torch.log(ratio))


def log_normal(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """log N(x; mean, var), elementwise."""
    return -0.5 * ((x - mean).square() / var + torch.log(2 * torch.pi * var))


def sample_normal(mean: Tensor, var: Tensor, noise: Noise | None) -> Tensor:
    """A reparameterised draw, or the mean where there is no noise."""
    return mean if noise is None else mean + var.sqrt() * noise.normal_like(mean)


class CompiledDraw(torch.autograd.Function):
    """z, KL and log-density of rows (rows × 2 width), given noise (rows × width)."""

    @staticmethod
    def forward(ctx, packed, noise, floor):
        from atlasmap.models.normal_kernels import draw
        from atlasmap.models.parts import side_by_side

        packed, (var, z) = packed.contiguous(), noise.new_empty(2, *noise.shape)
        kl, log_density = noise.new_empty(2, len(noise))
        side_by_side(draw, len(z), packed, noise, floor, var, z, kl, log_density)
        ctx.floor = floor
        ctx.save_for_backward(packed, noise, var)
        return z, kl, log_density

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        from atlasmap.models.normal_kernels import draw_slopes
        from atlasmap.models.parts import side_by_side

        out = torch.empty_like(ctx.saved_tensors[0])
        given = *(t.contiguous() for t in upstream), *ctx.saved_tensors, ctx.floor
        side_by_side(draw_slopes, len(out), *given, out)
        return out, None, None


class CompiledDensity(torch.autograd.Function):
    """Log-density of `x` (repeated until there are enough) of rows (rows × 2 width)."""

    @staticmethod
    def forward(ctx, x, packed, floor):
        from atlasmap.models.normal_kernels import density
        from atlasmap.models.parts import side_by_side

        x, packed = x.contiguous(), packed.contiguous()
        out = packed.new_empty(len(packed))
        side_by_side(density, len(out), x, packed, floor, out)
        ctx.floor = floor
        ctx.save_for_backward(x, packed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        from atlasmap.models.kernels import sum_repeats
        from atlasmap.models.normal_kernels import density_slopes
        from atlasmap.models.parts import side_by_side

        x, packed = ctx.saved_tensors
        of_packed, of_x = torch.empty_like(packed), torch.zeros_like(x)
        given = upstream.contiguous(), x, packed, ctx.floor, of_packed
        side_by_side(density_slopes, len(packed), *given)
        side_by_side(sum_repeats, len(x), of_packed, of_x)
        return of_x.neg_(), of_packed, None


@dataclass(frozen=True)
class Draw:
    """A reparameterised draw `z` (…, width); the normal's KL divergence from N(0, 1) and the
    log-density of the draw, summed over the width (…)."""

    z: Tensor
    kl: Tensor
    log_density: Tensor


@dataclass(frozen=True)
class Normal:
    """Normals as a network gives them: `packed` (…, 2 × width) holds means, then logarithms of what
    `floor` is added to to be the variances."""

    packed: Tensor
    floor: float

    def __getitem__(self, rows: slice) -> "Normal":
        """Some of them."""
        return Normal(self.packed[rows], self.floor)

    @property
    def mean(self) -> Tensor:
        """(…, width)."""
        return self.packed.chunk(2, -1)[0]

    @property
    def var(self) -> Tensor:
        """(…, width)."""
        return torch.exp(self.packed.chunk(2, -1)[1]) + self.floor

    @property
    def compiled(self) -> bool:
        """Whether there are compiled passes for it."""
        return self.packed.device.type == "cpu" and self.packed.dtype == torch.float32

    def draw(self, noise: Noise | None) -> Draw:
        """A draw, or the mean where there is no noise."""
        mean = self.mean
        values = torch.zeros_like(mean) if noise is None else noise.normal_like(mean)
        if self.compiled:
            rows = self.packed.view(-1, self.packed.shape[-1]), values.view(-1, mean.shape[-1])
            z, kl, log_density = CompiledDraw.apply(*rows, np.float32(self.floor))
            return Draw(z.view(mean.shape), *(t.view(mean.shape[:-1]) for t in (kl, log_density)))
        var = self.var
        z = mean + var.sqrt() * values
        return Draw(z, kl_standard_normal(mean, var).sum(-1), log_normal(z, mean, var).sum(-1))

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x), summed over the width (…): `x` as the normals, or without their leading axis,
        over which it is then repeated."""
        if not self.compiled:
            return log_normal(x, self.mean, self.var).sum(-1)
        rows = x.reshape(-1, x.shape[-1]), self.packed.view(-1, self.packed.shape[-1])
        return CompiledDensity.apply(*rows, np.float32(self.floor)).view(self.packed.shape[:-1])
