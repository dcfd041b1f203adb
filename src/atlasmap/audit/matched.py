"""Matched surgery: joint surgery in which each batch is trained as if it were alone.

Usual joint surgery differs from surgery per batch in three ways: the number of updates of a batch;
the scale of its gradient (a mixed minibatch scales it by the batch's fraction of cells, which Adam
with a large epsilon does not undo); and momentum, which also changes the parameters of batches that
are absent from a minibatch. Each of these `Causes` can be switched on by itself; without any, the
results agree with surgery per batch up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from atlasmap.models.random import Noise, keyed_generator
from atlasmap.settings import TrainSettings
from atlasmap.training.adam import Adam
from atlasmap.training.cells import Cells
from atlasmap.training.loop import kl_weight
from atlasmap.training.objectives import Unsupervised
from atlasmap.training.split import split_cells


@dataclass(frozen=True)
class Causes:
    """What is done as in joint surgery with mixed minibatches.

    `updates`: each batch has as many updates as the joint training (and totalVI's warm-up, which
    counts updates); `scale`: gradients are scaled by the batch's fraction of cells; `momentum`:
    parameters of a batch are also updated in steps without its cells.
    """

    updates: bool = False
    scale: bool = False
    momentum: bool = False


class RowAdam:
    """Adam with separate moments and step counts per row of the tables; rows may skip a step.

    Each row is updated bit for bit as if its batch were alone.
    """

    def __init__(self, tables: list[nn.Parameter], settings: TrainSettings):
        self.tables = tables
        how = settings.learning_rate, settings.adam_eps, 0.0
        self.rows = [Adam([t.data[k] for t in tables], *how) for k in range(len(tables[0]))]

    def step(self, rows: torch.Tensor) -> None:
        """Update the rows in the mask `rows`, then clear all gradients."""
        for k in rows.nonzero()[:, 0].tolist():
            for own, table in zip(self.rows[k].parameters, self.tables, strict=True):
                own.grad = table.grad[k]
            self.rows[k].step()
        for table in self.tables:
            table.grad = None


@dataclass(frozen=True)
class Member:
    """One batch: its row in the tables, its objective and training settings when alone, and the
    settings of the `joint` training on all batches."""

    row: int
    objective: Unsupervised
    settings: TrainSettings
    joint: TrainSettings


def members(
    model: nn.Module, cells: Cells, names: list[str], first_code: int,
    settings: Callable[[int], TrainSettings], seed: int,
) -> list[Member]:  # fmt: skip
    """The batches `names` in `cells`, each split and shuffled as when it is mapped alone.

    `first_code`: batch code of the first; `settings`: number of cells → training settings.
    """
    codes, out = cells.codes[:, 0].cpu().numpy(), []
    for row, name in enumerate(names):
        own = np.flatnonzero(codes == first_code + row)
        how = settings(len(own))
        split = split_cells(own, how.train_size, seed)
        purpose = f"surgery per_batch {name}"
        objective = Unsupervised(model, cells, split, how.batch_size, seed, purpose)
        out.append(Member(row, objective, how, settings(len(cells))))
    return out


def pieces(member: Member, epoch: int, causes: Causes, n_joint: int) -> list[np.ndarray]:
    """Minibatches (indices of cells) of one batch in an epoch: its own, or with `causes.updates`
    at most `n_joint`, the number of steps of the joint training."""
    steps = [step[0] for step in member.objective.steps(epoch)]
    if not causes.updates:
        return steps
    return [part for part in np.array_split(np.concatenate(steps), n_joint) if len(part)]


def fit_matched(model: nn.Module, batches: list[Member], causes: Causes) -> None:
    """Train the rows of all batches together, in place.

    A step takes one minibatch of each batch; the loss is the sum of the batches' means. Noise and
    the order of cells are those of each batch when trained alone.
    """
    tables, settings = [p for p in model.parameters() if p.requires_grad], batches[0].settings
    optimiser = RowAdam(tables, settings)
    n_train = sum(len(member.objective.split.train) for member in batches)
    n_joint = -(-n_train // settings.batch_size)
    device = tables[0].device
    for epoch in range(settings.max_epochs):
        noises, parts = [], []
        for member in batches:
            key = (member.objective.purpose, "noise", epoch)
            generator = keyed_generator(member.objective.seed, *key, device=device)
            noises.append(Noise(generator, False, False))
            parts.append(pieces(member, epoch, causes, n_joint))
        for step in range(max(map(len, parts))):
            taken = [part[step] if step < len(part) else None for part in parts]
            total = sum(len(part) for part in taken if part is not None)
            for member, part, noise in zip(batches, taken, noises, strict=True):
                if part is not None:
                    n_steps = epoch * len(parts[member.row]) + step
                    own = member.joint if causes.updates else member.settings
                    weight = kl_weight(own, epoch, n_steps)
                    loss = member.objective.loss((part, None), noise, weight).total
                    (loss * (len(part) / total if causes.scale else 1.0)).backward()
            present = torch.tensor([part is not None for part in taken], device=device)
            optimiser.step(torch.ones_like(present) if causes.momentum else present)
