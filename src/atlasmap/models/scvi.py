"""scVI (Lopez et al. 2018, Nature Methods 15:1053), computed as scvi-tools 1.4.2 computes it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from atlasmap.models.layers import CategoryTable, Codes, GaussianHead, Linear, Stack
from atlasmap.models.likelihoods import CountDistribution
from atlasmap.models.random import Noise
from atlasmap.settings import ScviSettings


@dataclass(frozen=True)
class Shape:
    """What the data fixes: genes, categories of each covariate (batch first).

    `library` holds the mean and variance of log library size a batch (2 × batches), used where the
    library size is inferred.
    """

    n_genes: int
    n_categories: tuple[int, ...]
    n_continuous: int = 0
    library: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Minibatch:
    """Cells as tensors: `x` counts (cells × genes), `codes` a category code a covariate (cells),
    `continuous` (cells × continuous covariates) or None, `labels` (cells; -1: unlabelled)."""

    x: Tensor
    codes: Codes
    continuous: Tensor | None
    labels: Tensor


@dataclass(frozen=True)
class Posterior:
    """q(z | x) and the library size: `mean`, `var`, `z` cells × latent; `library` cells × 1 (log).

    `library_mean`, `library_var` (cells × 1) where the library is inferred.
    """

    mean: Tensor
    var: Tensor
    z: Tensor
    library: Tensor
    library_mean: Tensor | None = None
    library_var: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """`total` to minimise; `sums` over cells for the history; `n` cells."""

    total: Tensor
    n: int
    sums: dict[str, Tensor] = field(default_factory=dict)


def kl_standard_normal(mean: Tensor, var: Tensor) -> Tensor:
    """KL(N(mean, var) ‖ N(0, 1)), elementwise."""
    return 0.5 * (var + mean.square() - 1 - torch.log(var))


def kl_normal(mean: Tensor, var: Tensor, prior_mean: Tensor, prior_var: Tensor) -> Tensor:
    """KL(N(mean, var) ‖ N(prior_mean, prior_var)), elementwise."""
    ratio = var / prior_var
    return 0.5 * (ratio + (mean - prior_mean).square() / prior_var - 1 - torch.log(ratio))


def sample_normal(mean: Tensor, var: Tensor, noise: Noise | None) -> Tensor:
    """A reparameterised draw, or the mean where there is no noise."""
    return mean if noise is None else mean + var.sqrt() * noise.normal_like(mean)


class Scvi(nn.Module):
    """Encoder q(z | x, s), decoder p(x | z, l, s) with covariates s; tensors only."""

    def __init__(self, settings: ScviSettings, shape: Shape, rng: torch.Generator):
        super().__init__()
        self.settings, self.shape = settings, shape
        widths = [settings.n_hidden] * settings.n_layers
        encoded = shape.n_categories if settings.encode_covariates else ()
        n_in = shape.n_genes + (shape.n_continuous if settings.encode_covariates else 0)
        in_encoder = {
            "batch_norm": settings.use_batch_norm in ("encoder", "both"),
            "layer_norm": settings.use_layer_norm in ("encoder", "both"),
            "dropout_rate": settings.dropout_rate,
            "deep": settings.deeply_inject_covariates,
        }
        self.encoder = GaussianHead(
            Stack(n_in, widths, encoded, rng, **in_encoder),
            settings.n_hidden, settings.n_latent, 1e-4, rng,
        )  # fmt: skip
        if not settings.use_observed_lib_size:
            self.library_encoder = GaussianHead(
                Stack(n_in, widths[:1], encoded, rng, **in_encoder), settings.n_hidden, 1, 1e-4, rng
            )
            rows = torch.tensor(shape.library).T
            self.library_prior = CategoryTable(rows, covariate=None, start_bound=None)
            self.library_prior.reference.requires_grad_(False)
        self.decoder = Stack(
            settings.n_latent + shape.n_continuous, widths, shape.n_categories, rng,
            batch_norm=settings.use_batch_norm in ("decoder", "both"),
            layer_norm=settings.use_layer_norm in ("decoder", "both"),
            deep=settings.deeply_inject_covariates,
        )  # fmt: skip
        self.scale = Linear(settings.n_hidden, shape.n_genes, rng)
        if settings.gene_likelihood == "zinb":
            self.zero_inflation = Linear(settings.n_hidden, shape.n_genes, rng)
        if settings.gene_likelihood != "poisson":
            n_rows = shape.n_categories[0] if settings.dispersion == "gene-batch" else 1
            rows = torch.randn(n_rows, shape.n_genes, generator=rng)
            covariate = 0 if settings.dispersion == "gene-batch" else None
            self.log_theta = CategoryTable(rows, covariate, start_bound=None)
            self.log_theta.reference.requires_grad_(True)

    def encoder_input(self, cells: Minibatch) -> tuple[Tensor, Codes]:
        """log1p counts (and continuous covariates) with the codes the encoder sees."""
        x = torch.log1p(cells.x)
        if not self.settings.encode_covariates:
            return x, ()
        return (x if cells.continuous is None else torch.cat([x, cells.continuous], 1)), cells.codes

    def inference(self, cells: Minibatch, noise: Noise | None) -> Posterior:
        """q(z | x): mean, variance and a draw of z, and the log library size."""
        x, codes = self.encoder_input(cells)
        mean, var = self.encoder(x, codes, noise)
        z = sample_normal(mean, var, noise)
        if self.settings.use_observed_lib_size:
            return Posterior(mean, var, z, torch.log(cells.x.sum(1, keepdim=True)))
        library_mean, library_var = self.library_encoder(x, codes, noise)
        library = sample_normal(library_mean, library_var, noise)
        return Posterior(mean, var, z, library, library_mean, library_var)

    def generative(
        self, z: Tensor, library: Tensor, cells: Minibatch, noise: Noise | None
    ) -> CountDistribution:
        """p(x | z, library): `z` cells × latent, `library` cells × 1 (log)."""
        inputs = z if cells.continuous is None else torch.cat([z, cells.continuous], 1)
        hidden = self.decoder(inputs, cells.codes, noise)
        rate = torch.exp(library) * torch.softmax(self.scale(hidden), -1)
        if self.settings.gene_likelihood == "poisson":
            return CountDistribution(rate)
        by_batch = self.settings.dispersion == "gene-batch"
        codes = cells.codes[0] if by_batch else torch.zeros_like(cells.codes[0][:1])
        theta = torch.exp(self.log_theta(codes))
        if self.settings.gene_likelihood == "nb":
            return CountDistribution(rate, theta)
        return CountDistribution(rate, theta, self.zero_inflation(hidden))

    def kl_library(self, posterior: Posterior, codes: Codes) -> Tensor:
        """KL of the library size a cell (zero where it is observed)."""
        if posterior.library_mean is None:
            return torch.zeros_like(posterior.mean[:, 0])
        prior = self.library_prior(codes[0])
        return kl_normal(
            posterior.library_mean[:, 0], posterior.library_var[:, 0], prior[:, 0], prior[:, 1]
        )

    def reconstruction(self, cells: Minibatch, posterior: Posterior, noise: Noise | None) -> Tensor:
        """−log p(x | z, library) a cell."""
        likelihood = self.generative(posterior.z, posterior.library, cells, noise)
        return -likelihood.log_prob(cells.x).sum(1)

    def loss(self, cells: Minibatch, noise: Noise, kl_weight: float) -> Loss:
        """Negative ELBO with warmed-up KL(z) (eq. 4 of the paper); KL(library) is not weighted."""
        posterior = self.inference(cells, noise)
        reconstruction = self.reconstruction(cells, posterior, noise)
        kl_z = kl_standard_normal(posterior.mean, posterior.var).sum(1)
        kl_library = self.kl_library(posterior, cells.codes)
        total = (reconstruction + kl_weight * kl_z + kl_library).mean()
        return Loss(total, len(cells.x), elbo_sums(reconstruction, kl_z + kl_library))


def elbo_sums(reconstruction: Tensor, kl_local: Tensor) -> dict[str, Tensor]:
    """Sums over cells for the history; the ELBO has the unweighted KL, as in scvi-tools."""
    reconstruction, kl_local = reconstruction.detach().sum(), kl_local.detach().sum()
    return {
        "elbo": reconstruction + kl_local,
        "reconstruction_loss": reconstruction,
        "kl_local": kl_local,
    }
