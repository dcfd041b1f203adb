"""Kernels for the label-dependent terms of scANVI's loss, forward and backward, in float32.

A row is a pair of a cell and a label; rows are sorted by label. They are processed in chunks that
stay in the L2 cache from the first layer until their gradients are computed. For `network`, `kept`,
`values`, chunks and groups see `network_kernels`.
"""

import numpy as np

from atlasmap.models.compiled.arithmetic import ZERO
from atlasmap.models.compiled.cache import compiled
from atlasmap.models.compiled.network_kernels import (
    ahead,
    back,
    behind,
    chunks_of,
    rows_of,
    size,
    through,
)
from atlasmap.models.compiled.normal_kernels import (
    rows_of_density,
    rows_of_density_grad,
    rows_of_draw,
    rows_of_draw_grad,
)
from atlasmap.models.compiled.threads import in_parts


@compiled
def room(n, network):
    """Allocates `kept` for `n` rows."""
    shape = len(network[0]), n, network[2].shape[1]
    return np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape[:2], np.float32)


@compiled
def taken(values, cell):
    """values[cell]."""
    out = np.empty((len(cell), values.shape[1]), np.float32)
    for r in range(len(cell)):
        source = cell[r]
        for j in range(values.shape[1]):
            out[r, j] = values[source, j]
    return out


@compiled
def give(rows, sign, cell, out):
    """out[cell[r]] += sign · rows[r]."""
    for r in range(len(cell)):
        to = cell[r]
        for j in range(out.shape[1]):
            out[to, j] += sign * rows[r, j]


@compiled
def packed_of(x, known, y, first, network, kept):
    """Output of `network` for rows `x` of labels `y`: packed normals."""
    through(x, known, y, 0, first, network, kept)
    out = np.empty((len(x), len(network[3])), np.float32)
    ahead(kept[1][len(network[0]) - 1], network, out)
    return out


@compiled
def grad_of_packed(grad, x, known, y, network, kept, trains, values):
    """Backward of `packed_of`: gradient for `x`, from that (`grad`) for its output. If `trains`,
    adds those for the network to `values`."""
    above = behind(grad, kept[1][len(network[0]) - 1], network, trains, values)
    return back(above, x, known, y, 0, network, kept, trains, trains, True, values)


@compiled
def groups_of_labels(
    first, last, z1, encoded, cell, label, noise, share, kl_weight, encoder, decoder, grad,
    trains, log_density, kl, sums, of_z1, of_encoded, values,
):  # fmt: skip
    """Writes log p(z1 | z2, y) and KL(q(z2 | z1, y)) per row to `log_density` and `kl`, and their
    sums weighted by `share` to `sums` (groups × 2, float64). `encoded`: W z1 + b of the encoder's
    first layer.

    If `grad`, writes the gradients of Σ share · (kl_weight · kl − log_density), one array per
    group: for z1 as the argument of log p (`of_z1`), for `encoded` (`of_encoded`) and, if the
    networks train (`trains`), for the encoder and then the decoder (`values`).
    """
    cut = size(encoder[0]) + size(encoder[1]) + encoder[2].size + encoder[3].size if trains else 0
    for group in range(first, last):
        of_z1[group], of_encoded[group], values[group], sums[group] = ZERO, ZERO, ZERO, ZERO
        begin, end = chunks_of(group, len(cell))
        for chunk in range(begin, end):
            a, b = rows_of(chunk, len(cell))
            n, here, cells, y = b - a, noise[a:b], cell[a:b], label[a:b]
            if n == 0:
                continue
            x, start, none = taken(z1, cells), taken(encoded, cells), np.zeros(n, np.float32)
            var, z2 = np.empty_like(here), np.empty_like(here)
            in_encoder, in_decoder = room(n, encoder), room(n, decoder)
            packed = packed_of(start, True, y, a, encoder, in_encoder)
            rows_of_draw(0, n, packed, here, encoder[4][3], var, z2, kl[a:b], none)
            packed_z1 = packed_of(z2, False, y, a, decoder, in_decoder)
            rows_of_density(0, n, x, packed_z1, decoder[4][3], log_density[a:b])
            for r in range(a, b):
                sums[group, 0] += share[r] * log_density[r]
                sums[group, 1] += share[r] * kl[r]
            if not grad:
                continue
            of_packed, of_density, none = np.empty_like(packed), -share[a:b], np.zeros_like(none)
            of_kl = kl_weight * share[a:b]
            rows_of_density_grad(0, n, of_density, x, packed_z1, decoder[4][3], of_packed)
            give(of_packed, -1, cells, of_z1[group])
            how = y, decoder, in_decoder, trains, values[group][cut:]
            of_z2 = grad_of_packed(of_packed, z2, False, *how)
            drawn = packed, here, var, encoder[4][3]
            rows_of_draw_grad(0, n, of_z2, of_kl, none, *drawn, of_packed)
            how = y, encoder, in_encoder, trains, values[group][:cut]
            of_start = grad_of_packed(of_packed, start, True, *how)
            give(of_start, 1, cells, of_encoded[group])


@compiled
def labels(threads, n, *given):
    """`groups_of_labels` on threads."""
    in_parts(groups_of_labels, n, threads, given)
