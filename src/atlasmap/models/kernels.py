"""Single passes over a minibatch on a CPU in float32, compiled by numba.

Between matrix products torch makes a pass over memory for every operation; here a row stays in the
first cache until all is done with it, and exponentials and logarithms are polynomials, which a
compiler can take sixteen at a time. What is not a number stays so.

A kernel does indices `first` to `last` of a loop whose turns do not need each other, and has one
beside it that divides the whole loop among threads (`parts`).

A loop either sums or writes: one that does both is compiled twice, for arrays that lie apart and
for others, with sums in another order; which of the two runs would depend on where memory is.
"""

import contextlib
import hashlib
import math
from pathlib import Path

import numba
import numpy as np

from atlasmap.models.parts import DIVIDES, LIMITS, in_parts

FAST = {"reassoc", "contract", "nsz"}  # sums in another order; NaN stays NaN, quotients exact
# What compiled functions are made of. numba knows a function again by its own file alone, and would
# keep one that inlines what has changed elsewhere.
SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    + bytes((DIVIDES, LIMITS))
).hexdigest()
inlined = numba.njit(inline="always")
EPS = np.float32(1e-8)  # of the negative binomial
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


def compiled(function):
    """Compiled at its first call, and kept for other processes where a folder can be written.

    Always inlined where another calls it: a process that compiles both would otherwise call the one
    that stands alone, and a process that loads the caller a copy that was optimised once more, with
    other bits.
    """
    out = numba.njit(fastmath=FAST, error_model="numpy", nogil=True, forceinline=True)(function)
    with contextlib.suppress(RuntimeError):
        out.enable_caching()
        out._cache._cache_file._source_stamp = SOURCES
    return out


@inlined
def exp(x):
    """e^x to 1.2e-7 (Cephes' expf); at −87 and below that of −87, about 1e-38."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.44269504) + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + ONE
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def log(x):
    """ln x of a positive x to 1.2e-7 (Cephes' logf)."""
    bits = np.float32(x).view(np.int32)
    exponent = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))  # numba's sums: 64
    f = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - ONE
    p = np.float32(7.0376836292e-2)
    p = p * f - np.float32(1.1514610310e-1)
    p = p * f + np.float32(1.1676998740e-1)
    p = p * f - np.float32(1.2420140846e-1)
    p = p * f + np.float32(1.4249322787e-1)
    p = p * f - np.float32(1.6668057665e-1)
    p = p * f + np.float32(2.0000714765e-1)
    p = p * f - np.float32(2.4999993993e-1)
    p = p * f + np.float32(3.3333331174e-1)
    n, square = np.float32(exponent), f * f
    return f + (f * square * p + LN2_LOW * n - HALF * square) + LN2_HIGH * n


@compiled
def genes_of_rising(first, last, theta, value, slope):
    """ln Γ(n + θ) − ln Γ(θ) − ln n! (`value`) and ψ(n + θ) − ψ(θ) (`slope`) for n from 1 to as many
    as there are rows, at genes: as Γ(n + θ) / Γ(θ) = θ (θ + 1) … (θ + n − 1), sums of logarithms
    and of quotients."""
    for n in range(len(value)):
        for g in range(np.uint64(first), np.uint64(last)):
            factor = theta[g] + np.float32(n)
            value[n, g] = log(factor / np.float32(n + 1))
            slope[n, g] = ONE / factor
        if n > 0:
            for g in range(np.uint64(first), np.uint64(last)):
                value[n, g] += value[n - 1, g]
                slope[n, g] += slope[n - 1, g]


@compiled
def rising_of_any(x, theta):
    """The value for any count, also one that is not an integer."""
    return np.float32(math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1.0))


@compiled
def digamma(x):
    """ψ(x) of a positive x in float64 (Abramowitz & Stegun 6.3.5 and 6.3.18)."""
    shift = 0.0
    while x < 10.0:
        shift += 1.0 / x
        x += 1.0
    square = 1.0 / (x * x)
    series = 1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132)))
    return math.log(x) - 0.5 / x - square * series - shift


@compiled
def cells_of_sparse_product(first, last, starts, gene, values, weight, bias, out):
    """`out` = x W + b, cells × outputs, for an x that is `values` at the entries; `weight` is genes
    × outputs."""
    width = out.shape[1]
    for c in range(first, last):
        for j in range(width):
            out[c, j] = bias[j]
        begin, end = starts[c], starts[c + 1]
        whole = begin + (end - begin) // 4 * 4
        for i in range(begin, whole, 4):  # `out` is read and written once for four
            v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
            g0, g1, g2, g3 = gene[i], gene[i + 1], gene[i + 2], gene[i + 3]
            for j in range(width):
                out[c, j] += (v0 * weight[g0, j] + v1 * weight[g1, j]) + (
                    v2 * weight[g2, j] + v3 * weight[g3, j]
                )
        for i in range(whole, end):
            value, g = values[i], gene[i]
            for j in range(width):
                out[c, j] += value * weight[g, j]


@compiled
def genes_of_sparse_product_slopes(first, last, starts, gene, values, upstream, of_weight):
    """Gradient of Σ upstream · `sparse_product` for the weight."""
    of_weight[first:last] = ZERO
    for c in range(len(upstream)):
        for i in range(starts[c], starts[c + 1]):
            value, g = values[i], gene[i]
            if first <= g < last:
                for j in range(upstream.shape[1]):
                    of_weight[g, j] += value * upstream[c, j]


@compiled
def rows_of_sum_repeats(first, last, of_rows, out):
    """Into `out` the sum of the rows of `of_rows` that repeat each of its rows."""
    for r in range(len(of_rows)):
        if first <= r % len(out) < last:
            for j in range(out.shape[1]):
                out[r % len(out), j] += of_rows[r, j]


@compiled
def rows_of_take(first, last, indptr, indices, data, index, starts, gene, count, depth):
    """Rows `index` of a CSR matrix: their entries, and their sums into `depth`."""
    for r in range(first, last):
        source, to, total = indptr[index[r]], starts[r], 0.0
        for k in range(starts[r + 1] - to):
            gene[to + k], count[to + k] = indices[source + k], data[source + k]
            total += data[source + k]
        depth[r, 0] = total


@compiled
def cells_of_spread(first, last, starts, gene, values, out):
    """Entries into zeros of `out` (cells × genes)."""
    for c in range(first, last):
        for k in range(starts[c], starts[c + 1]):
            out[c, gene[k]] = values[k]


@compiled
def sparse_product(threads, n, *given):
    """`cells_of_sparse_product` on threads."""
    in_parts(cells_of_sparse_product, n, threads, given)


@compiled
def sparse_product_slopes(threads, n, *given):
    """`genes_of_sparse_product_slopes` on threads."""
    in_parts(genes_of_sparse_product_slopes, n, threads, given)


@compiled
def sum_repeats(threads, n, *given):
    """`rows_of_sum_repeats` on threads."""
    in_parts(rows_of_sum_repeats, n, threads, given)


@compiled
def take_rows(threads, n, *given):
    """`rows_of_take` on threads."""
    in_parts(rows_of_take, n, threads, given)


@compiled
def spread(threads, n, *given):
    """`cells_of_spread` on threads."""
    in_parts(cells_of_spread, n, threads, given)


@compiled
def rising(threads, n, *given):
    """`genes_of_rising` on threads."""
    in_parts(genes_of_rising, n, threads, given)
