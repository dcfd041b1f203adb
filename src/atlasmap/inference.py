"""Latent and label probabilities of cells, in chunks, without gradients."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import scvi_of
from atlasmap.training.cells import Cells

log = logging.getLogger("atlasmap")
CHUNK = 512  # cells at a time


@dataclass(frozen=True)
class Embedding:
    """`mean` and `var` of q(z | x) (cells × latent); `soft_labels` (cells × labels) or None."""

    mean: np.ndarray
    var: np.ndarray
    soft_labels: np.ndarray | None


def embed(model: Scvi | Scanvi, cells: Cells) -> Embedding:
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
def embed_in_chunks(model: Scvi | Scanvi, cells: Cells, size: int) -> Embedding:
    """The same, `size` cells at a time."""
    scvi = scvi_of(model)
    means, variances, soft = [], [], []
    for chunk in cells.in_order(size):
        x, codes = scvi.encoder_input(chunk)
        mean, var = scvi.encoder(x, codes, None)
        means.append(mean.cpu())
        variances.append(var.cpu())
        if isinstance(model, Scanvi):
            soft.append(model.classifier.probabilities(model.classifier(mean, None)).cpu())
    soft_labels = torch.cat(soft).numpy() if soft else None
    return Embedding(torch.cat(means).numpy(), torch.cat(variances).numpy(), soft_labels)


@torch.no_grad()
def soft_labels_at(model: Scvi | Scanvi, latent: np.ndarray) -> np.ndarray | None:
    """Label probabilities (cells × labels) at positions (cells × latent); None without labels."""
    if not isinstance(model, Scanvi):
        return None
    z = torch.as_tensor(latent, device=next(model.parameters()).device)
    return model.classifier.probabilities(model.classifier(z, None)).cpu().numpy()
