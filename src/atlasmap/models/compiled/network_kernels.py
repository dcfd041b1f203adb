"""Kernels for a network's layers, forward and backward, in float32.

`network` = (weights, shifts, head, bias, how). Per layer: `weights` (outputs × inputs; all layers
have the same width) and `shifts` (categories × width, of which one row is added), then layer norm,
ReLU and dropout. `head` and `bias`: the affine map applied last (no outputs if there is none).
`how` = (dropout keys per layer, largest hash kept, scale, floor of the variances). If `known`, x is
the first layer's product and the first weights are empty.

`kept`, saved for backward: `normed` (after layer norm) and `left` (after ReLU and dropout), both
layers × rows × width, and `factor` (1 / standard deviation of layer norm, layers × rows).

Rows are processed in chunks of nearly equal size, and gradients of parameters are summed per group
of chunks; neither depends on the number of threads, and so neither does the order of sums. `values`
are the flattened gradients of one network: shifts, weights, head, bias.
"""

import numpy as np

from atlasmap.models.compiled.arithmetic import ONE, ZERO
from atlasmap.models.compiled.blas import product
from atlasmap.models.compiled.cache import compiled, inlined
from atlasmap.models.compiled.threads import in_parts

VARIANCE_EPS = np.float32(1e-5)  # of layer norm
ROWS = 128  # per chunk at most, so that it stays in the L2 cache
ALL = np.uint32(0xFFFFFFFF)  # largest hash
GROUPS = 4  # each with its own sums: more need more memory, fewer leave threads idle


