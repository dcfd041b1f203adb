"""The decoder's last layer and the negative binomial of the counts, there and back, on a CPU in
float32.

Cells go to threads in blocks, whose logits stay in the second cache from the matrix product until
their gradients are known; blocks do not depend on how many threads there are, and so neither do
sums.
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

BLOCK = 32  # cells
GENES = 256  # a part of the gradient for the weights
POSITIVE = np.int32(0x7FFFFFFF)


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
def largest(row):
    """As if compared as integers, which a compiler takes many of at a time; NaN if there is one
    (positive, as they come)."""
    bits, top = row.view(np.int32), np.int32(-POSITIVE)
    for g in range(len(row)):
        top = max(top, bits[g] ^ ((bits[g] >> np.int32(31)) & POSITIVE))
    return np.int32(top ^ ((top >> np.int32(31)) & POSITIVE)).view(np.float32)


@compiled
def as_if_zero(row, depth, theta, log_theta, rate, spread):
    """log p(x) of a cell without counts and with logits `row`; its means go to `rate`, ln (θ +
    mean) to `spread`."""
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
        odd += (theta[g] + rate[g] + row[g]) * ZERO  # nothing, unless one is not a number
    return whole + odd


@compiled
def grad_as_if_zero(theta, log_theta, rate, spread, scale, quotient, row, of_theta):
    """Gradients of that for log means (into `row`) and, times `scale`, for θ (added, if any);
    1 / (θ + mean) goes to `quotient`."""
    for g in range(len(row)):
        quotient[g] = ONE / (theta[g] + rate[g] + EPS)
    for g in range(len(row)):
        row[g] = -theta[g] * quotient[g] * rate[g]
    for g in range(len(of_theta)):
        slope = log_theta[g] + theta[g] / (theta[g] + EPS) - spread[g] - theta[g] * quotient[g]
        of_theta[g] += scale * slope


@compiled
def of_counted(gene, count, theta, rate, spread, rising, steep, scale, quotient, row, of_theta):
    """What a cell's counts add to `as_if_zero`, and to the gradients (if there are any)."""
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
    """Gradients for logits from those for log means, in their place; returns that for log depth.
    Both are times `scale`."""
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
    """log p(x) a cell into `log_prob`, of logits that are hidden · weightᵀ and a row of `bias`,
    which `code` names.

    `depth` is a cell's library size; entry i between starts[c] and starts[c + 1] is a count of
    cell c; `rising` and `steep` as `genes_of_rising` leaves them. If they are `wanted`, gradients
    of scale · Σ log p are written: for the logits (`grad`, cells × genes), `hidden`, log depth,
    and for θ (an array of zeros a block; of none if θ is fixed).
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
    """Gradients for `weight` (written) and `bias` (added), from those for the logits."""
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
