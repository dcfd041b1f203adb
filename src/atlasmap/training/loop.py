"""The one training loop: Adam, KL warm-up, validation, early stopping, NaN stop."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from atlasmap.errors import AtlasmapError, listed
from atlasmap.models.ops import in_use
from atlasmap.models.random import Noise, keyed_generator
from atlasmap.settings import TrainSettings
from atlasmap.training.adam import Adam
from atlasmap.training.checkpoint import (
    Checkpoints,
    State,
    Store,
    identity_hash,
    weights_hash,
)
from atlasmap.training.history import Averages, History
from atlasmap.training.objectives import Step, Unsupervised, validate
from atlasmap.training.progress import Progress
from atlasmap.training.stopping import Watch, no_limit

log = logging.getLogger("atlasmap")
LR_FACTOR, LR_PATIENCE = 0.6, 30


@dataclass(frozen=True)
class Outcome:
    """Result of a training: the history, epochs and steps taken, why it ended (`stopped`), whether
    counts stayed on disk (`streamed`; cells are then shuffled by blocks), and the implementation of
    operations (`ops.in_use`)."""

    history: History
    n_epochs: int
    n_steps: int
    stopped: str
    streamed: bool
    ops: str


def epochs_by_size(n_cells: int) -> int:
    """Default number of epochs: 400 up to 20,000 cells, fewer above (scvi-tools' rule)."""
    return max(1, min(round(20_000 / n_cells * 400), 400))


class Plateau:
    """Counts validations since the monitored metric (validation ELBO) last reached a new best.

    `since_lr` also restarts when the learning rate is reduced.
    """

    def __init__(self):
        self.best, self.since, self.since_lr = float("inf"), 0, 0

    def update(self, value: float) -> None:
        """Record one more validation value."""
        better = value < self.best
        self.best = min(self.best, value)
        self.since = 0 if better else self.since + 1
        self.since_lr = 0 if better else self.since_lr + 1


def check_finite(losses: list[torch.Tensor], steps: list[Step], epoch: int, objective) -> None:
    """Raises TRAINING_NAN at the first loss that is not finite, naming its minibatch's cells."""
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
    """Raises TRAINING_NAN if a weight is not finite: the epoch's last step shows in no loss."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise AtlasmapError(
            "TRAINING_NAN",
            expected="finite weights",
            found=f"NaN or infinity after epoch {epoch}",
            mend="try a lower learning_rate or gradient_clip: 10",
        )


def kl_weight(settings: TrainSettings, epoch: int, n_steps: int) -> float:
    """Weight of the KL terms, rising from 0 to 1 as in scvi-tools: n_steps / n_steps_kl_warmup if
    that is set, else epoch / n_epochs_kl_warmup; 1 without a warm-up."""
    if settings.n_steps_kl_warmup:
        return min(1.0, n_steps / settings.n_steps_kl_warmup)
    if settings.n_epochs_kl_warmup:
        return min(1.0, epoch / settings.n_epochs_kl_warmup)
    return 1.0


class Training:
    """State of a training: everything that changes, and so what a checkpoint holds.

    All randomness is keyed by the objective's seed and purpose and by the epoch, so that a restored
    training continues bit for bit.
    """

    def __init__(
        self, objective: Unsupervised, settings: TrainSettings, dropout: bool,
        batch_statistics: bool,
    ):  # fmt: skip
        if settings.max_epochs is None:
            raise ValueError("the caller chooses max_epochs")
        self.objective, self.settings = objective, settings
        self.how = (dropout, batch_statistics)
        self.optimiser = Adam(
            objective.parameters(), settings.learning_rate, settings.adam_eps, settings.weight_decay
        )
        self.history, self.plateau = History(), Plateau()
        self.epoch, self.n_steps = 0, 0
        self.begin_epoch()

    def generator(self, what: str) -> torch.Generator:
        """This epoch's random generator for the purpose `what`."""
        key = (self.objective.purpose, what, self.epoch)
        return keyed_generator(self.objective.seed, *key, device=self.objective.cells.device)

    def begin_epoch(self) -> None:
        """Reset what belongs to one epoch: step, averages, losses, noise."""
        self.step, self.averages, self.losses = 0, Averages(), []
        self.noise = Noise(self.generator("noise"), *self.how)

    @property
    def kl_weight(self) -> float:
        """Current weight of the KL terms."""
        n_steps = (self.n_steps + self.step) * self.objective.n_optimisers
        return kl_weight(self.settings, self.epoch, n_steps)

    @property
    def stopped(self) -> str | None:
        """Why training has ended; None while it goes on."""
        settings, since = self.settings, self.plateau.since
        if settings.early_stopping and since >= settings.early_stopping_patience:
            return f"no better validation ELBO for {since} validations"
        return "max_epochs" if self.epoch == settings.max_epochs else None

    def take_step(self, step: Step) -> None:
        """Forward, backward and optimiser step of one minibatch."""
        loss = self.objective.training_loss(step, self.noise, self.kl_weight)
        self.optimiser.zero_grad()
        loss.total.backward()
        if self.settings.gradient_clip is not None:
            clip = self.settings.gradient_clip
            torch.nn.utils.clip_grad_norm_(self.objective.parameters(), clip)
        self.optimiser.step()
        self.objective.after_step(self.noise, self.kl_weight)
        self.losses.append(loss.total.detach())
        self.averages.add(loss.sums | {"loss": self.losses[-1] * loss.n}, loss.n)
        self.step += 1

    def train_epoch(self, after_step: Callable[[], None]) -> None:
        """Train the remaining steps of this epoch, then validate. Raises TRAINING_NAN."""
        steps = self.objective.steps(self.epoch)
        for step in self.objective.ahead(steps[self.step :]):
            self.take_step(step)
            after_step()
        check_finite(self.losses, steps, self.epoch, self.objective)
        check_weights(self.objective.parameters(), self.epoch)
        values = self.averages.values() | self.objective.epoch_metrics()
        self.history.add(self.epoch, "train", values | {"kl_weight": self.kl_weight})
        log.debug("epoch %d: %s", self.epoch + 1, {k: round(v, 4) for k, v in values.items()})
        self.validate_if_due()
        self.n_steps += len(steps)
        self.epoch += 1
        self.begin_epoch()

    def validate_if_due(self) -> None:
        """Validate every `check_val_every_n_epoch` epochs and after the last; on a plateau, reduce
        the learning rate (`reduce_lr_on_plateau`)."""
        settings, after = self.settings, self.epoch + 1
        due = after % settings.check_val_every_n_epoch == 0 or after == settings.max_epochs
        if not due or not len(self.objective.split.validation):
            return
        noise = Noise(self.generator("validation"), False, False)
        values = validate(self.objective, noise, self.kl_weight)
        self.history.add(self.epoch, "validation", values)
        self.plateau.update(values[self.objective.monitor])
        if settings.reduce_lr_on_plateau and self.plateau.since_lr > LR_PATIENCE:
            self.plateau.since_lr = 0
            self.optimiser.lr *= LR_FACTOR

    def state(self) -> State:
        """The current state, for a checkpoint; also in the middle of an epoch."""
        model = self.objective.model
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        parts = {
            "model": {k: v for k, v in model.state_dict().items() if k not in frozen},
            "optimiser": self.optimiser.state(),
            "sums": self.averages.sums,
            "extra": self.objective.extra(),
            "noise": {"generator": self.noise.generator.get_state()},
        }
        if self.losses:
            parts["losses"] = {"all": torch.stack(self.losses)}
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "n_steps": self.n_steps,
            "learning_rate": self.optimiser.lr,
            "weights": self.averages.weights,
            "history": self.history.rows,
            "plateau": vars(self.plateau),
        }
        flat = {f"{part}/{k}": v for part, values in parts.items() for k, v in values.items()}
        return State(flat, facts)

    def restore(self, state: State) -> None:
        """Set everything from `state`; training then continues bit for bit as it would have."""
        parts, facts, device = defaultdict(dict), state.facts, self.objective.cells.device
        for name, value in state.tensors.items():
            part, key = name.split("/", 1)
            parts[part][key] = value if part == "noise" else value.to(device)
        self.objective.model.load_state_dict(parts["model"], strict=False)
        self.optimiser.restore(parts["optimiser"])
        self.optimiser.lr = facts["learning_rate"]
        self.epoch, self.n_steps = facts["epoch"], facts["n_steps"]
        self.history = History([tuple(row) for row in facts["history"]])
        vars(self.plateau).update(facts["plateau"])
        self.begin_epoch()
        # In their original order, which JSON keeps and safetensors may not.
        sums = {name: parts["sums"][name] for name in facts["weights"]}
        self.step, self.averages = facts["step"], Averages(sums, facts["weights"])
        self.losses = list(parts["losses"].get("all", torch.empty(0)).unbind())
        self.noise.generator.set_state(parts["noise"]["generator"])
        self.objective.restore_extra(parts["extra"])


