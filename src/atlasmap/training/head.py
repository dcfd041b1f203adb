"""Training a classifier on a latent that stays as it is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlasmap.models.normal import sample_normal
from atlasmap.models.random import Noise
from atlasmap.models.vae import Loss
from atlasmap.training.objectives import Step, Unsupervised


@dataclass
class ClassifierHead(Unsupervised):
    """Cross-entropy of the split's cells, which are labelled; `mean` and `var` (cells × latent) are
    the posterior, of which each step draws anew."""

    mean: Tensor
    var: Tensor
    monitor = "classification_loss"

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.classifier.parameters())

    def ahead(self, steps: list[Step]) -> Iterator[Step]:
        return iter(steps)  # no counts are asked for

    def loss(self, step: Step, noise: Noise, kl_weight: float) -> Loss:
        at = torch.as_tensor(step[0], device=self.cells.device)
        labels = self.cells.labels[at]
        out = self.model.classifier(sample_normal(self.mean[at], self.var[at], noise), noise)
        loss = F.cross_entropy(out, labels)
        correct = (out.detach().argmax(1) == labels).sum()
        sums = {"classification_loss": loss.detach() * len(at), "accuracy": correct}
        return Loss(loss, len(at), sums)
