"""Diagonal normal distributions, parameterised by a network's output."""

from dataclasses import dataclass

import torch
from torch import Tensor

from atlasmap.models import ops
from atlasmap.models.random import Noise


def kl_normal(mean: Tensor, var: Tensor, prior_mean: Tensor, prior_var: Tensor) -> Tensor:
    """KL(N(mean, var) ‖ N(prior_mean, prior_var)), elementwise."""
    ratio = var / prior_var
    return 0.5 * (ratio + (mean - prior_mean).square() / prior_var - 1 - torch.log(ratio))


def sample_normal(mean: Tensor, var: Tensor, noise: Noise | None) -> Tensor:
    """Reparameterised sample; the mean if `noise` is None."""
    return mean if noise is None else mean + var.sqrt() * noise.normal_like(mean)


@dataclass(frozen=True)
class Draw:
    """A reparameterised sample `z` (…, width); `kl`, KL(N ‖ N(0, 1)) of its normal; `log_density`,
    log N(z). Both are summed over the width (…)."""

    z: Tensor
    kl: Tensor
    log_density: Tensor


@dataclass(frozen=True)
class Normal:
    """packed = [mean, raw] (…, 2 × width); var = exp(raw) + floor."""

    packed: Tensor
    floor: float

    def __getitem__(self, rows: slice) -> "Normal":
        """The normals of these rows (leading axis)."""
        return Normal(self.packed[rows], self.floor)

    @property
    def mean(self) -> Tensor:
        """Means (…, width)."""
        return self.packed.chunk(2, -1)[0]

    @property
    def var(self) -> Tensor:
        """Variances (…, width)."""
        return ops.moments(self.packed, self.floor)[1]

    def draw(self, noise: Noise | None) -> Draw:
        """One sample per normal; the mean if `noise` is None."""
        values = ops.standard_normal(self.mean, noise)
        return Draw(*ops.draw(self.packed, values, self.floor))