def fit(
    objective: Unsupervised, settings: TrainSettings, name: str, *,
    dropout: bool = True, batch_statistics: bool = True,
    checkpoints: Checkpoints | None = None, identity: dict | None = None,
) -> Outcome:  # fmt: skip
    """Train until `max_epochs` or early stopping. Raises TRAINING_NAN.

    `dropout`, `batch_statistics`: see `Noise`; surgery trains without batch statistics. With
    `checkpoints`, an interrupted training of the same `identity` (inputs and settings) is resumed
    from its last checkpoint; on a signal, or shortly before the job's end, a checkpoint is written
    and Stopped raised.
    """
    training = Training(objective, settings, dropout, batch_statistics)
    store, streamed = None, objective.cells.counts.streamed
    if checkpoints:
        start = {"name": name, "start": weights_hash(objective.model.state_dict())}
        order = {"order": "by blocks"} if streamed else {}
        key = identity_hash(start | order | (identity or {}), objective.cells.device)
        store = Store(checkpoints, key)
        found = store.read()
        if found:
            training.restore(found)
            log.info("%s: taken up at epoch %d, step %d", name, training.epoch + 1, training.step)
    with Watch(checkpoints.times if checkpoints else no_limit) as watch:
        progress = Progress(name, settings.max_epochs, training.epoch, watch)

        def look() -> None:
            why = watch.reason()
            if store and (why or store.due):
                store.write(training.state())
            if why:
                log.warning("%s: leaving at epoch %d: %s", name, training.epoch + 1, why)
                raise why

        while training.stopped is None:
            training.train_epoch(look)
            progress.tell(training.epoch, training.history, objective.monitor)
        if store:  # if the job ends now, only the work after training is repeated
            store.write(training.state())
        progress.bar.close()
        if watch.signal:  # a signal came after the last step
            raise watch.reason()
    found = training.history, training.epoch, training.n_steps, training.stopped
    return Outcome(*found, streamed, in_use(objective.cells.device))
