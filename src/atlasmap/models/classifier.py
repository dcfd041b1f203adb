"""Classifier of latent positions, in the three variants that scANVI has had."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlasmap.models.layers import Linear, Stack
from atlasmap.models.random import Noise
from atlasmap.settings import Variant

LEAST = 1e-20  # lower bound of the summed probability of the labels that a cell may have


class Classifier(nn.Module):
    """Latent → one value per label: logits, or probabilities for `prefix`.

    `stack`: the hidden layers; `width`: their output width.
    """

    def __init__(
        self, stack: Stack, width: int, n_labels: int, variant: Variant, rng: torch.Generator
    ):
        super().__init__()
        self.variant, self.stack = variant, stack
        self.out = Linear(width, n_labels, rng)

    def forward(self, z: Tensor, noise: Noise | None) -> Tensor:
        """`z` (cells × latent) → the input of cross-entropy (cells × labels)."""
        out = self.stack(z, (), noise, (self.out.weight, self.out.bias))
        return torch.softmax(out, -1) if self.variant == "prefix" else out

    def probabilities(self, out: Tensor, may_be: Tensor | None = None) -> Tensor:
        """Label probabilities (cells × labels) from the output of `forward`, restricted to the
        labels that each cell `may_be` (cells × labels, bool; None: all)."""
        if self.variant != "prefix":
            return torch.softmax(
                out if may_be is None else out.masked_fill(~may_be, -torch.inf), -1
            )
        if may_be is None:
            return out
        own = out * may_be
        return own / own.sum(-1, keepdim=True).clamp_min(LEAST)


def cross_entropy(out: Tensor, labels: Tensor, may_be: Tensor | None = None) -> Tensor:
    """Mean over cells of −log p(label), from a classifier's output `out` (cells × labels). For a
    cell labelled with an ancestor in the label tree: −log Σ p over the labels that the cell
    `may_be` (cells × labels, bool)."""
    if may_be is None:
        return F.cross_entropy(out, labels)
    n = out.shape[1]
    own = out.gather(1, labels.clamp(max=n - 1)[:, None]).squeeze(1)
    below = out.masked_fill(~may_be, -torch.inf).logsumexp(1)
    return (out.logsumexp(1) - torch.where(labels < n, own, below)).mean()


def is_right(predicted: Tensor, labels: Tensor, may_be: Tensor | None = None) -> Tensor:
    """Whether each cell's predicted label is its own or a descendant of it (cells, bool)."""
    if may_be is None:
        return predicted == labels
    below = may_be.gather(1, predicted[:, None]).squeeze(1)
    return torch.where(labels < may_be.shape[1], predicted == labels, below)
