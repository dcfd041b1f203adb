"""Fused forward and backward of a network's layers: `ops.network` (kernels: `network_kernels`).

Dropout is decided by a hash of a value's index and a random key per layer, so that no mask is
stored.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasmap.models.compiled import network_kernels as kernels
from atlasmap.models.compiled.network_kernels import ALL, GROUPS
from atlasmap.models.compiled.threads import as_arrays, side_by_side
from atlasmap.models.operands import Layers
from atlasmap.models.random import Noise


def dropout(
    rate: float, n_layers: int, noise: Noise | None
) -> tuple[tuple[np.uint32, ...], np.uint32, np.float32]:
    """Returns (a key per layer, the largest hash that is kept, the scale of kept values)."""
    if noise is None or not noise.dropout or rate == 0:
        return (np.uint32(0),) * n_layers, ALL, np.float32(1)
    keep = np.uint32(round((1 - rate) * 2**32) - 1)
    keys = (torch.randint(2**32, (), generator=noise.generator).item() for _ in range(n_layers))
    return tuple(map(np.uint32, keys)), keep, np.float32(1 / (1 - rate))


def how(layers: Layers, noise: Noise | None) -> tuple:
    """Returns (dropout keys, largest hash kept, scale, floor of the variances), for the kernels."""
    return *dropout(layers.dropout_rate, len(layers.weights), noise), np.float32(layers.floor)


def parts(layers: Layers, *, known: bool) -> list[Tensor]:
    """Tensor arguments of `Network`: per-layer shifts, i.e. bias + table (categories × width, or
    cells × width with several covariates), weights, and the head's weight and bias (with no
    outputs if there is no head)."""
    weights, rows = list(layers.weights), layers.tables[0]
    n = 1 if rows is None else len(rows)
    shifts = [bias.expand(n, -1) if table is None else bias + table
              for bias, table in zip(layers.biases, layers.tables, strict=True)]  # fmt: skip
    if known:  # the given product includes the bias
        weights[0] = weights[0].new_empty(0, 0)
        shifts[0] = torch.zeros_like(shifts[0]) if rows is None else rows
    none = weights[0].new_empty(0, shifts[0].shape[1])
    return [*shifts, *weights, *(layers.head or (none, none[:, 0]))]


def check_fits(x: Tensor, weight: Tensor, code: Tensor, rows: Tensor, *, known: bool) -> None:
    """Raises ValueError or IndexError if dtype, width or codes do not fit, since kernels check no
    bounds. Codes are compared as uint64, in which negative ones are too large."""
    width = weight.shape[0 if known else 1]
    if (x.dtype, x.shape[1]) != (weight.dtype, width):
        raise ValueError(f"{x.shape[1]} {x.dtype} values a row for {width} of {weight.dtype}")
    if len(code) and code.numpy().view(np.uint64).max() >= len(rows):
        raise IndexError(f"codes from {code.min()} to {code.max()} for {len(rows)} rows")


def arrays(parts: Sequence[Tensor], how: tuple) -> tuple:
    """Converts `parts` (shifts, weights, head, bias) to the kernels' argument: numpy arrays in a
    tuple (weights, shifts, head, bias, how)."""
    *layers, head, bias = as_arrays([part.contiguous() for part in parts])
    n = len(layers) // 2
    return tuple(layers[n:]), tuple(layers[:n]), head, bias, how


def summed(values: Tensor, shapes: Sequence[torch.Size], times: Tensor | float = 1) -> list[Tensor]:
    """Gradients of the parts of these `shapes`: `values` (groups × all values), summed over groups,
    multiplied by `times` and split."""
    found = (values.sum(0) * times).split([shape.numel() for shape in shapes])
    return [grad.view(shape) for grad, shape in zip(found, shapes, strict=True)]


class Network(torch.autograd.Function):
    """Applies the network with these `parts` to rows `x`. `known`: `x` is the first layer's product
    W x + b; `code`: each row's row of the shifts; `how`: see `how()`."""

    @staticmethod
    def forward(ctx, x, known: bool, code, how: tuple, *parts):
        n, n_layers, n_out = x.shape[0], len(parts) // 2 - 1, parts[-1].shape[0]
        left, out = parts[0].new_empty(n_layers, n, parts[0].shape[1]), parts[0].new_empty(n, n_out)
        made = out if n_out else left[-1]
        ctx.save_for_backward(x, *parts, made)  # detects in-place changes before backward
        x, code = as_arrays((x.contiguous(), code))
        kept = np.empty(left.shape, np.float32), left.numpy(), np.empty((n_layers, n), np.float32)
        ctx.given = x, known, code, arrays(parts, how), kept
        ctx.shapes = [part.shape for part in parts]
        side_by_side(kernels.network, kernels.n_chunks.py_func(n), *ctx.given, out)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (x, _, *_, kept), _ = ctx.given, ctx.saved_tensors
        n_layers, wanted, needed = len(kept[0]), ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        trains, shifts_train = any(needed[n_layers:]), any(needed)
        shapes = ctx.shapes if trains else ctx.shapes[: n_layers * shifts_train]
        values = upstream.new_empty(GROUPS, sum(shape.numel() for shape in shapes))
        of_x = upstream.new_empty(x.shape if wanted else (0, 0))
        told = upstream.contiguous(), *ctx.given, trains, shifts_train, wanted
        side_by_side(kernels.network_grad, GROUPS, *told, of_x, values)
        of_parts = summed(values, shapes) if shapes else []
        none = [None] * (len(needed) - len(of_parts))
        return of_x if wanted else None, None, None, None, *of_parts, *none


def network(
    x: Tensor, layers: Layers, code: Tensor | None, noise: Noise | None, *, known: bool = False
) -> Tensor:
    """As `ops.network`, for layers that `have_faster`."""
    own, rows = parts(layers, known=known), x.reshape(-1, x.shape[-1])
    if code is None:
        one = layers.tables[0] is None
        code = torch.zeros(len(rows), dtype=torch.long) if one else torch.arange(len(rows))
    check_fits(rows, layers.weights[0], code, own[0], known=known)
    out = Network.apply(rows, known, code, how(layers, noise), *own)
    return out.view(*x.shape[:-1], out.shape[-1])
