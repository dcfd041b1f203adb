"""A classifier of latent positions, in the three forms that scANVI has had."""

import torch
from torch import Tensor, nn

from atlasmap.models.layers import Linear, Stack
from atlasmap.models.random import Noise
from atlasmap.settings import Variant


class Classifier(nn.Module):
    """Latent → one value a label: logits, or probabilities for `prefix`.

    `stack` is what comes before the last layer, `width` how wide that is.
    """

    def __init__(
        self, stack: Stack, width: int, n_labels: int, variant: Variant, rng: torch.Generator
    ):
        super().__init__()
        self.variant, self.stack = variant, stack
        self.out = Linear(width, n_labels, rng)

    def forward(self, z: Tensor, noise: Noise | None) -> Tensor:
        """`z` cells × latent → what cross-entropy is given, cells × labels."""
        out = self.stack(z, (), noise, (self.out.weight, self.out.bias))
        return torch.softmax(out, -1) if self.variant == "prefix" else out

    def probabilities(self, out: Tensor) -> Tensor:
        """Label probabilities of what `forward` gave."""
        return out if self.variant == "prefix" else torch.softmax(out, -1)
