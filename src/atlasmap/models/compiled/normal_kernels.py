"""Kernels for diagonal normals in float32: samples, densities and their gradients.

packed = [mean, raw] (rows × 2 width); var = exp(raw) + floor.
"""

import numpy as np

from atlasmap.models.compiled.arithmetic import HALF, ONE, ZERO, exp, log
from atlasmap.models.compiled.cache import compiled
from atlasmap.models.compiled.threads import in_parts

TWO_PI = np.float32(2 * np.pi)


@compiled
def rows_of_draw(first, last, packed, noise, floor, var, z, kl, log_density):
    """Writes `var` and samples `z` (rows × width), and per row `kl`, KL(N ‖ N(0, 1)), and
    `log_density`, log N(z)."""
    width = z.shape[1]
    for r in range(first, last):
        for j in range(width):
            of_log = packed[r, width + j]
            var[r, j] = exp(of_log) + floor + of_log * ZERO  # keeps NaN
        for j in range(width):
            z[r, j] = packed[r, j] + np.sqrt(var[r, j]) * noise[r, j]
        divergence, density = ZERO, ZERO
        for j in range(width):
            mean = packed[r, j]
            divergence += var[r, j] + mean * mean - ONE - log(var[r, j])
            density += noise[r, j] * noise[r, j] + log(TWO_PI * var[r, j])
        kl[r], log_density[r] = HALF * divergence, -HALF * density


@compiled
def rows_of_draw_grad(
    first, last, of_z, of_kl, of_density, packed, noise, var, floor, of_packed
):  # fmt: skip
    """Gradient of Σ of_z · z + Σ of_kl · kl + Σ of_density · log_density for `packed`."""
    width = var.shape[1]
    for r in range(first, last):
        for j in range(width):
            of_packed[r, j] = of_z[r, j] + of_kl[r] * packed[r, j]
        for j in range(width):
            v = var[r, j]
            slope = (
                of_z[r, j] * noise[r, j] / np.sqrt(v) + of_kl[r] - (of_kl[r] + of_density[r]) / v
            )
            of_packed[r, width + j] = HALF * slope * (v - floor)


@compiled
def rows_of_density(first, last, x, packed, floor, out):
    """Log-density of `x` per row of `packed`; row r takes x[r % len(x)]."""
    width = x.shape[1]
    for r in range(first, last):
        total, source = ZERO, r % len(x)
        for j in range(width):
            of_log = packed[r, width + j]
            v = exp(of_log) + floor + of_log * ZERO
            gap = x[source, j] - packed[r, j]
            total += gap * gap / v + log(TWO_PI * v)
        out[r] = -HALF * total


@compiled
def rows_of_density_grad(first, last, upstream, x, packed, floor, of_packed):
    """Gradient of Σ upstream · log-density for `packed`; that for `x` is minus its first half."""
    width = x.shape[1]
    for r in range(first, last):
        weight, source = upstream[r], r % len(x)
        for j in range(width):
            share = exp(packed[r, width + j])
            gap, one_of = x[source, j] - packed[r, j], ONE / (share + floor)
            of_packed[r, j] = weight * gap * one_of
            slope = weight * (gap * gap * one_of - ONE)
            of_packed[r, width + j] = HALF * slope * share * one_of


@compiled
def rows_of_sum_repeats(first, last, of_rows, out):
    """out[r] += the sum of all rows of `of_rows` whose index is r modulo len(out)."""
    for r in range(len(of_rows)):
        if first <= r % len(out) < last:
            for j in range(out.shape[1]):
                out[r % len(out), j] += of_rows[r, j]


@compiled
def draw(threads, n, *given):
    """`rows_of_draw` on threads."""
    in_parts(rows_of_draw, n, threads, given)


@compiled
def draw_grad(threads, n, *given):
    """`rows_of_draw_grad` on threads."""
    in_parts(rows_of_draw_grad, n, threads, given)


@compiled
def density(threads, n, *given):
    """`rows_of_density` on threads."""
    in_parts(rows_of_density, n, threads, given)


@compiled
def density_grad(threads, n, *given):
    """`rows_of_density_grad` on threads."""
    in_parts(rows_of_density_grad, n, threads, given)


@compiled
def sum_repeats(threads, n, *given):
    """`rows_of_sum_repeats` on threads."""
    in_parts(rows_of_sum_repeats, n, threads, given)
