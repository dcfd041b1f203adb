"""scVI (Lopez et al. 2018, Nature Methods 15:1053), computed as scvi-tools 1.4.2 computes it."""

import torch
from torch import Tensor

from atlasmap.models import ops
from atlasmap.models.layers import CategoryTable, Linear, Stack
from atlasmap.models.likelihoods import CountDistribution
from atlasmap.models.operands import Logits
from atlasmap.models.random import Noise
from atlasmap.models.vae import (
    Loss,
    Minibatch,
    Posterior,
    Shape,
    Vae,
    elbo_sums,
)
from atlasmap.settings import ScviSettings


class Scvi(Vae):
    """Encoder q(z | x, s), decoder p(x | z, l, s) with covariates s; tensors only."""

    def __init__(self, settings: ScviSettings, shape: Shape, rng: torch.Generator):
        widths, deep = [settings.n_hidden] * settings.n_layers, settings.deeply_inject_covariates
        super().__init__(settings, shape, shape.n_genes, widths, settings.dropout_rate, rng, deep)
        self.decoder = Stack(
            settings.n_latent + shape.n_continuous, widths, shape.n_categories, rng,
            batch_norm=settings.use_batch_norm in ("decoder", "both"),
            layer_norm=settings.use_layer_norm in ("decoder", "both"),
            deep=deep,
        )  # fmt: skip
        self.scale = Linear(settings.n_hidden, shape.n_genes, rng)
        if settings.gene_likelihood == "zinb":
            self.zero_inflation = Linear(settings.n_hidden, shape.n_genes, rng)
        if settings.gene_likelihood != "poisson":
            by_batch = settings.dispersion == "gene-batch"
            rows = torch.randn(
                shape.n_categories[0] if by_batch else 1, shape.n_genes, generator=rng
            )
            covariate = 0 if by_batch else None
            self.log_theta = CategoryTable(rows, covariate, start_bound=None, trains=True)

    def features(self, cells: Minibatch) -> tuple[ops.Counts, Tensor | None]:
        return cells.counts.log1p(), None

    def generative(
        self, z: Tensor, library: Tensor, cells: Minibatch, noise: Noise | None
    ) -> CountDistribution:
        hidden = self.decoder(self.decoder_input(z, cells), cells.codes, noise)
        logits = Logits(
            hidden, self.scale.weight, self.scale.bias[None], torch.zeros_like(cells.codes[0])
        )
        if self.settings.gene_likelihood == "poisson":
            return CountDistribution(logits, library)
        theta = torch.exp(self.log_theta.of_batches(cells.codes[0]))
        if self.settings.gene_likelihood == "nb":
            return CountDistribution(logits, library, theta)
        return CountDistribution(logits, library, theta, self.zero_inflation(hidden))

    def reconstruction(
        self, cells: Minibatch, posterior: Posterior, noise: Noise | None
    ) -> tuple[Tensor, Tensor]:
        """Returns −log p(x | z, library) as (mean over cells, per cell without gradients)."""
        likelihood = self.generative(posterior.z, posterior.library, cells, noise)
        return likelihood.mean_loss(cells.counts)

    def loss(self, cells: Minibatch, noise: Noise, kl_weight: float) -> Loss:
        """Negative ELBO (eq. 4 of the paper). `kl_weight` scales KL(z), but not KL(library)."""
        posterior = self.inference(cells, noise)
        reconstruction, of_cells = self.reconstruction(cells, posterior, noise)
        kl_z, kl_library = posterior.draw.kl, self.kl_library(posterior, cells.codes)
        total = reconstruction + (kl_weight * kl_z + kl_library).mean()
        return Loss(total, len(cells), elbo_sums(of_cells, kl_z + kl_library))
