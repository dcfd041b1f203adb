"""Shared by scVI and totalVI: the encoder q(z | x, s) with covariates s, and the library size."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from atlasmap.models import ops
from atlasmap.models.layers import CategoryTable, Codes, GaussianHead, Stack
from atlasmap.models.likelihoods import CountDistribution
from atlasmap.models.normal import Draw, Normal, kl_normal
from atlasmap.models.random import Noise


@dataclass(frozen=True)
class Shape:
    """Sizes set by the data: genes, categories per covariate (batch first), continuous covariates,
    proteins.

    `library`: mean and variance of the log library size per batch (2 × batches), the prior where
    the library size is inferred.
    """

    n_genes: int
    n_categories: tuple[int, ...]
    n_continuous: int = 0
    library: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    n_proteins: int = 0


@dataclass(frozen=True)
class Minibatch:
    """Cells as tensors: `counts` (cells × genes), `depth` (their sums, cells × 1), `codes`
    (category codes (cells) per covariate), `continuous` (cells × continuous covariates) or None,
    `labels` (cells; −1: unlabelled; codes from the number of labels on: ancestors of labels in the
    label tree), `may_be` (cells × labels, bool: the labels that a cell may have; None: any).

    CITE-seq: `proteins` (counts, cells × proteins; zero where not measured), `measured` (bool).
    `product`: cached W1 x + b1 of the encoder; constant in surgery, where W1 is frozen.
    """

    counts: ops.Counts
    depth: Tensor
    codes: Codes
    continuous: Tensor | None
    labels: Tensor
    proteins: Tensor | None = None
    measured: Tensor | None = None
    product: Tensor | None = None
    may_be: Tensor | None = None

    @classmethod
    def of(cls, counts: ops.Counts, *others, **more) -> "Minibatch":
        """A minibatch with `depth` computed from `counts`; other arguments are the fields."""
        return cls(counts, counts.sum(1, keepdim=True), *others, **more)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, cells: slice) -> "Minibatch":
        """The minibatch of these cells."""
        # vars() also holds `x` once it is cached; it is computed anew from the sliced counts.
        own = {name: None if (part := getattr(self, name)) is None else part[cells]
               for name in vars(self) if name not in ("codes", "x")}  # fmt: skip
        return Minibatch(codes=tuple(code[cells] for code in self.codes), **own)

    @cached_property
    def x(self) -> Tensor:
        """Counts (cells × genes), dense."""
        return ops.dense(self.counts)


@dataclass(frozen=True)
class Posterior:
    """q(z | x) and the library size: `latent` (normals, cells × latent) and a sample from them
    (`draw`); `library` (log library size, cells × 1); `of_library` (its posterior normals,
    cells × 1) where it is inferred."""

    latent: Normal
    draw: Draw
    library: Tensor
    of_library: Normal | None = None

    @property
    def z(self) -> Tensor:
        """The sample of z (cells × latent)."""
        return self.draw.z


@dataclass(frozen=True)
class Loss:
    """`total`: the value to minimise; `n`: cells; `sums` over cells for the history; `z`: the
    sampled latent as the decoders see it (for an adversary), or None."""

    total: Tensor
    n: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    z: Tensor | None = None


def elbo_sums(reconstruction: Tensor, kl_local: Tensor) -> dict[str, Tensor]:
    """Sums over cells for the history; the ELBO has the unweighted KL, as in scvi-tools."""
    reconstruction, kl_local = reconstruction.detach().sum(), kl_local.detach().sum()
    return {
        "elbo": reconstruction + kl_local,
        "reconstruction_loss": reconstruction,
        "kl_local": kl_local,
    }


def lay_out_by_input(weight: nn.Parameter) -> None:
    """Store `weight` (outputs × inputs) column by column in place: a sparse product reads the
    columns of non-zero inputs only."""
    weight.data = weight.data.t().contiguous().t()


class Vae(nn.Module):
    """Encoder and library size; tensors only. Subclasses add the decoders."""

    def __init__(
        self, settings, shape: Shape, n_features: int, widths: list[int], dropout_rate: float,
        rng: torch.Generator, deep: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.settings, self.shape = settings, shape
        encoded = shape.n_categories if settings.encode_covariates else ()
        n_in = n_features + (shape.n_continuous if settings.encode_covariates else 0)
        how = {
            "batch_norm": settings.use_batch_norm in ("encoder", "both"),
            "layer_norm": settings.use_layer_norm in ("encoder", "both"),
            "dropout_rate": dropout_rate,
            "deep": deep,
        }
        self.encoder = GaussianHead(
            Stack(n_in, widths, encoded, rng, **how),
            settings.n_hidden, settings.n_latent, 1e-4, rng,
        )  # fmt: skip
        lay_out_by_input(self.encoder.stack.layers[0].weight)
        if not settings.use_observed_lib_size:
            self.library_encoder = GaussianHead(
                Stack(n_in, widths[:1], encoded, rng, **how), settings.n_hidden, 1, 1e-4, rng
            )
            rows = torch.tensor(shape.library).T
            self.library_prior = CategoryTable(rows, 0, start_bound=None, trains=False)

    def features(self, cells: Minibatch) -> tuple[ops.Counts, Tensor | None]:
        """Encoder features: of the counts (cells × genes; zero where the counts are zero), and of
        the other modalities (cells × features; None without any)."""
        raise NotImplementedError

    def generative(
        self, z: Tensor, library: Tensor, cells: Minibatch, noise: Noise | None
    ) -> CountDistribution:
        """p(x | z, library) of the genes; `z` cells × latent, `library` cells × 1 (log)."""
        raise NotImplementedError

    def encoder_input(self, cells: Minibatch) -> tuple[ops.Counts, Tensor | None]:
        """`features`, with continuous covariates appended to the second part where the encoder
        sees them."""
        genes, more = self.features(cells)
        if cells.continuous is None or not self.settings.encode_covariates:
            return genes, more
        return genes, cells.continuous if more is None else torch.cat([more, cells.continuous], 1)

    def product(self, cells: Minibatch) -> Tensor:
        """W x + b of the encoder's first layer (cells × width), without the rows of categorical
        covariates; `cells.product` if it is cached."""
        if cells.product is not None:
            return cells.product
        layer, (genes, more) = self.encoder.stack.layers[0], self.encoder_input(cells)
        weight, n = layer.weight, self.shape.n_genes
        of_genes = weight if more is None else weight[:, :n]
        out = ops.product(genes, of_genes, layer.bias)
        return out if more is None else out + more @ weight[:, n:].T

    def dense_input(self, cells: Minibatch) -> Tensor:
        """The encoder's input, dense (cells × features)."""
        genes, more = self.encoder_input(cells)
        x = ops.dense(genes)
        return x if more is None else torch.cat([x, more], 1)

    def encode(self, cells: Minibatch, noise: Noise | None) -> Normal:
        """q(z | x), cells × latent."""
        codes = cells.codes if self.settings.encode_covariates else ()
        return self.encoder.after(self.product(cells), codes, noise)

    def inference(
        self, cells: Minibatch, noise: Noise | None, latent: Normal | None = None
    ) -> Posterior:
        """q(z | x), a sample of z, and the log library size; `latent` is q(z | x) if known."""
        latent = latent or self.encode(cells, noise)
        draw = latent.draw(noise)
        if self.settings.use_observed_lib_size:
            return Posterior(latent, draw, torch.log(cells.depth))
        codes = cells.codes if self.settings.encode_covariates else ()
        of_library = self.library_encoder(self.dense_input(cells), codes, noise)
        return Posterior(latent, draw, of_library.draw(noise).z, of_library)

    def decoder_input(self, z: Tensor, cells: Minibatch) -> Tensor:
        """`z` with the continuous covariates appended (cells × inputs)."""
        return z if cells.continuous is None else torch.cat([z, cells.continuous], 1)

    def kl_library(self, posterior: Posterior, codes: Codes) -> Tensor:
        """KL of the library size per cell; zero where it is observed."""
        library = posterior.of_library
        if library is None:
            return torch.zeros_like(posterior.draw.kl)
        prior = self.library_prior(codes[0])
        return kl_normal(library.mean[:, 0], library.var[:, 0], prior[:, 0], prior[:, 1])
