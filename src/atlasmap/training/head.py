"""Training a classifier on a fixed latent."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atlasmap.models.classifier import cross_entropy, is_right
from atlasmap.models.normal import sample_normal
from atlasmap.models.random import Noise
from atlasmap.models.vae import Loss
from atlasmap.training.objectives import Step, Unsupervised


@dataclass
class ClassifierHead(Unsupervised):
    """Cross-entropy of the split's cells, all of them labelled, at samples from the posterior
    N(`mean`, `var`) (cells × latent), drawn anew in each step."""

    mean: Tensor
    var: Tensor
    monitor = "classification_loss"

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.classifier.parameters())

    def ahead(self, steps: list[Step]) -> Iterator[Step]:
        return iter(steps)  # no counts are needed

    def loss(self, step: Step, noise: Noise, kl_weight: float) -> Loss:
        at = torch.as_tensor(step[0], device=self.cells.device)
        labels, may_be = self.cells.labels[at], self.cells.may_be
        may_be = None if may_be is None else may_be[labels]
        out = self.model.classifier(sample_normal(self.mean[at], self.var[at], noise), noise)
        loss = cross_entropy(out, labels, may_be)
        correct = is_right(out.detach().argmax(1), labels, may_be).sum()
        sums = {"classification_loss": loss.detach() * len(at), "accuracy": correct}
        return Loss(loss, len(at), sums)
