"""Layers of a network, row by row, there and back, on a CPU in float32.

A network is `weights` (a tuple of outputs × inputs, all the same width) with `shifts` (tables of
categories × width, a row of which is added), each followed by layer norm, ReLU and dropout; then
`head` and `bias` (of no outputs if there are none); and how: keys of the dropout, one a layer, what
it keeps, its scale, and the variances' floor. Where the first product is `known`, it is given
instead of the rows, and the first weights are of no size.

Of each layer (layers × rows × width) the way back needs `normed`, which layer norm leaves, and
`left`, which ReLU and dropout leave, with the norm's `factor` of each row.

Rows go to threads in chunks about as large as each other, and gradients of what trains are summed
in groups of chunks; neither depends on how many threads there are, and so neither do sums. Those of
one network lie together (values): shifts, weights, head, bias.
"""

import numpy as np

from atlasmap.models.compiled.arithmetic import ONE, ZERO
from atlasmap.models.compiled.blas import product
from atlasmap.models.compiled.cache import compiled, inlined
from atlasmap.models.compiled.threads import in_parts

VARIANCE_EPS = np.float32(1e-5)  # of layer norm
ROWS = 128  # of a chunk at most, which then stays in the second cache
ALL = np.uint32(0xFFFFFFFF)  # the largest of 32 bits
GROUPS = 4  # with sums of their own: more cost memory, fewer leave threads idle


@inlined
def n_chunks(n):
    """Chunks of `n` rows: as many in each group."""
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
    """A bijection of 32 bits that leaves no pattern (lowbias32, Wellons 2018)."""
    h = np.uint32(place ^ (place >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@compiled
def normalise(rows, shift, code, factor):
    """Layer norm, in their place, of `rows` and what is added to each: the row of `shift` that
    `code` names."""
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
    """ReLU of `rows`; of dropout a value is kept where the hash of its place and `key` is at most
    `keep` (of ALL, everywhere), and times `scale`."""
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
    """Gradient for what was normalised, from that (`above`) for what is `left`: what is not zero
    there was kept."""
    width, part = normed.shape[1], ONE / np.float32(normed.shape[1])
    for r in range(len(normed)):
        total, along = ZERO, ZERO
        for j in range(width):
            slope = above[r, j] * scale if left[r, j] != ZERO else ZERO
            total += slope
            along += slope * normed[r, j]
        total, along = total * part, along * part  # a quotient would be taken for each value
        for j in range(width):
            slope = above[r, j] * scale if left[r, j] != ZERO else ZERO
            out[r, j] = factor[r] * (slope - total - normed[r, j] * along)


@inlined
def place(parts, k, values):
    """Part k of those that lie in `values` one after the other."""
    start = 0
    for i in range(k):
        start += parts[i].size
    return values[start : start + parts[k].size].reshape(parts[k].shape)


@inlined
def size(parts):
    """Values of all."""
    total = 0
    for k in range(len(parts)):
        total += parts[k].size
    return total


@compiled
def add_rows(rows, code, out):
    """Add rows to those that `code` names."""
    for r in range(len(rows)):
        to = code[r]
        for j in range(rows.shape[1]):
            out[to, j] += rows[r, j]


@compiled
def through(x, known, code, at, first, network, kept):
    """Rows `x` through the layers; what the way back needs is `kept` from row `at` on. `first` is
    the first row's place among all, for dropout."""
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
    """The last layer's values."""
    _, _, head, bias, _ = network
    product(hidden, head, False, True, False, out)
    for r in range(len(out)):
        for j in range(len(bias)):
            out[r, j] += bias[j]


@compiled
def behind(grad, hidden, network, trains, values):
    """Gradient for what the last layer was given, from that for its values. If the network
    `trains`, those of head and bias are added to `values`."""
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
    """Gradient for rows `x`, if it is `wanted`, from that (`above`) for what the layers left of
    them. If the network `trains`, or its shifts do, theirs are added to `values`."""
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
    """Chunks of rows `x` through a network, to `out` if it has a last layer."""
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
    """Gradient for `x`, if it is `wanted`, from that for what `chunks_of_network` made of it
    (`grad`); those for the network into `values` (groups × values)."""
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
