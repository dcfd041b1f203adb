"""scANVI (Xu et al. 2021, Mol. Syst. Biol. 17:e9620) with its three classifiers.

`prefix` is the behaviour before scvi-tools 1.1 (softmax outputs fed to cross-entropy as logits),
`fixed` an MLP on logits, `linear` one linear layer on logits.
"""

import torch
from torch import Tensor, nn

from atlasmap.models import ops
from atlasmap.models.classifier import Classifier, cross_entropy
from atlasmap.models.layers import GaussianHead, Stack
from atlasmap.models.operands import Layers
from atlasmap.models.random import Noise
from atlasmap.models.scvi import Scvi
from atlasmap.models.vae import (
    Loss,
    Minibatch,
    Posterior,
    elbo_sums,
)
from atlasmap.settings import Variant

CLAMP = 1.1920929e-07  # float32's epsilon: torch's Categorical clamps probabilities to [ε, 1 − ε]


class Scanvi(nn.Module):
    """scVI with a hierarchical prior p(z1 | z2, y) of its latent z1 and a classifier q(y | z1)."""

    def __init__(self, scvi: Scvi, variant: Variant, n_labels: int, rng: torch.Generator):
        super().__init__()
        settings = scvi.settings
        self.scvi, self.variant, self.n_labels = scvi, variant, n_labels
        widths = [settings.n_hidden] * settings.n_layers
        stack_of_classifier = Stack(
            settings.n_latent, [] if variant == "linear" else widths, (), rng,
            batch_norm=settings.use_batch_norm in ("encoder", "both"),
            layer_norm=settings.use_layer_norm in ("encoder", "both"),
            dropout_rate=settings.dropout_rate,
        )  # fmt: skip
        width = settings.n_latent if variant == "linear" else settings.n_hidden
        self.classifier = Classifier(stack_of_classifier, width, n_labels, variant, rng)
        size = (settings.n_hidden, settings.n_latent)

        def stack(part: str, dropout_rate: float) -> Stack:
            return Stack(
                settings.n_latent, widths, (n_labels,), rng,
                batch_norm=settings.use_batch_norm in (part, "both"),
                layer_norm=settings.use_layer_norm in (part, "both"),
                dropout_rate=dropout_rate, labels=True,
            )  # fmt: skip

        self.encoder_z2 = GaussianHead(stack("encoder", settings.dropout_rate), *size, 1e-4, rng)
        self.decoder_z1 = GaussianHead(stack("decoder", 0.0), *size, 0.0, rng)

    @property
    def shape(self):
        """Sizes set by the data, of the scVI inside."""
        return self.scvi.shape

    @property
    def label_networks(self) -> tuple[Layers, Layers]:
        """q(z2 | z1, y) and p(z1 | z2, y); their tables have one row per label y."""
        every = (torch.arange(self.n_labels, device=self.classifier.out.weight.device),)
        return self.encoder_z2.operands(every), self.decoder_z1.operands(every)

    def kl_labels(self, probs: Tensor, may_be: Tensor | None = None) -> Tensor:
        """KL(q(y | z1) ‖ uniform) per cell, uniform over the labels that the cell `may_be` (None:
        over all). Probabilities are clamped as torch's Categorical does."""
        probs = probs / probs.sum(-1, keepdim=True)
        logs = probs.clamp(CLAMP, 1 - CLAMP).log()
        if may_be is None:
            prior = torch.full((), 1 / self.n_labels, device=probs.device)
        else:
            prior = 1 / may_be.sum(-1, keepdim=True)
        return (probs * (logs - prior.clamp(CLAMP, 1 - CLAMP).log())).sum(-1)

    def loss(self, cells: Minibatch, noise: Noise | None, kl_weight: float) -> Loss:
        """The unlabelled loss (eq. 4 of the paper) of all cells, labelled ones included. The sum
        over y takes all labels; for a cell labelled with an ancestor, the labels below it."""
        posterior = self.scvi.inference(cells, noise)
        out = self.classifier(posterior.z, noise)
        return self.loss_of(cells, posterior, out, noise, kl_weight)

    def loss_of(
        self, cells: Minibatch, posterior: Posterior, out: Tensor, noise: Noise | None,
        kl_weight: float,
    ) -> Loss:  # fmt: skip
        """`loss`, given q(z1 | x) and the classifier's output `out` (cells × labels)."""
        probs = self.classifier.probabilities(out, cells.may_be)
        reconstruction, of_cells = self.scvi.reconstruction(cells, posterior, noise)
        log_density = posterior.draw.log_density
        kl = self.kl_labels(probs, cells.may_be) + self.scvi.kl_library(posterior, cells.codes)
        of_labels, log_pz1, kl_z2 = ops.label_loss(
            *self.label_networks, posterior.z, probs, kl_weight, noise,
            frozen=not self.classifier.out.weight.requires_grad,
        )  # fmt: skip
        total = reconstruction + (log_density + kl_weight * kl).mean() + of_labels / len(cells)
        sums = elbo_sums((of_cells + log_density).sum() - log_pz1, kl.sum() + kl_z2)
        return Loss(total, len(cells), sums)

    def loss_with_labels(
        self, cells: Minibatch, n: int, noise: Noise, kl_weight: float
    ) -> tuple[Loss, Tensor, Tensor]:
        """Returns (unlabelled loss of the first `n` cells, cross-entropy (scalar) of the others,
        their label probabilities), the latter two at the posterior mean.

        All cells are encoded and classified together; with batch norm the two parts are computed
        apart, as each part has its own batch statistics.
        """
        first, others = cells[:n], cells[n:]
        if len(self.scvi.encoder.stack.norms):
            loss, out = self.loss(first, noise, kl_weight), self.classify(others, noise)
        else:
            latent = self.scvi.encode(cells, noise)
            posterior = self.scvi.inference(first, noise, latent[:n])
            out = self.classifier(torch.cat([posterior.z, latent[n:].mean]), noise)
            loss, out = self.loss_of(first, posterior, out[:n], noise, kl_weight), out[n:]
        probs = self.classifier.probabilities(out).detach()
        return loss, cross_entropy(out, others.labels, others.may_be), probs

    def classify(self, cells: Minibatch, noise: Noise | None) -> Tensor:
        """The classifier's output (cells × labels) at the posterior mean of z1."""
        return self.classifier(self.scvi.encode(cells, noise).mean, noise)
