"""Objectives: the steps of an epoch, the loss of a step and the metrics, as `loop` needs them.

A step is a pair of index arrays: all cells, and labelled cells for the classifier (or None).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor, nn

from atlasmap.models.classifier import is_right
from atlasmap.models.random import Noise, keyed_seed
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.vae import Loss
from atlasmap.training.cells import Cells
from atlasmap.training.history import (
    Averages,
    expected_calibration_error,
    peer_calibration_error,
)
from atlasmap.training.split import Split, minibatches

Step = tuple[np.ndarray, np.ndarray | None]


@dataclass
class Unsupervised:
    """The model's own loss of a minibatch: scVI, totalVI; scANVI in surgery (no labelled cells)."""

    model: Scvi | Scanvi
    cells: Cells
    split: Split
    batch_size: int
    seed: int
    purpose: str
    n_optimisers = 1  # number of optimisers that step in every training step
    monitor = "elbo"  # the validation metric for early stopping

    def parameters(self) -> list[nn.Parameter]:
        """The parameters to train."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def shuffled(self, cells: np.ndarray, what: str, epoch: int) -> np.ndarray:
        """`cells` in random order, keyed by seed, purpose, `what` and epoch."""
        key = keyed_seed(self.seed, self.purpose, what, epoch)
        return self.cells.counts.shuffled(cells, np.random.default_rng(key))

    def steps(self, epoch: int) -> list[Step]:
        """Minibatches of one training epoch."""
        order = self.shuffled(self.split.train, "order", epoch)
        return [(step, None) for step in minibatches(order, self.batch_size)]

    def validation_steps(self) -> list[Step]:
        """Minibatches of the validation cells, always the same."""
        order = self.cells.counts.arranged(self.split.validation)
        return [(step, None) for step in minibatches(order, self.batch_size)]

    def ahead(self, steps: list[Step]) -> Iterator[Step]:
        """Iterate over `steps`; counts on disk are read for many steps at once."""
        return self.cells.counts.ahead(steps)

    def loss(self, step: Step, noise: Noise, kl_weight: float) -> Loss:
        """Loss of one step."""
        return self.model.loss(self.cells.minibatch(step[0]), noise, kl_weight)

    def training_loss(self, step: Step, noise: Noise, kl_weight: float) -> Loss:
        """Loss of one step, with the terms that only training has (an adversary)."""
        return self.loss(step, noise, kl_weight)

    def after_step(self, noise: Noise, kl_weight: float) -> None:
        """Called after each optimiser step."""

    def epoch_metrics(self) -> dict[str, float]:
        """Metrics of the whole epoch that are not averages over steps; reading resets them."""
        return {}

    def extra(self) -> dict[str, Tensor]:
        """State besides the model and its optimiser, for a checkpoint."""
        return {}

    def restore_extra(self, extra: dict[str, Tensor]) -> None:
        """Set the state that `extra` returned."""


@dataclass
class SemiSupervised(Unsupervised):
    """scANVI: each step has a minibatch for the unlabelled loss and one for classification.

    An epoch has as many steps as the longer list of minibatches; the shorter one is repeated, as in
    scvi-tools.
    """

    classification_ratio: float
    n_samples_per_label: int | None
    _seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, init=False)

    def __post_init__(self):
        self.labels = self.cells.labels.cpu().numpy()

    def labelled(self, cells: np.ndarray, epoch: int) -> np.ndarray:
        """Labelled cells among `cells`, sorted by label; at most `n_samples_per_label` per label,
        a sample keyed by `epoch`."""
        by_label = cells[np.argsort(self.labels[cells], kind="stable")]
        by_label = by_label[self.labels[by_label] >= 0]
        if self.n_samples_per_label is None:
            return by_label
        key = keyed_seed(self.seed, self.purpose, "thin", epoch)
        rng = np.random.default_rng(key)
        groups = np.split(by_label, np.flatnonzero(np.diff(self.labels[by_label])) + 1)
        most = self.n_samples_per_label
        thinned = [g if len(g) < most else rng.choice(g, most, replace=False) for g in groups]
        return np.concatenate(thinned)

    def paired(self, everyone: list[np.ndarray], labelled: list[np.ndarray]) -> list[Step]:
        """Pair the two lists, repeating the shorter; without labelled cells, the second is None."""
        n = max(len(everyone), len(labelled))
        if not everyone or not labelled:
            return [(step, None) for step in everyone]
        return list(zip(islice(cycle(everyone), n), islice(cycle(labelled), n), strict=True))

    def steps(self, epoch: int) -> list[Step]:
        everyone = self.shuffled(self.split.train, "order", epoch)
        labelled = self.shuffled(self.labelled(self.split.train, epoch), "labelled", epoch)
        return self.paired(
            minibatches(everyone, self.batch_size), minibatches(labelled, self.batch_size)
        )

    def validation_steps(self) -> list[Step]:
        return self.paired(
            *(
                minibatches(self.cells.counts.arranged(cells), self.batch_size)
                for cells in (self.split.validation, self.labelled(self.split.validation, -1))
            )
        )

    def loss(self, step: Step, noise: Noise, kl_weight: float) -> Loss:
        if step[1] is None:
            return super().loss(step, noise, kl_weight)
        cells, n = self.cells.minibatch(np.concatenate(step)), len(step[0])
        loss, cross_entropy, probs = self.model.loss_with_labels(cells, n, noise, kl_weight)
        confidence, predicted = probs.max(1)
        may_be = None if cells.may_be is None else cells.may_be[n:]
        correct = is_right(predicted, cells.labels[n:], may_be).float()
        self._seen.append((torch.as_tensor(step[1]), confidence, correct))
        per_minibatch = {
            "classification_loss": cross_entropy.detach(),
            "accuracy": correct.mean(),
            "calibration_error": peer_calibration_error(confidence, correct),
        }
        sums = {name: value * loss.n for name, value in per_minibatch.items()}
        total = loss.total + self.classification_ratio * cross_entropy
        return Loss(total, loss.n, loss.sums | sums)

    def epoch_metrics(self) -> dict[str, float]:
        """`ece` over the labelled cells seen since the last call, each counted once."""
        if not self._seen:
            return {}
        index, confidence, correct = self.extra().values()
        self._seen.clear()
        first = torch.as_tensor(np.unique(index.numpy(), return_index=True)[1]).to(correct.device)
        return {"ece": float(expected_calibration_error(confidence[first], correct[first]))}

    def extra(self) -> dict[str, Tensor]:
        names = ("index", "confidence", "correct")
        parts = zip(*self._seen, strict=True)
        return {name: torch.cat(part) for name, part in zip(names, parts, strict=False)}

    def restore_extra(self, extra: dict[str, Tensor]) -> None:
        values = (extra["index"].cpu(), extra["confidence"], extra["correct"]) if extra else None
        self._seen = [values] if values else []


def validate(objective: Unsupervised, noise: Noise, kl_weight: float) -> dict[str, Tensor | float]:
    """Metrics of the validation cells, without gradients; `noise` has dropout off."""
    averages = Averages()
    with torch.no_grad():
        for step in objective.ahead(objective.validation_steps()):
            loss = objective.loss(step, noise, kl_weight)
            averages.add(loss.sums | {"loss": loss.total * loss.n}, loss.n)
    return averages.values() | objective.epoch_metrics()
