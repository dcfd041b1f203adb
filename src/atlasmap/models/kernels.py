"""Single passes over a minibatch on a CPU in float32, compiled by numba.

Between matrix products torch makes a pass over memory for every operation; here a row stays in the
first cache until all is done with it, and exponentials and logarithms are polynomials, which a
compiler can take sixteen at a time. What is not a number stays so.

A loop either sums or writes: one that does both is compiled twice, for arrays that lie apart and
for others, with sums in another order; which of the two runs would depend on where memory is.
"""

import contextlib

import numba
import numpy as np

FAST = {"reassoc", "contract", "nsz"}  # sums in another order; NaN stays NaN, quotients exact
inlined = numba.njit(inline="always")
EPS = np.float32(1e-8)  # of the negative binomial
VARIANCE_EPS = np.float32(1e-5)  # of layer norm
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


def compiled(function):
    """Compiled at its first call, and kept for other processes where a folder can be written."""
    out = numba.njit(fastmath=FAST, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):
        out.enable_caching()
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
    exponent = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
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
def negative_binomial(
    logits, top, depth, theta, log_theta, starts, gene, count, rising, rate, value
):  # fmt: skip
    """log p(x) a cell into `value`, the means into `rate` (cells × genes).

    `top` is a cell's largest logit, `depth` its library size; entry i between starts[c] and
    starts[c + 1] is a count of cell c; `rising` is ln Γ(x + θ) − ln Γ(θ) − ln x! of each.
    """
    n_cells, n_genes = logits.shape
    for c in range(n_cells):
        total, highest = ZERO, top[c]
        for g in range(n_genes):
            rate[c, g] = exp(logits[c, g] - highest)
        for g in range(n_genes):
            total += rate[c, g]
        share, whole, odd = depth[c] / total, ZERO, ZERO
        for g in range(n_genes):
            rate[c, g] *= share
        for g in range(n_genes):
            either = theta[g] + rate[c, g] + EPS
            whole += theta[g] * (log_theta[g] - log(either))
            odd += (either + logits[c, g]) * ZERO  # nothing, unless one is not a number
        for i in range(starts[c], starts[c + 1]):
            mean = rate[c, gene[i]]
            either = theta[gene[i]] + mean + EPS
            whole += count[i] * (log(mean + EPS) - log(either)) + rising[i]
        value[c] = whole + odd


@compiled
def negative_binomial_slopes(
    upstream, rate, depth, theta, log_theta, starts, gene, count, rising_slope, trains_theta,
    of_logits, of_depth, of_theta,
):  # fmt: skip
    """Gradients of Σ upstream · `negative_binomial` for logits (cells × genes), log depth (cells)
    and, where it trains, θ (genes; added to what is there)."""
    n_cells, n_genes = rate.shape
    for c in range(n_cells):
        weight = upstream[c]
        for g in range(n_genes):
            either = theta[g] + rate[c, g] + EPS
            of_logits[c, g] = -theta[g] / either * rate[c, g]
        if trains_theta:
            for g in range(n_genes):
                either = theta[g] + rate[c, g] + EPS
                slope = log_theta[g] - log(either) + theta[g] / (theta[g] + EPS) - theta[g] / either
                of_theta[g] += weight * slope
        for i in range(starts[c], starts[c + 1]):
            g = gene[i]
            mean = rate[c, g]
            either = ONE / (theta[g] + mean + EPS)
            of_logits[c, g] += count[i] * (ONE / (mean + EPS) - either) * mean
            if trains_theta:
                of_theta[g] += weight * (rising_slope[i] - count[i] * either)
        total = ZERO
        for g in range(n_genes):
            total += of_logits[c, g]
        of_depth[c] = weight * total
        share = total / depth[c]
        for g in range(n_genes):
            of_logits[c, g] = weight * (of_logits[c, g] - rate[c, g] * share)


@compiled
def sparse_product(starts, gene, values, weight, bias, out):
    """`out` = x W + b, cells × outputs, for an x that is `values` at the entries; `weight` is genes
    × outputs."""
    n_cells, width = out.shape
    for c in range(n_cells):
        for j in range(width):
            out[c, j] = bias[j]
        for i in range(starts[c], starts[c + 1]):
            value, g = values[i], gene[i]
            for j in range(width):
                out[c, j] += value * weight[g, j]


