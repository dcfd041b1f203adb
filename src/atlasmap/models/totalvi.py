"""totalVI (Gayoso et al. 2021, Nature Methods 18:272), computed as scvi-tools 1.4.2 computes it.

Where the paper and scvi-tools differ, this follows scvi-tools: the encoder's counts are scaled by
the cell's mean, each batch has an efficiency per protein, and a weak prior pulls the mixture
towards background.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlasmap.models import ops
from atlasmap.models.classifier import Classifier
from atlasmap.models.layers import CategoryTable, Codes, CovariateLinear, Stack
from atlasmap.models.likelihoods import CountDistribution, nb_first_probability, nb_mixture_log_prob
from atlasmap.models.operands import Logits
from atlasmap.models.random import Noise
from atlasmap.models.vae import (
    Loss,
    Minibatch,
    Shape,
    Vae,
    elbo_sums,
    kl_normal,
)
from atlasmap.settings import TotalviSettings

TINY = 1e-8
LARGEST_LIBRARY = 15.0  # upper bound of inferred log library sizes
MIXING_WEIGHT = 1e-3
HEAD_WIDTH = 128


@dataclass(frozen=True)
class ProteinDistribution:
    """p(y | z, s) of proteins and its parameters; shapes are cells × proteins.

    `log_background`: sample from N(`back_mean`, `back_sd`²), or its mean; `fore_scale` (> 1):
    foreground mean / background mean; `mixing`: logit of being background; `theta`: inverse
    dispersion (1 × proteins is allowed); `log_efficiency`: log efficiency of the cell's batch.
    """

    back_mean: Tensor
    back_sd: Tensor
    log_background: Tensor
    fore_scale: Tensor
    mixing: Tensor
    theta: Tensor
    log_efficiency: Tensor

    @property
    def background(self) -> Tensor:
        """Mean count of the background, before the batch's efficiency."""
        return torch.exp(self.log_background)

    @property
    def foreground(self) -> Tensor:
        """Mean count of the foreground, before the batch's efficiency."""
        return self.background * self.fore_scale

    @property
    def foreground_probability(self) -> Tensor:
        """Prior probability of the foreground (1 − π)."""
        return torch.sigmoid(-self.mixing)

    def foreground_given(self, y: Tensor) -> Tensor:
        """Posterior probability of the foreground, given the counts `y`, elementwise."""
        efficiency = torch.exp(self.log_efficiency)
        return 1 - nb_first_probability(
            y, efficiency * self.background, efficiency * self.foreground, self.theta, self.mixing
        )

    @property
    def denoised(self) -> Tensor:
        """Protein without background: foreground mean × its prior probability."""
        return self.foreground * self.foreground_probability

    def log_prob(self, y: Tensor) -> Tensor:
        """Elementwise log-probability of the counts `y`."""
        efficiency = torch.exp(self.log_efficiency)
        return nb_mixture_log_prob(
            y, efficiency * self.background, efficiency * self.foreground, self.theta, self.mixing
        )


@dataclass(frozen=True)
class Decoded:
    """p(x, y | z, s): genes and proteins."""

    rna: CountDistribution
    protein: ProteinDistribution


class Head(nn.Module):
    """A stack, then linear output layers on [its output, its input, covariates]."""

    def __init__(self, stack: Stack, n_in: int, n_hidden: int, outs: dict[str, int],
                 n_categories: tuple[int, ...], rng: torch.Generator):  # fmt: skip
        super().__init__()
        self.stack = stack
        self.outs = nn.ModuleDict(
            {
                name: CovariateLinear(n_hidden + n_in, n_out, n_categories, False, rng)
                for name, n_out in outs.items()
            }
        )

    def forward(self, x: Tensor, codes: Codes, noise: Noise | None) -> dict[str, Tensor]:
        """`x` (cells × inputs) → outputs (cells × width) by name."""
        return {name: said.value for name, said in self.logits(x, codes, noise).items()}

    def logits(self, x: Tensor, codes: Codes, noise: Noise | None) -> dict[str, Logits]:
        """As `forward`, but the output layers are not computed yet."""
        hidden = torch.cat([self.stack(x, codes, noise), x], -1)
        return {
            name: Logits(hidden, layer.weight, *layer.biases(codes))
            for name, layer in self.outs.items()
        }


