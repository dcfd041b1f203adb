"""What scANVI does for every label of a cell, there and back, on a CPU in float32 (as `kernels`).

Rows of cells are grouped by label y: those of label y are from starts[y] to starts[y + 1]. They
stay in the second cache from the first layer until their gradients are known. Labels go to threads
in groups, which do not depend on how many threads there are, and so neither do sums.

A network is `weights` (a tuple of outputs × inputs) with `shifts` (labels × outputs: biases and
labels' rows), each followed by layer norm, ReLU and dropout; then `head` and `bias`; and how: keys
of the dropout, one a layer, what it keeps, its scale, and the variances' floor.
"""

import numpy as np

from atlasmap.models.kernels import compiled, rows_of_rectify, rows_of_rectify_slopes
from atlasmap.models.normal_kernels import (
    rows_of_density,
    rows_of_density_slopes,
    rows_of_draw,
    rows_of_draw_slopes,
)
from atlasmap.models.parts import in_parts
from atlasmap.models.products import product


@compiled
def through(x, known, y, first, network):
    """Rows `x` of label y through a network: its result (rows × 2 width), and of each layer what
    the way back needs: rows before and after, their means and inverse deviations.

    If it is `known`, `x` is already what the first weights make of the rows. `first` is the first
    row's place among those of all labels.
    """
    weights, shifts, head, bias, (keys, keep, scale, _) = network
    width = head.shape[1]
    layers = np.empty((2, len(weights), len(x), width), np.float32)
    before, after = layers[0], layers[1]
    moments = np.empty((2, len(weights), len(x)), np.float32)
    for k in range(len(weights)):
        if known and k == 0:
            before[0][:] = x
        else:
            product(after[k - 1] if k else x, weights[k], False, True, False, before[k])
        key = np.uint32(keys[k] + np.uint32(first * width))
        kept = after[k], moments[0, k], moments[1, k]
        rows_of_rectify(0, len(x), before[k], shifts[k][y : y + 1], key, keep, scale, *kept)
    packed = np.empty((len(x), len(bias)), np.float32)
    product(after[len(weights) - 1], head, False, True, False, packed)
    for r in range(len(x)):
        for j in range(len(bias)):
            packed[r, j] += bias[j]
    return packed, (before, after, moments)


@compiled
def add_rows(rows, out):
    """Add the sum of rows."""
    for r in range(len(rows)):
        for j in range(len(out)):
            out[j] += rows[r, j]


@compiled
def back(slopes, x, known, y, network, kept, trains, of):
    """Gradient for `x` of what `through` made of it, from that of its result. If the network
    `trains`, those of its parts are added to `of` (but of the first weights if `x` is `known`)."""
    weights, shifts, head, _, (_, _, scale, _) = network
    of_weights, of_shifts, of_head, of_bias = of
    before, after, moments = kept
    above = np.empty((len(x), head.shape[1]), np.float32)
    product(slopes, head, False, False, False, above)
    if trains:
        product(slopes, after[len(weights) - 1], True, False, True, of_head)
        add_rows(slopes, of_bias)
    for i in range(len(weights)):
        k = len(weights) - 1 - i
        below, out = above, np.empty_like(above)
        layer = before[k], shifts[k][y : y + 1], after[k], scale, moments[0, k], moments[1, k]
        rows_of_rectify_slopes(0, len(x), below, *layer, out)
        if trains:
            add_rows(out, of_shifts[k][y])
        if known and k == 0:
            return out
        if trains:
            product(out, after[k - 1] if k else x, True, False, True, of_weights[k])
        above = np.empty((len(x), weights[k].shape[1]), np.float32)
        product(out, weights[k], False, False, False, above)
    return above


@compiled
def taken(values, cell):
    """Rows that `cell` names."""
    out = np.empty((len(cell), values.shape[1]), np.float32)
    for r in range(len(cell)):
        for j in range(values.shape[1]):
            out[r, j] = values[cell[r], j]
    return out


@compiled
def give(rows, sign, cell, out):
    """Add rows, times `sign`, to those that `cell` names."""
    for r in range(len(cell)):
        for j in range(out.shape[1]):
            out[cell[r], j] += sign * rows[r, j]


@compiled
def groups_of_labels(
    first, last, bounds, z1, encoded, cell, starts, noise, share, kl_weight, encoder, decoder,
    slopes, trains, log_density, kl, of_encoder, of_decoder, of_z1, of_encoded,
):  # fmt: skip
    """log p(z1 | z2, y) and KL(q(z2 | z1, y)) of each row into `log_density` and `kl`; group g has
    labels bounds[g] to bounds[g + 1]. `encoded` is what the encoder's first weights make of z1.

    If `slopes` are wanted, gradients of Σ share · (kl_weight · kl − log_density) for z1 (as the
    decoder's result is compared with it), for `encoded` and, if they train, the networks are added
    to what is there: an array of each group.
    """
    for group in range(first, last):
        for y in range(bounds[group], bounds[group + 1]):
            a, b = starts[y], starts[y + 1]
            n, here, cells = b - a, noise[a:b], cell[a:b]
            if n == 0:
                continue
            x, start, none = taken(z1, cells), taken(encoded, cells), np.zeros(n, np.float32)
            var, z2 = np.empty_like(here), np.empty_like(here)
            packed, in_encoder = through(start, True, y, a, encoder)
            rows_of_draw(0, n, packed, here, encoder[4][3], var, z2, kl[a:b], none)
            packed_z1, in_decoder = through(z2, False, y, a, decoder)
            rows_of_density(0, n, x, packed_z1, decoder[4][3], log_density[a:b])
            if not slopes:
                continue
            of_packed, of_density, none = np.empty_like(packed), -share[a:b], np.zeros_like(none)
            of_kl = kl_weight * share[a:b]
            rows_of_density_slopes(0, n, of_density, x, packed_z1, decoder[4][3], of_packed)
            give(of_packed, -1, cells, of_z1[group])
            of_z2 = back(of_packed, z2, False, y, decoder, in_decoder, trains, of_decoder[group])
            drawn = packed, here, var, encoder[4][3]
            rows_of_draw_slopes(0, n, of_z2, of_kl, none, *drawn, of_packed)
            of = of_encoder[group]
            of_start = back(of_packed, start, True, y, encoder, in_encoder, trains, of)
            give(of_start, 1, cells, of_encoded[group])


@compiled
def labels(threads, n, *given):
    """`groups_of_labels` on threads."""
    in_parts(groups_of_labels, n, threads, given)
