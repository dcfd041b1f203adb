"""Layers of a network as one operation: one compiled pass each way (`network_kernels`).

Each is a product, covariates' rows added, layer norm without weights, ReLU, and dropout, where
whether a value is dropped is a hash of its place and a key.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasmap.models.random import ALL, Noise


def has_products(x: Tensor) -> bool:
    """Whether there are compiled passes with matrix products for `x`: on a CPU in float32, where
    torch carries its BLAS."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    from atlasmap.models.products import CARRIED

    return CARRIED


def dropout(
    rate: float, n_layers: int, noise: Noise | None
) -> tuple[tuple[np.uint32, ...], np.uint32, np.float32]:
    """A key a layer, the largest hash that is kept, and what is kept is times this."""
    if noise is None or not noise.dropout or rate == 0:
        return (np.uint32(0),) * n_layers, ALL, np.float32(1)
    keep = np.uint32(round((1 - rate) * 2**32) - 1)
    return tuple(noise.key() for _ in range(n_layers)), keep, np.float32(1 / (1 - rate))


def network(parts: Sequence[Tensor], how: tuple) -> tuple:
    """(weights, shifts, head, bias, how) of parts (shifts, weights, head, bias), as arrays."""
    from atlasmap.models.parts import as_arrays

    *layers, head, bias = as_arrays([part.contiguous() for part in parts])
    n = len(layers) // 2
    return tuple(layers[n:]), tuple(layers[:n]), head, bias, how


def summed(values: Tensor, shapes: Sequence[torch.Size], times: Tensor | float = 1) -> list[Tensor]:
    """`times` the sum over groups of `values` (groups × values), as gradients of parts of these
    `shapes`."""
    found = (values.sum(0) * times).split([shape.numel() for shape in shapes])
    return [slopes.view(shape) for slopes, shape in zip(found, shapes, strict=True)]


class Network(torch.autograd.Function):
    """What a network makes of rows `x`, or of what its first layer's product makes of them, if that
    is `known`. Its `parts` are shifts, weights, head, and bias.
    """

    @staticmethod
    def forward(ctx, x, known: bool, code, how: tuple, *parts):
        from atlasmap.models.network_kernels import n_chunks
        from atlasmap.models.network_kernels import network as kernel
        from atlasmap.models.parts import as_arrays, side_by_side

        n, n_layers, n_out = x.shape[0], len(parts) // 2 - 1, parts[-1].shape[0]
        left, out = parts[0].new_empty(n_layers, n, parts[0].shape[1]), parts[0].new_empty(n, n_out)
        made = out if n_out else left[-1]
        ctx.save_for_backward(x, *parts, made)  # torch says if they are changed before the way back
        x, code = as_arrays((x.contiguous(), code))
        kept = np.empty(left.shape, np.float32), left.numpy(), np.empty((n_layers, n), np.float32)
        ctx.given = x, known, code, network(parts, how), kept
        ctx.shapes = [part.shape for part in parts]
        side_by_side(kernel, n_chunks.py_func(n), *ctx.given, out)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        from atlasmap.models.network_kernels import GROUPS, network_slopes
        from atlasmap.models.parts import side_by_side

        (x, _, *_, kept), _ = ctx.given, ctx.saved_tensors
        n_layers, wanted, needed = len(kept[0]), ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        trains, shifts_train = any(needed[n_layers:]), any(needed)
        shapes = ctx.shapes if trains else ctx.shapes[: n_layers * shifts_train]
        values = upstream.new_empty(GROUPS, sum(shape.numel() for shape in shapes))
        of_x = upstream.new_empty(x.shape if wanted else (0, 0))
        told = upstream.contiguous(), *ctx.given, trains, shifts_train, wanted
        side_by_side(network_slopes, GROUPS, *told, of_x, values)
        of_parts = summed(values, shapes) if shapes else []
        none = [None] * (len(needed) - len(of_parts))
        return of_x if wanted else None, None, None, None, *of_parts, *none
