"""Training a classifier on a latent that stays as it is."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlasmap.models.random import Noise
from atlasmap.models.vae import Loss, sample_normal
from atlasmap.training.objectives import Step, Unsupervised, minibatches


@dataclass
class ClassifierHead(Unsupervised):
    """Cross-entropy of labelled cells; `mean` and `var` (cells × latent) are their posterior, of
    which each step draws anew."""

    mean: Tensor
    var: Tensor
    monitor = "classification_loss"

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.classifier.parameters())

    def labelled(self, cells: np.ndarray) -> np.ndarray:
        """Those of `cells` that have a label."""
        return cells[self.cells.labels.cpu().numpy()[cells] >= 0]

    def steps(self, epoch: int) -> list[Step]:
        order = self.shuffled(self.labelled(self.split.train), "order", epoch)
        return [(step, None) for step in minibatches(order, self.batch_size)]

    def validation_steps(self) -> list[Step]:
        cells = self.labelled(self.split.validation)
        return [(step, None) for step in minibatches(cells, self.batch_size)]

    def loss(self, step: Step, noise: Noise, kl_weight: float) -> Loss:
        at = torch.as_tensor(step[0], device=self.cells.device)
        labels = self.cells.labels[at]
        out = self.model.classifier(sample_normal(self.mean[at], self.var[at], noise), noise)
        loss = F.cross_entropy(out, labels)
        correct = (out.detach().argmax(1) == labels).sum()
        sums = {"classification_loss": loss.detach() * len(at), "accuracy": correct}
        return Loss(loss, len(at), sums)
