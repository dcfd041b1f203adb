"""Kernels for the decoder's last layer and the negative binomial of the counts, forward and
backward, in float32.

Cells are processed in blocks, so that a block's logits stay in the L2 cache from the matrix product
until their gradients are computed. Blocks, and so the order of sums, do not depend on the number of
threads.
"""

import numpy as np

from atlasmap.models.compiled.arithmetic import (
    EPS,
    ONE,
    ZERO,
    digamma,
    exp,
    log,
    rising_of_any,
)
from atlasmap.models.compiled.blas import product
from atlasmap.models.compiled.cache import compiled
from atlasmap.models.compiled.threads import in_parts

BLOCK = 32  # cells per block
GENES = 256  # genes per part of the gradient for the weights
POSITIVE = np.int32(0x7FFFFFFF)


@compiled
def genes_of_rising(first, last, theta, value, slope):
    """Tabulates, for counts n = 1 … rows and each gene, `value` = ln Γ(n + θ) − ln Γ(θ) − ln n! and
    its derivative for θ, `slope` = ψ(n + θ) − ψ(θ) (rows × genes; row n − 1 is count n). Both are
    cumulative sums, as Γ(n + θ) / Γ(θ) = θ (θ + 1) … (θ + n − 1)."""
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
def largest(row):
    """Maximum of a row; NaN if it has a NaN with sign bit 0. Compares the floats' bits as ordered
    integers, since the compiler vectorises an integer maximum."""
    bits, top = row.view(np.int32), np.int32(-POSITIVE)
    for g in range(len(row)):
        top = max(top, bits[g] ^ ((bits[g] >> np.int32(31)) & POSITIVE))
    return np.int32(top ^ ((top >> np.int32(31)) & POSITIVE)).view(np.float32)


@compiled
def as_if_zero(row, depth, theta, log_theta, rate, spread):
    """Returns log p(0) of a cell with logits `row` and library size `depth`; writes the means to
    `rate` and ln(θ + mean) to `spread`."""
    n_genes, total, whole, odd = len(row), ZERO, ZERO, ZERO
    top = largest(row)
    for g in range(n_genes):
        rate[g] = exp(row[g] - top)
    for g in range(n_genes):
        total += rate[g]
    share = depth / total
    for g in range(n_genes):
        rate[g] *= share
    for g in range(n_genes):
        spread[g] = log(theta[g] + rate[g] + EPS)
    for g in range(n_genes):
        whole += theta[g] * (log_theta[g] - spread[g])
        odd += (theta[g] + rate[g] + row[g]) * ZERO  # zero, or NaN if an input is NaN
    return whole + odd


@compiled
def grad_as_if_zero(theta, log_theta, rate, spread, scale, quotient, row, of_theta):
    """Gradients of `as_if_zero` for log means (written to `row`) and, times `scale`, for θ (added
    to `of_theta`, unless it is empty); writes 1 / (θ + mean) to `quotient`."""
    for g in range(len(row)):
        quotient[g] = ONE / (theta[g] + rate[g] + EPS)
    for g in range(len(row)):
        row[g] = -theta[g] * quotient[g] * rate[g]
    for g in range(len(of_theta)):
        slope = log_theta[g] + theta[g] / (theta[g] + EPS) - spread[g] - theta[g] * quotient[g]
        of_theta[g] += scale * slope


@compiled
def of_counted(gene, count, theta, rate, spread, rising, steep, scale, quotient, row, of_theta):
    """Returns what a cell's non-zero counts add to `as_if_zero`; adds their gradients to `row` and
    `of_theta`, unless these are empty. `rising`, `steep`: tables of `genes_of_rising`."""
    whole = ZERO
    for i in range(len(gene)):
        g, n = gene[i], np.int64(count[i])
        small = np.float32(n) == count[i] and n <= len(rising)
        x, t = np.float64(count[i]), np.float64(theta[g])
        whole += count[i] * (log(rate[g] + EPS) - spread[g])
        whole += rising[n - 1, g] if small else rising_of_any(x, t)
        if len(row):
            row[g] += count[i] * (ONE / (rate[g] + EPS) - quotient[g]) * rate[g]
        if len(of_theta):
            slope = steep[n - 1, g] if small else np.float32(digamma(x + t) - digamma(t))
            of_theta[g] += scale * (slope - count[i] * quotient[g])
    return whole


