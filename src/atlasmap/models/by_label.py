"""scANVI's loss of every label of a cell: one compiled pass, there and back (`label_kernels`)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasmap.models.layers import GaussianHead
from atlasmap.models.network import has_products, network, summed
from atlasmap.models.random import Noise


@dataclass(frozen=True)
class Rows:
    """Pairs of `label` and `cell` (int64), label by label."""

    label: Tensor
    cell: Tensor

    @classmethod
    def of(cls, chosen: Tensor) -> "Rows":
        """Those that are `chosen` (labels × cells, bool)."""
        return cls(*chosen.nonzero(as_tuple=True))

    @classmethod
    def of_all(cls, n_cells: int, n_labels: int, device: torch.device) -> "Rows":
        """Every label with every cell."""
        labels, cells = (torch.arange(n, device=device) for n in (n_labels, n_cells))
        return cls(labels.repeat_interleave(n_cells), cells.repeat(n_labels))


def compiles(z1: Tensor, *heads: GaussianHead) -> bool:
    """Whether there is a compiled pass for such values and networks."""
    return all(head.stack.is_plain for head in heads) and has_products(z1)


class LabelLoss(torch.autograd.Function):
    """Σ share · (kl_weight · KL(q(z2 | z1, y)) − log p(z1 | z2, y)) over `rows`; and, without
    gradients, Σ share · log p and Σ share · KL. The first one's gradient is found on the way there,
    if it is wanted. `parts` are those of both networks, `how` each one's."""

    @staticmethod
    def forward(ctx, rows: Rows, noise, kl_weight: float, how: tuple, wanted: bool, z1, encoded,
                share, *parts):  # fmt: skip
        from atlasmap.models.label_kernels import labels
        from atlasmap.models.network_kernels import GROUPS
        from atlasmap.models.parts import side_by_side

        half, ctx.trains = len(parts) // 2, wanted and any(ctx.needs_input_grad[8:])
        networks = network(parts[:half], how[0]), network(parts[half:], how[1])
        ctx.shapes = [part.shape for part in parts]
        n_values = ctx.trains * sum(shape.numel() for shape in ctx.shapes)
        slopes = [z1.new_empty(GROUPS, *shape) for shape in (z1.shape, encoded.shape, (n_values,))]
        log_density, kl = noise.new_empty(2, noise.shape[0])
        sums = noise.new_empty(GROUPS, 2, dtype=torch.float64)
        cells = z1.contiguous(), encoded.contiguous(), rows.cell, rows.label
        given = *cells, noise, share.contiguous(), np.float32(kl_weight), *networks
        side_by_side(labels, GROUPS, *given, wanted, ctx.trains, log_density, kl, sums, *slopes)
        ctx.save_for_backward(kl_weight * kl - log_density, *slopes)
        log_density, kl = sums.sum(0)
        terms = [term.float() for term in (kl_weight * kl - log_density, log_density, kl)]
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        each, *of_cells, values = ctx.saved_tensors
        of_parts = summed(values, ctx.shapes, upstream) if ctx.trains else [None] * len(ctx.shapes)
        of_cells = (upstream * slopes.sum(0) for slopes in of_cells)
        return None, None, None, None, None, *of_cells, upstream * each, *of_parts


def loss_by_label(
    encoder: GaussianHead, decoder: GaussianHead, rows: Rows, z1: Tensor, share: Tensor,
    kl_weight: float, noise: Noise | None, wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Σ share · (kl_weight · KL(q(z2 | z1, y)) − log p(z1 | z2, y)) over `rows` of cells of `z1`
    (cells × latent), where it `compiles`; and Σ share · log p and Σ share · KL, without gradients.

    `encoder` is q(z2 | z1, y), `decoder` p(z1 | z2, y), `share` (rows) what each counts; `wanted`
    whether gradients will be asked for.
    """
    in_encoder = encoder.stack.how(noise, encoder.floor)
    values = z1.new_zeros(len(rows.cell), z1.shape[1])
    values = values if noise is None else noise.normal_like(values)
    how = in_encoder, decoder.stack.how(noise, decoder.floor)
    encoded = encoder.stack.layers[0].product(z1)  # once, not for every label
    parts = [
        part
        for head, known in ((encoder, True), (decoder, False))
        for part in head.stack.parts((rows.label,), head.last(), known=known)[0]
    ]
    return LabelLoss.apply(rows, values, kl_weight, how, wanted, z1, encoded, share, *parts)