@compiled
def sparse_product_slopes(starts, gene, values, upstream, of_weight):
    """Gradient of Σ upstream · `sparse_product` for the weight, added to what is there."""
    n_cells, width = upstream.shape
    for c in range(n_cells):
        for i in range(starts[c], starts[c + 1]):
            value, g = values[i], gene[i]
            for j in range(width):
                of_weight[g, j] += value * upstream[c, j]


@inlined
def hashed(place):
    """A bijection of 32 bits that leaves no pattern (lowbias32, Wellons 2018)."""
    h = np.uint32(place ^ (place >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@compiled
def rectify(x, shift, key, keep, scale, out, mean, inverse_sd):
    """`out` = dropout(relu(layer norm of `x` + `shift`)), rows × width; `mean`, `inverse_sd` one a
    row.

    `x` is repeated until there are enough rows, each row of `shift` goes for as many in turn. A
    value is kept where the hash of its place and `key` is at most `keep`, and times `scale`.
    """
    n_rows, width = out.shape
    group = n_rows // len(shift)
    for r in range(n_rows):
        total, squares, source, added = ZERO, ZERO, r % len(x), r // group
        for j in range(width):
            total += x[source, j] + shift[added, j]
        centre = total / np.float32(width)
        for j in range(width):
            out[r, j] = x[source, j] + shift[added, j]
        for j in range(width):
            squares += (out[r, j] - centre) * (out[r, j] - centre)
        factor = ONE / np.sqrt(squares / np.float32(width) + VARIANCE_EPS)
        mean[r], inverse_sd[r] = centre, factor
        first = np.uint32(key + np.uint32(r * width))
        for j in range(width):
            value = (out[r, j] - centre) * factor
            kept = (not value <= ZERO) & (hashed(np.uint32(first + np.uint32(j))) <= keep)
            out[r, j] = value * scale if kept else ZERO


@compiled
def rectify_slopes(upstream, x, shift, out, scale, mean, inverse_sd, of_rows):
    """Gradient of Σ upstream · `rectify`, whose result is `out`, for `x` + `shift` (rows ×
    width)."""
    n_rows, width = upstream.shape
    group = n_rows // len(shift)
    for r in range(n_rows):
        total, along, source, added = ZERO, ZERO, r % len(x), r // group
        centre, factor = mean[r], inverse_sd[r]
        for j in range(width):
            value = (x[source, j] + shift[added, j] - centre) * factor
            slope = upstream[r, j] * scale if out[r, j] != ZERO else ZERO
            total += slope
            along += slope * value
        total, along = total / np.float32(width), along / np.float32(width)
        for j in range(width):
            value = (x[source, j] + shift[added, j] - centre) * factor
            slope = upstream[r, j] * scale if out[r, j] != ZERO else ZERO
            of_rows[r, j] = factor * (slope - total - value * along)


@compiled
def sum_repeats(of_rows, out):
    """Into `out` the sum of the rows of `of_rows` that repeat each of its rows."""
    for r in range(len(of_rows)):
        for j in range(out.shape[1]):
            out[r % len(out), j] += of_rows[r, j]


@compiled
def sum_groups(of_rows, out):
    """Into `out` the sum of as many rows in turn as go for each of its rows."""
    group = len(of_rows) // len(out)
    for r in range(len(of_rows)):
        for j in range(out.shape[1]):
            out[r // group, j] += of_rows[r, j]


@compiled
def take_rows(indptr, indices, data, index, starts, gene, count, depth):
    """Rows `index` of a CSR matrix: their entries, and their sums into `depth`."""
    for r in range(len(index)):
        source, to, total = indptr[index[r]], starts[r], 0.0
        for k in range(starts[r + 1] - to):
            gene[to + k], count[to + k] = indices[source + k], data[source + k]
            total += data[source + k]
        depth[r, 0] = total


@compiled
def spread(starts, gene, values, out):
    """Entries into zeros of `out` (cells × genes)."""
    for c in range(len(starts) - 1):
        for k in range(starts[c], starts[c + 1]):
            out[c, gene[k]] = values[k]