@compiled
def grad_of_logits(row, rate, depth, scale):
    """Turns the gradients for log means in `row` into those for logits, in place; returns the
    gradient for the log library size. Both are multiplied by `scale`."""
    total = ZERO
    for g in range(len(row)):
        total += row[g]
    share = total / depth
    for g in range(len(row)):
        row[g] = scale * (row[g] - rate[g] * share)
    return scale * total


@compiled
def blocks_of_counts(
    first, last, hidden, weight, bias, code, depth, theta, log_theta, starts, gene, count, rising,
    steep, wanted, scale, grad, log_prob, of_hidden, of_depth, of_theta,
):  # fmt: skip
    """Writes log p(x) per cell to `log_prob`, for logits hidden · weightᵀ + bias[code].

    `depth`: library size per cell; `starts`, `gene`, `count`: the counts as CSR; `rising`, `steep`:
    tables of `genes_of_rising`. If `wanted`, writes the gradients of scale · Σ log p for the logits
    (`grad`, cells × genes), `hidden` and the log library size (`of_depth`), and adds that for θ to
    `of_theta` (blocks × genes, zero before; no rows if θ is fixed).
    """
    n_genes = len(theta)
    rate, spread, quotient = np.empty_like(theta), np.empty_like(theta), np.empty_like(theta)
    for block in range(first, last):
        start, end = block * BLOCK, min(block * BLOCK + BLOCK, len(hidden))
        logits = grad[start:end] if wanted else np.empty((end - start, n_genes), np.float32)
        of = of_theta[block] if wanted and len(of_theta) else rate[:0]
        product(hidden[start:end], weight, False, True, False, logits)
        for c in range(start, end):
            row, added = logits[c - start], bias[code[c]]
            for g in range(n_genes):
                row[g] += added[g]
            log_prob[c] = as_if_zero(row, depth[c], theta, log_theta, rate, spread)
            if wanted:
                grad_as_if_zero(theta, log_theta, rate, spread, scale, quotient, row, of)
            counted = gene[starts[c] : starts[c + 1]], count[starts[c] : starts[c + 1]]
            told = theta, rate, spread, rising, steep, scale, quotient
            of_row = row if wanted else row[:0]
            log_prob[c] += of_counted(*counted, *told, of_row, of)
            if wanted:
                of_depth[c] = grad_of_logits(row, rate, depth[c], scale)
        if wanted:
            product(logits, weight, False, False, False, of_hidden[start:end])


@compiled
def parts_of_weight(first, last, grad, hidden, code, of_weight, of_bias):
    """Gradients for `weight` (written) and `bias` (added), from those for the logits (`grad`)."""
    for part in range(first, last):
        start, end = part * GENES, min(part * GENES + GENES, len(of_weight))
        product(grad[:, start:end], hidden, True, False, False, of_weight[start:end])
        for c in range(len(grad)):
            to = code[c]
            for g in range(start, end):
                of_bias[to, g] += grad[c, g]


@compiled
def counts(threads, n, *given):
    """`blocks_of_counts` on threads."""
    in_parts(blocks_of_counts, n, threads, given)


@compiled
def weight_grad(threads, n, *given):
    """`parts_of_weight` on threads."""
    in_parts(parts_of_weight, n, threads, given)


@compiled
def rising(threads, n, *given):
    """`genes_of_rising` on threads."""
    in_parts(genes_of_rising, n, threads, given)
