"""Latent and label probabilities of cells, in chunks, without gradients."""

from dataclasses import dataclass

import numpy as np
import torch

from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import scvi_of
from atlasmap.training.cells import Cells

CHUNK = 512  # cells at a time


@dataclass(frozen=True)
class Embedding:
    """`mean` and `var` of q(z | x) (cells × latent); `soft_labels` (cells × labels) or None."""

    mean: np.ndarray
    var: np.ndarray
    soft_labels: np.ndarray | None


@torch.no_grad()
def embed(model: Scvi | Scanvi, cells: Cells) -> Embedding:
    """Deterministic latent of every cell; label probabilities where there is a classifier."""
    scvi = scvi_of(model)
    means, variances, soft = [], [], []
    for chunk in cells.in_order(CHUNK):
        x, codes = scvi.encoder_input(chunk)
        mean, var = scvi.encoder(x, codes, None)
        means.append(mean.cpu())
        variances.append(var.cpu())
        if isinstance(model, Scanvi):
            soft.append(model.classifier.probabilities(model.classifier(mean, None)).cpu())
    soft_labels = torch.cat(soft).numpy() if soft else None
    return Embedding(torch.cat(means).numpy(), torch.cat(variances).numpy(), soft_labels)
