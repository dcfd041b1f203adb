"""Label-dependent terms of scANVI's loss, forward and backward in one pass: `ops.label_loss`
(kernels: `label_kernels`)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atlasmap.models.compiled import label_kernels as kernels
from atlasmap.models.compiled.network import arrays, how, parts, summed
from atlasmap.models.compiled.network_kernels import GROUPS
from atlasmap.models.compiled.threads import side_by_side
from atlasmap.models.operands import Layers
from atlasmap.models.random import Noise

NEGLIGIBLE = 1e-6  # label probability; the error of the gradient stays below 1e-5


@dataclass(frozen=True)
class Rows:
    """Pairs of `label` and `cell` indices (int64), sorted by label."""

    label: Tensor
    cell: Tensor

    @classmethod
    def of(cls, chosen: Tensor) -> "Rows":
        """The pairs that are True in `chosen` (labels × cells)."""
        return cls(*chosen.nonzero(as_tuple=True))

    @classmethod
    def of_all(cls, n_cells: int, n_labels: int, device: torch.device) -> "Rows":
        """All pairs of a label and a cell."""
        labels, cells = (torch.arange(n, device=device) for n in (n_labels, n_cells))
        return cls(labels.repeat_interleave(n_cells), cells.repeat(n_labels))


class LabelLoss(torch.autograd.Function):
    """Returns Σ share · (kl_weight · KL(q(z2 | z1, y)) − log p(z1 | z2, y)) over `rows`, and,
    without gradients, Σ share · log p and Σ share · KL. The gradient is computed in forward (if
    `wanted`) and scaled in backward. `share`: label probability per row; `encoded`: W z1 + b of the
    encoder's first layer; `parts`, `how`: those of the encoder, then of the decoder."""

    @staticmethod
    def forward(ctx, rows: Rows, noise, kl_weight: float, how: tuple, wanted: bool, z1, encoded,
                share, *parts):  # fmt: skip
        half, ctx.trains = len(parts) // 2, wanted and any(ctx.needs_input_grad[8:])
        networks = arrays(parts[:half], how[0]), arrays(parts[half:], how[1])
        ctx.shapes = [part.shape for part in parts]
        n_values = ctx.trains * sum(shape.numel() for shape in ctx.shapes)
        grad = [z1.new_empty(GROUPS, *shape) for shape in (z1.shape, encoded.shape, (n_values,))]
        log_density, kl = noise.new_empty(2, noise.shape[0])
        sums = noise.new_empty(GROUPS, 2, dtype=torch.float64)
        cells = z1.contiguous(), encoded.contiguous(), rows.cell, rows.label
        given = *cells, noise, share.contiguous(), np.float32(kl_weight), *networks
        side_by_side(
            kernels.labels, GROUPS, *given, wanted, ctx.trains, log_density, kl, sums, *grad
        )
        ctx.save_for_backward(kl_weight * kl - log_density, *grad)
        log_density, kl = sums.sum(0)
        terms = [term.float() for term in (kl_weight * kl - log_density, log_density, kl)]
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        each, *of_cells, values = ctx.saved_tensors
        of_parts = summed(values, ctx.shapes, upstream) if ctx.trains else [None] * len(ctx.shapes)
        of_cells = (upstream * grad.sum(0) for grad in of_cells)
        return None, None, None, None, None, *of_cells, upstream * each, *of_parts


def label_loss(
    encoder: Layers, decoder: Layers, z1: Tensor, probs: Tensor, kl_weight: float,
    noise: Noise | None, *, frozen: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `ops.label_loss`, for layers that `have_faster`.

    If the classifier is `frozen` (surgery), labels of negligible probability are left out. They
    matter while it trains: the gradient of a confident cell comes from its small probabilities.
    """
    wanted = torch.is_grad_enabled()
    if wanted and frozen:
        rows = Rows.of(probs.T > NEGLIGIBLE)
        share = probs.T[rows.label, rows.cell]
    else:
        rows, share = Rows.of_all(*probs.shape, z1.device), probs.T.flatten()
    in_encoder = how(encoder, noise)
    values = z1.new_zeros(len(rows.cell), z1.shape[1])
    values = values if noise is None else noise.normal_like(values)
    both = in_encoder, how(decoder, noise)
    # The first product does not depend on the label: computed once per cell.
    encoded = F.linear(z1, encoder.weights[0], encoder.biases[0])
    own = *parts(encoder, known=True), *parts(decoder, known=False)
    return LabelLoss.apply(rows, values, kl_weight, both, wanted, z1, encoded, share, *own)
