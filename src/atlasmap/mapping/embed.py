"""Latent and label probabilities of cells, in chunks, without gradients."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from atlasmap.models.random import keyed_generator
from atlasmap.models.surgery import classifier_of, vae_of
from atlasmap.training.cells import Cells

log = logging.getLogger("atlasmap")
CHUNK = 512  # cells at a time


@dataclass(frozen=True)
class Embedding:
    """`mean` and `var` of q(z | x) (cells × latent); `soft_labels` (cells × labels) or None."""

    mean: np.ndarray
    var: np.ndarray
    soft_labels: np.ndarray | None


def embed(model: nn.Module, cells: Cells) -> Embedding:
    """Deterministic latent of every cell; label probabilities where there is a classifier.

    A GPU without the memory for a chunk is given smaller ones.
    """
    size = CHUNK
    while True:
        try:
            return embed_in_chunks(model, cells, size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
        log.warning("the GPU's memory is full: %d cells at a time", size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.no_grad()
def embed_in_chunks(model: nn.Module, cells: Cells, size: int) -> Embedding:
    """The same, `size` cells at a time."""
    vae, classifier = vae_of(model), classifier_of(model)
    out, first = {}, 0
    for chunk in cells.in_order(size):
        latent = vae.encode(chunk, None)
        said = {"mean": (mean := latent.mean), "var": latent.var}
        if classifier is not None:
            said["soft_labels"] = classifier.probabilities(classifier(mean, None))
        for name, part in said.items():
            # Into its place at once: small parts that are kept leave large holes in memory.
            if not first:
                out[name] = torch.empty(len(cells), part.shape[1], dtype=part.dtype)
            out[name][first : first + len(part)] = part
        first += len(chunk)
    return Embedding(**{"soft_labels": None} | {name: x.numpy() for name, x in out.items()})


@torch.no_grad()
def soft_labels_at(model: nn.Module, latent: np.ndarray) -> np.ndarray | None:
    """Label probabilities (cells × labels) at positions (cells × latent); None without labels."""
    classifier = classifier_of(model)
    if classifier is None:
        return None
    z = torch.as_tensor(latent, device=next(model.parameters()).device)
    return classifier.probabilities(classifier(z, None)).cpu().numpy()


@torch.no_grad()
def posterior_soft_labels(
    model: nn.Module, mean: np.ndarray, var: np.ndarray, n_draws: int
) -> np.ndarray:
    """Label probabilities (cells × labels) averaged over draws from q(z | x).

    `mean` and `var` are cells × latent. All cells share the draws, so that what is said of a cell
    does not depend on the cells around it.
    """
    device, classifier = next(model.parameters()).device, classifier_of(model)
    noise = torch.randn(n_draws, mean.shape[1], generator=keyed_generator(0, "posterior"))
    noise, out = noise.to(device), []
    for start in range(0, len(mean), CHUNK):
        at = slice(start, start + CHUNK)
        centre = torch.as_tensor(mean[at], device=device)
        spread = torch.as_tensor(var[at], device=device).sqrt()
        z = centre + noise[:, None] * spread  # draws × cells × latent
        out.append(classifier.probabilities(classifier(z, None)).mean(0).cpu())
    return torch.cat(out).numpy()


@torch.no_grad()
def with_product(model: nn.Module, cells: Cells) -> Cells:
    """`cells` with what the encoder's first layer makes of each: in surgery it stays as it is, so
    that the largest product of the encoder is taken once, not every epoch. Not of cells whose
    counts have no room in memory: the products might have none either."""
    if cells.counts.streamed:
        return cells
    vae = vae_of(model)
    parts = [vae.product(chunk) for chunk in cells.in_order(CHUNK)]
    return replace(cells, product=torch.cat(parts))
