"""Latent and label probabilities of cells, computed in minibatches without gradients."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from atlasmap.models.random import keyed_generator
from atlasmap.models.surgery import classifier_of, vae_of
from atlasmap.training.cells import Cells

log = logging.getLogger("atlasmap")
CHUNK = 512  # cells per minibatch


@dataclass(frozen=True)
class Embedding:
    """Mean and variance of q(z | x) (cells × latent); label probabilities `soft_labels` (cells ×
    labels), or None."""

    mean: np.ndarray
    var: np.ndarray
    soft_labels: np.ndarray | None


def embed(model: nn.Module, cells: Cells) -> Embedding:
    """Return the posterior of every cell, and label probabilities if there is a classifier.

    Minibatches are halved while GPU memory is too small.
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
    """Embed cells in minibatches of `size` cells."""
    vae, classifier = vae_of(model), classifier_of(model)
    out, first = {}, 0
    for chunk in cells.in_order(size):
        latent = vae.encode(chunk, None)
        said = {"mean": (mean := latent.mean), "var": latent.var}
        if classifier is not None:
            said["soft_labels"] = classifier.probabilities(classifier(mean, None))
        for name, part in said.items():
            # Written to a preallocated array: keeping many small parts fragments memory.
            if not first:
                out[name] = torch.empty(len(cells), part.shape[1], dtype=part.dtype)
            out[name][first : first + len(part)] = part
        first += len(chunk)
    return Embedding(**{"soft_labels": None} | {name: x.numpy() for name, x in out.items()})


@torch.no_grad()
def soft_labels_at(model: nn.Module, latent: np.ndarray) -> np.ndarray | None:
    """Label probabilities (cells × labels) at `latent` (cells × latent), or None."""
    classifier = classifier_of(model)
    if classifier is None:
        return None
    z = torch.as_tensor(latent, device=next(model.parameters()).device)
    return classifier.probabilities(classifier(z, None)).cpu().numpy()


@torch.no_grad()
def posterior_soft_labels(
    model: nn.Module, mean: np.ndarray, var: np.ndarray, n_draws: int
) -> np.ndarray:
    """Label probabilities (cells × labels) averaged over `n_draws` samples from q(z | x).

    `mean` and `var` are cells × latent. All cells share the noise, so that the result of a cell
    does not depend on the other cells.
    """
    device, classifier = next(model.parameters()).device, classifier_of(model)
    noise = torch.randn(n_draws, mean.shape[1], generator=keyed_generator(0, "posterior"))
    noise, out = noise.to(device), []
    for start in range(0, len(mean), CHUNK):
        at = slice(start, start + CHUNK)
        centre = torch.as_tensor(mean[at], device=device)
        spread = torch.as_tensor(var[at], device=device).sqrt()
        z = centre + noise[:, None] * spread  # samples × cells × latent
        out.append(classifier.probabilities(classifier(z, None)).mean(0).cpu())
    return torch.cat(out).numpy()


@torch.no_grad()
def with_product(model: nn.Module, cells: Cells) -> Cells:
    """Return `cells` with the cached product W1 x + b1 of the encoder's first layer.

    W1 is frozen in surgery, so the encoder's largest matrix product is computed once instead of
    every epoch. Streamed cells are returned unchanged: their products may not fit in memory either.
    """
    if cells.counts.streamed:
        return cells
    vae = vae_of(model)
    parts = [vae.product(chunk) for chunk in cells.in_order(CHUNK)]
    return replace(cells, product=torch.cat(parts))