class Totalvi(Vae):
    """Encoder q(z | x, y, s), decoders of genes and proteins, and a classifier if there are labels.

    The latent z is normally distributed; with `latent_distribution` "ln" (logistic normal) the
    decoders see its softmax.
    """

    def __init__(
        self, settings: TotalviSettings, shape: Shape, n_labels: int, rng: torch.Generator
    ):
        n_genes, n_proteins = shape.n_genes, shape.n_proteins
        widths = [settings.n_hidden] * settings.n_layers_encoder
        rate = settings.dropout_rate_encoder
        super().__init__(settings, shape, n_genes + n_proteins, widths, rate, rng)
        by_genes = {"zero_inflation": n_genes} if settings.gene_likelihood == "zinb" else {}
        self.genes = self.head({"scale": n_genes}, rng)
        self.background = self.head({"mean": n_proteins, "sd": n_proteins}, rng)
        self.foreground = self.head({"scale": n_proteins}, rng)
        self.mixture = self.head({"mixing": n_proteins} | by_genes, rng)
        n_batches = shape.n_categories[0]
        for_genes = n_batches if settings.gene_dispersion == "gene-batch" else 1
        for_proteins = n_batches if settings.protein_dispersion == "protein-batch" else 1
        self.log_theta = CategoryTable(
            torch.randn(for_genes, n_genes, generator=rng),
            0 if settings.gene_dispersion == "gene-batch" else None, None, trains=True,
        )  # fmt: skip
        self.protein_log_theta = CategoryTable(
            2 * torch.rand(for_proteins, n_proteins, generator=rng),
            0 if settings.protein_dispersion == "protein-batch" else None, None, trains=True,
        )  # fmt: skip
        size = (n_batches, n_proteins)
        self.log_efficiency = CategoryTable(torch.zeros(size), 0, 0.0, trains=True)
        self.background_prior_mean = CategoryTable(torch.full(size, 3.0), 0, None, trains=True)
        self.background_prior_log_sd = CategoryTable(torch.zeros(size), 0, None, trains=True)
        self.classifier = None
        if n_labels:
            stack = Stack(
                settings.n_latent, [HEAD_WIDTH], (), rng,
                batch_norm=False, layer_norm=True, dropout_rate=0.1,
            )  # fmt: skip
            self.classifier = Classifier(stack, HEAD_WIDTH, n_labels, "fixed", rng)

    def head(self, outs: dict[str, int], rng: torch.Generator) -> Head:
        """Make one decoder; `outs` is the width of each named output."""
        settings, shape = self.settings, self.shape
        n_in = settings.n_latent + shape.n_continuous
        stack = Stack(
            n_in, [settings.n_hidden] * settings.n_layers_decoder, shape.n_categories, rng,
            batch_norm=settings.use_batch_norm in ("decoder", "both"),
            layer_norm=settings.use_layer_norm in ("decoder", "both"),
            dropout_rate=settings.dropout_rate_decoder,
        )  # fmt: skip
        return Head(stack, n_in, settings.n_hidden, outs, shape.n_categories, rng)

    def features(self, cells: Minibatch) -> tuple[ops.Counts, Tensor | None]:
        x, y = cells.counts, cells.proteins
        if self.settings.input_scaling == "none":
            return x.log1p(), torch.log1p(y)
        scale = 1 + cells.depth / self.shape.n_genes
        return (x / scale).log1p(), torch.log1p(y / (1 + y.mean(1, keepdim=True)))

    def position(self, z: Tensor) -> Tensor:
        """`z` (cells × latent) as the decoders see it: its softmax for a logistic normal."""
        return torch.softmax(z, -1) if self.settings.latent_distribution == "ln" else z

    def decode(self, z: Tensor, library: Tensor, cells: Minibatch, noise: Noise | None) -> Decoded:
        """p(x, y | z, library): `z` cells × latent, `library` cells × 1 (log)."""
        inputs, codes = self.decoder_input(self.position(z), cells), cells.codes
        if not self.settings.use_observed_lib_size:
            library = library.clamp(max=LARGEST_LIBRARY)
        genes = self.genes.logits(inputs, codes, noise)
        protein, zero_inflation = self.protein_parts(inputs, codes, noise)
        rna = CountDistribution(
            genes["scale"],
            library,
            torch.exp(self.log_theta.of_batches(codes[0])),
            zero_inflation,
        )
        return Decoded(rna, protein)

    def decode_proteins(self, z: Tensor, cells: Minibatch) -> ProteinDistribution:
        """p(y | z) without noise. Cheaper than `decode`, as the genes are not decoded."""
        inputs = self.decoder_input(self.position(z), cells)
        return self.protein_parts(inputs, cells.codes, None)[0]

    def protein_parts(
        self, inputs: Tensor, codes: Codes, noise: Noise | None
    ) -> tuple[ProteinDistribution, Tensor | None]:
        """Returns (p(y | z), logits of the genes' zero inflation). The latter are an output of the
        mixture's decoder, for zinb only (else None)."""
        back, fore = self.background(inputs, codes, noise), self.foreground(inputs, codes, noise)
        mixture = self.mixture(inputs, codes, noise)
        positive = torch.exp if self.settings.background_activation == "exp" else F.softplus
        back_sd = positive(back["sd"]) + TINY
        log_background = back["mean"]
        if noise is not None:
            log_background = log_background + back_sd * noise.normal_like(back_sd)
        protein = ProteinDistribution(
            back["mean"], back_sd, log_background,
            torch.relu(fore["scale"]) + 1 + TINY,
            mixture["mixing"],
            torch.exp(self.protein_log_theta.of_batches(codes[0])),
            self.log_efficiency(codes[0]),
        )  # fmt: skip
        return protein, mixture.get("zero_inflation")

    def generative(
        self, z: Tensor, library: Tensor, cells: Minibatch, noise: Noise | None
    ) -> CountDistribution:
        return self.decode(z, library, cells, noise).rna

    def protein_terms(
        self, cells: Minibatch, protein: ProteinDistribution
    ) -> tuple[Tensor, Tensor]:
        """Returns −log p(y | z) and the KL terms (background, efficiency, mixture), each per cell.

        Proteins that were not measured are left out, except in the priors of efficiency and
        mixture, which scvi-tools does not mask.
        """
        measured = cells.measured
        reconstruction = torch.where(measured, -protein.log_prob(cells.proteins), 0.0).sum(1)
        codes = cells.codes[0]
        prior_sd = torch.exp(self.background_prior_log_sd(codes))
        kl_background = kl_normal(
            protein.back_mean, protein.back_sd.square(),
            self.background_prior_mean(codes), prior_sd.square(),
        )  # fmt: skip
        log_efficiency = protein.log_efficiency  # its exp is log-normal(0, 1)
        of_efficiency = log_efficiency + log_efficiency.square() / 2 + math.log(2 * math.pi) / 2
        of_mixing = MIXING_WEIGHT * F.softplus(-protein.mixing)
        kl = torch.where(measured, kl_background, 0.0) + of_efficiency + of_mixing
        return reconstruction, kl.sum(1)

    def loss(self, cells: Minibatch, noise: Noise, kl_weight: float) -> Loss:
        """Negative ELBO. `kl_weight` scales the protein likelihood and the KL terms, but not the
        gene likelihood and KL(library)."""
        posterior = self.inference(cells, noise)
        decoded = self.decode(posterior.z, posterior.library, cells, noise)
        loss_of_genes, of_genes = decoded.rna.mean_loss(cells.counts)
        of_proteins, kl_background = self.protein_terms(cells, decoded.protein)
        kl_z, kl_library = posterior.draw.kl, self.kl_library(posterior, cells.codes)
        kl = kl_weight * (of_proteins + kl_z + kl_background) + kl_library
        total = loss_of_genes + kl.mean()
        sums = elbo_sums(of_genes + of_proteins, kl_z + kl_library + kl_background)
        parts = {
            "reconstruction_loss_genes": of_genes.sum(),
            "reconstruction_loss_proteins": of_proteins.detach().sum(),
        }
        return Loss(total, len(cells), sums | parts, self.position(posterior.z))