@inlined
def n_chunks(n):
    """Number of chunks of `n` rows; a multiple of GROUPS."""
    return GROUPS * -(-n // (GROUPS * ROWS))


@inlined
def rows_of(chunk, n):
    """First and last (exclusive) row of a chunk."""
    return n * chunk // n_chunks(n), n * (chunk + 1) // n_chunks(n)


@inlined
def chunks_of(group, n):
    """First and last (exclusive) chunk of a group."""
    return n_chunks(n) // GROUPS * group, n_chunks(n) // GROUPS * (group + 1)


@inlined
def hashed(place):
    """32-bit hash, a bijection with low bias (lowbias32, Wellons 2018)."""
    h = np.uint32(place ^ (place >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@compiled
def normalise(rows, shift, code, factor):
    """Layer norm of rows + shift[code], in place; writes 1 / standard deviation to `factor`."""
    width, part = rows.shape[1], ONE / np.float32(rows.shape[1])
    for r in range(len(rows)):
        total, squares, added = ZERO, ZERO, code[r]
        for j in range(width):
            rows[r, j] += shift[added, j]
        for j in range(width):
            total += rows[r, j]
        centre = total * part
        for j in range(width):
            rows[r, j] -= centre
        for j in range(width):
            squares += rows[r, j] * rows[r, j]
        factor[r] = ONE / np.sqrt(squares * part + VARIANCE_EPS)
        for j in range(width):
            rows[r, j] *= factor[r]


@compiled
def drop(rows, key, keep, scale, out):
    """Writes ReLU and dropout of `rows` to `out`. Dropout keeps a value, times `scale`, if the hash
    of its index plus `key` is at most `keep`; with `keep` = ALL it is off. NaN passes the ReLU."""
    width = rows.shape[1]
    for r in range(len(rows)):
        if keep == ALL:
            for j in range(width):
                out[r, j] = ZERO if rows[r, j] <= ZERO else rows[r, j]
            continue
        place = np.uint32(key + np.uint32(r * width))
        for j in range(width):
            kept = hashed(np.uint32(place + np.uint32(j))) <= keep
            out[r, j] = rows[r, j] * scale if kept & (not rows[r, j] <= ZERO) else ZERO


@compiled
def grad_of_layer(above, normed, left, scale, factor, out):
    """Gradient for the input of layer norm, from that (`above`) for `left`, the output of ReLU and
    dropout; a value passes gradient where it is not zero in `left`."""
    width, part = normed.shape[1], ONE / np.float32(normed.shape[1])
    for r in range(len(normed)):
        total, along = ZERO, ZERO
        for j in range(width):
            slope = above[r, j] * scale if left[r, j] != ZERO else ZERO
            total += slope
            along += slope * normed[r, j]
        total, along = total * part, along * part  # products, not quotients per value
        for j in range(width):
            slope = above[r, j] * scale if left[r, j] != ZERO else ZERO
            out[r, j] = factor[r] * (slope - total - normed[r, j] * along)


@inlined
def place(parts, k, values):
    """View of the gradient of part k in `values`, where the parts lie one after the other."""
    start = 0
    for i in range(k):
        start += parts[i].size
    return values[start : start + parts[k].size].reshape(parts[k].shape)


@inlined
def size(parts):
    """Total number of values in `parts`."""
    total = 0
    for k in range(len(parts)):
        total += parts[k].size
    return total


@compiled
def add_rows(rows, code, out):
    """out[code[r]] += rows[r]."""
    for r in range(len(rows)):
        to = code[r]
        for j in range(rows.shape[1]):
            out[to, j] += rows[r, j]


@compiled
def through(x, known, code, at, first, network, kept):
    """Forward of rows `x` through the layers without head. Results are written to `kept` from row
    `at` on; `first` is the index of x[0] among all rows, for dropout's hash."""
    weights, shifts, _, _, (keys, keep, scale, _) = network
    normed, left, factor = kept
    end = at + len(x)
    for k in range(len(weights)):
        rows, out = normed[k][at:end], left[k][at:end]
        if known and k == 0:
            rows[:] = x
        else:
            product(left[k - 1][at:end] if k else x, weights[k], False, True, False, rows)
        normalise(rows, shifts[k], code, factor[k][at:end])
        key = np.uint32(keys[k] + np.uint32(first * rows.shape[1]))
        drop(rows, key, keep, scale, out)


@compiled
def ahead(hidden, network, out):
    """Writes the head's output for `hidden`, the output of the layers."""
    _, _, head, bias, _ = network
    product(hidden, head, False, True, False, out)
    for r in range(len(out)):
        for j in range(len(bias)):
            out[r, j] += bias[j]


@compiled
def behind(grad, hidden, network, trains, values):
    """Gradient for the head's input `hidden`, from that (`grad`) for its output. If `trains`, adds
    those for `head` and `bias` to `values`."""
    weights, shifts, head, bias, _ = network
    above = np.empty((len(grad), head.shape[1]), np.float32)
    product(grad, head, False, False, False, above)
    if trains:
        own = values[size(shifts) + size(weights) :]
        product(grad, hidden, True, False, True, own[: head.size].reshape(head.shape))
        of_bias = own[head.size :]
        for r in range(len(grad)):
            for j in range(len(bias)):
                of_bias[j] += grad[r, j]
    return above


@compiled
def back(above, x, known, code, at, network, kept, trains, shifts_train, wanted, values):
    """Backward of `through`: gradient for `x`, from that (`above`) for the layers' output. If the
    network `trains`, or `shifts_train`, adds their gradients to `values`. The returned array is
    meaningful only if `wanted`."""
    weights, shifts, _, _, (_, _, scale, _) = network
    normed, left, factor = kept
    end = at + len(above)
    for i in range(len(weights)):
        k = len(weights) - 1 - i
        out = np.empty_like(above)
        layer = normed[k][at:end], left[k][at:end], scale, factor[k][at:end]
        grad_of_layer(above, *layer, out)
        if shifts_train:
            add_rows(out, code, place(shifts, k, values))
        if known and k == 0:
            return out
        if trains:
            below = left[k - 1][at:end] if k else x
            of_weight = place(weights, k, values[size(shifts) :])
            product(out, below, True, False, True, of_weight)
        if not wanted and k == 0:
            return out
        above = np.empty((len(out), weights[k].shape[1]), np.float32)
        product(out, weights[k], False, False, False, above)
    return above


@compiled
def chunks_of_network(first, last, x, known, code, network, kept, out):
    """Forward of chunks of rows `x`; the head's output, if there is a head, goes to `out`."""
    for chunk in range(first, last):
        a, b = rows_of(chunk, len(x))
        if a == b:
            continue
        through(x[a:b], known, code[a:b], a, a, network, kept)
        if len(network[3]):
            ahead(kept[1][len(network[0]) - 1][a:b], network, out[a:b])


@compiled
def groups_of_network_grad(
    first, last, grad, x, known, code, network, kept, trains, shifts_train, wanted, of_x, values
):  # fmt: skip
    """Backward of `chunks_of_network`, from the gradient `grad` for its output: writes the gradient
    for `x` to `of_x`, if `wanted`, and those for the network to `values` (groups × values)."""
    for group in range(first, last):
        values[group] = ZERO
        begin, end = chunks_of(group, len(grad))
        for chunk in range(begin, end):
            a, b = rows_of(chunk, len(grad))
            if a == b:
                continue
            above = grad[a:b]
            if len(network[3]):
                hidden = kept[1][len(network[0]) - 1][a:b]
                above = behind(above, hidden, network, trains, values[group])
            how = known, code[a:b], a, network, kept, trains, shifts_train, wanted, values[group]
            of_rows = back(above, x[a:b], *how)
            if wanted:
                of_x[a:b] = of_rows


@compiled
def network(threads, n, *given):
    """`chunks_of_network` on threads."""
    in_parts(chunks_of_network, n, threads, given)


@compiled
def network_grad(threads, n, *given):
    """`groups_of_network_grad` on threads."""
    in_parts(groups_of_network_grad, n, threads, given)
