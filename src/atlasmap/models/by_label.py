"""scANVI's loss of every label of a cell: one compiled pass, there and back (`label_kernels`)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atlasmap.models.counts_loss import has_products
from atlasmap.models.layers import GaussianHead
from atlasmap.models.random import Noise
from atlasmap.models.rectified import dropout

GROUPS = 4  # of labels, each with sums of its own: more cost memory, fewer leave threads idle


@dataclass(frozen=True)
class Rows:
    """Pairs of `label` and `cell` (int64), label by label: those of label y are from starts[y] to
    starts[y + 1]."""

    label: Tensor
    cell: Tensor
    starts: Tensor

    @classmethod
    def of(cls, chosen: Tensor) -> "Rows":
        """Those that are `chosen` (labels × cells, bool)."""
        return cls(*chosen.nonzero(as_tuple=True), F.pad(chosen.sum(1).cumsum(0), (1, 0)))

    @classmethod
    def of_all(cls, n_cells: int, n_labels: int, device: torch.device) -> "Rows":
        """Every label with every cell."""
        labels, cells = (torch.arange(n, device=device) for n in (n_labels + 1, n_cells))
        return cls(labels[:-1].repeat_interleave(n_cells), cells.repeat(n_labels), n_cells * labels)

    @property
    def bounds(self) -> np.ndarray:
        """Labels of each group, about as many rows in each."""
        starts = self.starts.numpy()
        return np.searchsorted(starts, np.linspace(0, starts[-1], GROUPS + 1)).astype(np.int64)


def compiles(z1: Tensor, *heads: GaussianHead) -> bool:
    """Whether there is a compiled pass for such values and networks."""
    normed = all(h.stack.layer_norm and not len(h.stack.norms) for h in heads)
    return normed and has_products(z1)


def parts_of(head: GaussianHead, n_labels: int) -> list[Tensor]:
    """Weights of each layer, what is added there (labels × outputs), and the last layer's."""
    layers = head.stack.layers
    shifts = [
        sum((table.reference for table in layer.tables), layer.bias.expand(n_labels, -1))
        for layer in layers
    ]
    return [*(layer.weight for layer in layers), *shifts, *head.last()]


def network(parts: tuple[Tensor, ...]) -> tuple:
    """(weights, shifts, head, bias) of `parts_of`."""
    *layers, head, bias = parts
    n = len(layers) // 2
    return tuple(layers[:n]), tuple(layers[n:]), head, bias


def pieces(flat: Tensor | np.ndarray, shapes: list[torch.Size]) -> list:
    """Those of `shapes` that follow each other in `flat`."""
    ends = np.cumsum([0, *(shape.numel() for shape in shapes)]).tolist()
    return [flat[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)]


class LabelLoss(torch.autograd.Function):
    """Σ share · (kl_weight · KL(q(z2 | z1, y)) − log p(z1 | z2, y)) over `rows`, and both terms of
    each row, of which no gradient is known. That of the sum is found on the way there, if it is
    wanted."""

    @staticmethod
    def forward(ctx, rows: Rows, noise, kl_weight: float, how: tuple, wanted: bool, z1, encoded,
                share, *parts):  # fmt: skip
        from atlasmap.models.label_kernels import labels
        from atlasmap.models.parts import side_by_side

        ctx.shapes, half = [part.shape for part in parts], len(parts) // 2
        parts = tuple(part.detach().contiguous() for part in parts)
        networks = tuple((*network(parts[k : k + half]), how[k > 0]) for k in (0, half))
        ctx.trains = wanted and any(ctx.needs_input_grad[8:])
        size = sum(shape.numel() for shape in ctx.shapes)
        sums = (np.zeros if ctx.trains else np.empty)((GROUPS, size), np.float32)
        of_groups = [pieces(of_group, ctx.shapes) for of_group in sums]
        of_networks = (
            tuple(network(tuple(of[k : k + half])) for of in of_groups) for k in (0, half)
        )
        of_cells = [x.new_zeros(GROUPS, *x.shape) for x in (z1, encoded)]
        log_density, kl = noise.new_empty(2, len(noise))
        cells = z1.contiguous(), encoded.contiguous(), rows.cell, rows.starts
        given = (
            rows.bounds,
            *cells,
            noise,
            share.contiguous(),
            np.float32(kl_weight),
            *networks,
            wanted,
            ctx.trains,
            log_density,
            kl,
        )
        side_by_side(labels, GROUPS, *given, *of_networks, *of_cells)
        each = kl_weight * kl - log_density
        of_parts = [torch.from_numpy(sums).sum(0)] if ctx.trains else []
        ctx.save_for_backward(*(of.sum(0) for of in of_cells), each, *of_parts)
        ctx.mark_non_differentiable(log_density, kl)
        return (share * each).sum(), log_density, kl

    @staticmethod
    def backward(ctx, upstream, *_):
        *of_cells, each = (upstream * slopes for slopes in ctx.saved_tensors[:3])
        of_parts = [upstream * slopes for slopes in ctx.saved_tensors[3:]]
        of_parts = pieces(*of_parts, ctx.shapes) if ctx.trains else [None] * len(ctx.shapes)
        return None, None, None, None, None, *of_cells, each, *of_parts


def keys_of(head: GaussianHead, noise: Noise | None) -> tuple:
    """Keys of a network's dropout, one a layer, what it keeps, its scale, and the variances'
    floor."""
    hows = [dropout(head.stack.dropout_rate, noise) for _ in head.stack.layers]
    return tuple(key for key, *_ in hows), *hows[0][1:], np.float32(head.floor)


def loss_by_label(
    encoder: GaussianHead, decoder: GaussianHead, rows: Rows, z1: Tensor, share: Tensor,
    kl_weight: float, noise: Noise | None, wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Σ share · (kl_weight · KL(q(z2 | z1, y)) − log p(z1 | z2, y)) over `rows` of cells of `z1`
    (cells × latent), where it `compiles`; and log p and KL of each row, without gradients.

    `encoder` is q(z2 | z1, y), `decoder` p(z1 | z2, y), `share` (rows) what each counts; `wanted`
    whether gradients will be asked for.
    """
    n_labels, first = len(rows.starts) - 1, keys_of(encoder, noise)
    values = z1.new_zeros(len(rows.cell), z1.shape[1])
    values = values if noise is None else noise.normal_like(values)
    how = first, keys_of(decoder, noise)
    first_weights, *parts = parts_of(encoder, n_labels) + parts_of(decoder, n_labels)
    encoded = F.linear(z1, first_weights)  # once, not for every label
    cells = z1, encoded, share, first_weights.detach()
    return LabelLoss.apply(rows, values, kl_weight, how, wanted, *cells, *parts)
