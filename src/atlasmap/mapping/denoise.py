"""totalVI's denoised expression: genes without noise, proteins without noise and background.

Proteins that were not measured in a cell's batch are imputed: decoded with the batch codes of the
reference batches where they were measured, and averaged over these batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from atlasmap.bundle import Bundle, device_of
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS
from atlasmap.mapping.encode import encode
from atlasmap.models.random import keyed_generator
from atlasmap.models.totalvi import ProteinDistribution, Totalvi
from atlasmap.models.vae import Minibatch, Posterior
from atlasmap.settings import DenoiseSettings

CHUNK = 256  # cells per minibatch
DEPTH = 10_000  # library size that denoised gene expression is scaled to
PROTEIN, FOREGROUND, RNA = "denoised_protein", "foreground_probability", "denoised_rna"
FILE = "denoised.h5ad"
# obsm keys that are copied to a latent and an atlas.
OF_PROTEINS = (PROTEIN, f"{PROTEIN}_lower", f"{PROTEIN}_upper", FOREGROUND)


@dataclass(frozen=True)
class Draws:
    """Standard normal noise for the latent (samples × latent) and background (samples × proteins).

    Shared by all cells, so that the result of a cell does not depend on the other cells.
    """

    latent: Tensor
    background: Tensor

    @classmethod
    def of(cls, model: Totalvi, n: int, device: torch.device) -> "Draws":
        """Generate noise for `n` posterior samples with a fixed seed."""
        rng = keyed_generator(0, "denoise")
        shapes = (n, model.settings.n_latent), (n, model.shape.n_proteins)
        return cls(*(torch.randn(shape, generator=rng).to(device) for shape in shapes))


def positions(posterior: Posterior, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield posterior samples (cells × latent), each with its background noise (proteins)."""
    for of_latent, of_background in zip(draws.latent, draws.background, strict=True):
        latent = posterior.latent
        yield latent.mean + latent.var.sqrt() * of_latent, of_background


def denoised_proteins(
    protein: ProteinDistribution, of_background: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Stack denoised proteins and foreground probabilities (2 × cells × proteins) of one
    posterior sample.

    The probabilities are conditioned on `counts` (cells × proteins) if these are given.
    """
    background = protein.back_mean + protein.back_sd * of_background
    drawn = replace(protein, log_background=background)
    share = drawn.foreground_probability if counts is None else drawn.foreground_given(counts)
    return torch.stack([drawn.denoised, share])


def imputed(
    model: Totalvi, cells: Minibatch, posterior: Posterior, draws: Draws, has: Tensor
) -> Tensor:
    """Impute denoised proteins and foreground probabilities (2 × samples × cells × proteins).

    Cells are decoded with the codes of the reference batches where a protein was measured (`has`,
    batches × proteins), and averaged over these. `posterior` is that of the cells' own batch. Only
    proteins that some of the cells lack are imputed; others are zero.
    """
    has = has & ~cells.measured.all(0)
    sums = torch.zeros(2, len(draws.latent), *cells.measured.shape, device=has.device)
    for code in has.any(1).nonzero()[:, 0]:
        there = replace(cells, codes=(torch.full_like(cells.codes[0], code), *cells.codes[1:]))
        for k, (z, of_background) in enumerate(positions(posterior, draws)):
            found = denoised_proteins(model.decode_proteins(z, there), of_background)
            sums[:, k] += torch.where(has[code], found, 0.0)
    return sums / has.sum(0).clamp(min=1)


def intervals(name: str, values: Tensor, level: float) -> dict[str, Tensor]:
    """Mean (`name`) and central `level` interval (`name`_lower, `name`_upper) over samples.

    `values` are samples × cells × features; results are cells × features.
    """
    tail = (1 - level) / 2
    lower, upper = torch.quantile(values, torch.tensor([tail, 1 - tail]).to(values), 0)
    return {name: values.mean(0), f"{name}_lower": lower, f"{name}_upper": upper}


def take_proteins(latent: anndata.AnnData, denoised: anndata.AnnData) -> None:
    """Copy protein counts and denoised proteins of the same cells to a latent, in place."""
    for key in OF_PROTEINS:
        latent.obsm[key] = denoised.obsm[key]
    latent.uns[PROTEIN_NAMES] = denoised.uns[PROTEIN_NAMES]


def denoised_of(
    bundle: Bundle, adata: anndata.AnnData, settings: DenoiseSettings
) -> anndata.AnnData | None:
    """Call `denoise`; None if the model has no proteins."""
    return denoise(bundle, adata, settings) if bundle.registry.proteins else None


@torch.no_grad()
def denoise(bundle: Bundle, adata: anndata.AnnData, settings: DenoiseSettings) -> anndata.AnnData:
    """Denoise prepared cells; returns them with obs and protein counts, but without gene counts.

    layers (if `settings.rna`): denoised_rna (expected counts at a library size of 10,000),
    denoised_rna_lower, denoised_rna_upper. obsm: denoised_protein (foreground only),
    denoised_protein_lower, denoised_protein_upper, foreground_probability (conditioned on the count
    if measured; scvi-tools conditions on the latent only).
    """
    model, registry = bundle.model, bundle.registry
    device = device_of(model)
    cells, draws = encode(registry, adata, device), Draws.of(model, settings.n_samples, device)
    n_reference = len(model.log_efficiency.reference)
    has = torch.tensor(registry.measured()[:n_reference], device=device)
    parts: dict[str, list[np.ndarray]] = {}
    for chunk in cells.in_order(CHUNK):
        posterior = model.inference(chunk, None)
        proteins, rates = [], []
        for z, of_background in positions(posterior, draws):
            if settings.rna:
                decoded = model.decode(z, posterior.library, chunk, None)
                rates.append(DEPTH * decoded.rna.share)
                protein = decoded.protein
            else:
                protein = model.decode_proteins(z, chunk)
            proteins.append(denoised_proteins(protein, of_background, chunk.proteins))
        both = torch.stack(proteins, 1)  # 2 × samples × cells × proteins
        if not chunk.measured.all():
            both = torch.where(chunk.measured, both, imputed(model, chunk, posterior, draws, has))
        found = intervals(PROTEIN, both[0], settings.interval)
        found[FOREGROUND] = both[1].mean(0)
        if rates:
            found |= intervals(RNA, torch.stack(rates), settings.interval)
        for name, value in found.items():
            parts.setdefault(name, []).append(value.cpu().numpy())
    whole = {name: np.concatenate(parts.pop(name)) for name in list(parts)}  # pop: saves memory
    empty = sparse.csr_matrix(adata.shape, dtype=np.float32)
    var = pd.DataFrame(index=adata.var_names)
    out = anndata.AnnData(empty, adata.obs.drop(columns="truth", errors="ignore").copy(), var)
    out.obsm[PROTEINS], out.uns[PROTEIN_NAMES] = adata.obsm[PROTEINS], list(registry.proteins)
    for name, value in whole.items():
        (out.layers if name.startswith(RNA) else out.obsm)[name] = value
    return out
