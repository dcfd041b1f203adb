"""The one training loop: Adam, KL warm-up, validation, early stopping, NaN stop."""

import logging
import sys
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from atlasmap.errors import AtlasmapError, listed
from atlasmap.models.random import Noise, keyed_generator
from atlasmap.settings import TrainSettings
from atlasmap.training.history import Averages, History
from atlasmap.training.objectives import Step, Unsupervised, validate

log = logging.getLogger("atlasmap")
SECONDS_BETWEEN_LINES = 5
LR_FACTOR, LR_PATIENCE = 0.6, 30


@dataclass(frozen=True)
class Outcome:
    """What training left: the history, steps taken, and why it ended."""

    history: History
    n_steps: int
    stopped: str


def epochs_by_size(n_cells: int) -> int:
    """400 up to 20,000 cells and fewer above (scvi-tools' rule)."""
    return max(1, min(round(20_000 / n_cells * 400), 400))


class Progress:
    """A bar on a terminal; one line every few seconds elsewhere."""

    def __init__(self, name: str, n_epochs: int):
        self.name, self.n_epochs, self.said = name, n_epochs, time.monotonic()
        self.live = sys.stderr.isatty()
        self.bar = tqdm(total=n_epochs, desc=name, unit="epoch", disable=not self.live)

    def tell(self, epoch: int, history: History) -> None:
        """One epoch is done."""
        shown = history.last("validation", "elbo") or history.last("train", "elbo")
        self.bar.set_postfix_str(f"elbo {shown:.2f}")
        self.bar.update()
        last = epoch + 1 == self.n_epochs
        if not self.live and (last or time.monotonic() - self.said > SECONDS_BETWEEN_LINES):
            self.said = time.monotonic()
            log.info("%s: epoch %d of %d, elbo %.2f", self.name, epoch + 1, self.n_epochs, shown)


class Plateau:
    """Epochs since the validation ELBO was last better than ever."""

    def __init__(self):
        self.best, self.since, self.since_lr = float("inf"), 0, 0

    def update(self, value: float) -> None:
        """See one more value."""
        better = value < self.best
        self.best = min(self.best, value)
        self.since = 0 if better else self.since + 1
        self.since_lr = 0 if better else self.since_lr + 1


def check_finite(losses: list[torch.Tensor], steps: list[Step], epoch: int, objective) -> None:
    """Stop at the first loss that is not a number, naming the cells that gave it."""
    bad = (~torch.isfinite(torch.stack(losses))).nonzero()
    if len(bad):
        step = int(bad[0])
        names = objective.cells.names[steps[step][0]]
        log.error("cells of the minibatch: %s", " ".join(map(str, names)))
        raise AtlasmapError(
            "TRAINING_NAN",
            expected="a finite loss in every step",
            found=f"epoch {epoch}, step {step}: loss {float(losses[step])}; "
            f"cells of the minibatch: {listed(names)}",
            mend="look at these cells' counts (the log lists them all); try a lower learning_rate "
            "or gradient_clip: 10",
        )


def check_weights(parameters, epoch: int) -> None:
    """The last step of an epoch may have spoilt the weights without a loss that shows it."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise AtlasmapError(
            "TRAINING_NAN",
            expected="finite weights",
            found=f"NaN or infinity after epoch {epoch}",
            mend="try a lower learning_rate or gradient_clip: 10",
        )


def train_epoch(objective, optimiser, noise: Noise, kl_weight, settings, epoch) -> tuple[dict, int]:
    """One pass over the training cells; averages of what was logged, and the number of steps."""
    averages, losses = Averages(), []
    steps = objective.steps(epoch)
    for step in steps:
        loss = objective.loss(step, noise, kl_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        if settings.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), settings.gradient_clip)
        optimiser.step()
        losses.append(loss.total.detach())
        averages.add(loss.sums | {"loss": losses[-1] * loss.n}, loss.n)
    check_finite(losses, steps, epoch, objective)
    check_weights(objective.parameters(), epoch)
    return averages.values() | objective.epoch_metrics(), len(steps)


def fit(
    objective: Unsupervised, settings: TrainSettings, name: str, *,
    dropout: bool = True, batch_statistics: bool = True,
) -> Outcome:  # fmt: skip
    """Train until `max_epochs` or a plateau; in surgery without batch statistics (and dropout).

    The KL weight of epoch e is e / n_epochs_kl_warmup, at most 1 (0 in epoch 0, as scvi-tools).
    All randomness is keyed by the objective's seed and purpose and by the epoch.
    """
    if settings.max_epochs is None:
        raise ValueError("the caller chooses max_epochs")
    n_epochs = settings.max_epochs
    parameters = objective.parameters()
    optimiser = torch.optim.Adam(
        parameters,
        lr=settings.learning_rate,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    history, plateau, progress = History(), Plateau(), Progress(name, n_epochs)
    n_steps, stopped, key = 0, "max_epochs", (objective.seed, objective.purpose)
    for epoch in range(n_epochs):
        device = objective.cells.device
        generator = keyed_generator(*key, "noise", epoch, device=device)
        noise = Noise(generator, dropout, batch_statistics)
        kl_weight = min(1.0, epoch / settings.n_epochs_kl_warmup)
        values, n = train_epoch(objective, optimiser, noise, kl_weight, settings, epoch)
        history.add(epoch, "train", values | {"kl_weight": kl_weight})
        n_steps += n
        due = (epoch + 1) % settings.check_val_every_n_epoch == 0 or epoch + 1 == n_epochs
        if due and len(objective.split.validation):
            generator = keyed_generator(*key, "validation", epoch, device=device)
            values = validate(objective, Noise(generator, False, False), kl_weight)
            history.add(epoch, "validation", values)
            plateau.update(values["elbo"])
            if settings.reduce_lr_on_plateau and plateau.since_lr > LR_PATIENCE:
                plateau.since_lr = 0
                for group in optimiser.param_groups:
                    group["lr"] *= LR_FACTOR
        progress.tell(epoch, history)
        if settings.early_stopping and plateau.since >= settings.early_stopping_patience:
            stopped = f"no better validation ELBO for {plateau.since} validations"
            break
    progress.bar.close()
    return Outcome(history, n_steps, stopped)
