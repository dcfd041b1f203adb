"""Checkpoints: everything that changes while a model is trained, in one safetensors file.

No pickle, so a checkpoint is safe to open; whole or not there; the one before is kept as well.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from atlasmap.models.ops import in_use
from atlasmap.training.stopping import Times, no_limit

log = logging.getLogger("atlasmap")
Tensors = dict[str, torch.Tensor]
LAST, PREVIOUS = "last.safetensors", "previous.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class State:
    """`tensors`, and `facts` that JSON can hold."""

    tensors: Tensors
    facts: dict


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints are kept, how often one is written (`every`, seconds), and what says when
    the job ends (`times`)."""

    folder: Path
    every: float = 300.0
    times: Times = no_limit

    def remove(self) -> None:
        """The model is saved: no checkpoint is needed any more, of this or any other settings."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Lasting(Checkpoints):
    """Checkpoints that whoever runs several trainings one after the other removes himself."""

    def remove(self) -> None:
        """They stay."""


def weights_hash(state: Tensors) -> str:
    """Hash of a state's names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity_hash(identity: dict, device: torch.device) -> str:
    """What a checkpoint must share with the training that takes it up: `identity` (inputs,
    settings, start values) and whatever else decides the bits."""
    machine = [device.type, torch.__version__, torch.get_num_threads(), in_use(device), FORMAT]
    text = json.dumps([identity, machine], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The checkpoints of one training: the last, and the one before it."""

    def __init__(self, checkpoints: Checkpoints, key: str):
        self.folder, self.every = checkpoints.folder / key[:16], checkpoints.every
        self.written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than wished."""
        return time.monotonic() - self.written >= self.every

    def write(self, state: State) -> None:
        """Write aside, put on the disk, rename. A full disk costs the checkpoint, not the
        training: it is said in the log."""
        self.written = time.monotonic()
        facts = json.dumps(state.facts)
        tensors = {k: v.detach().cpu().contiguous() for k, v in state.tensors.items()}
        digest = weights_hash(tensors) + hashlib.sha256(facts.encode()).hexdigest()
        aside = self.folder / f".{os.getpid()}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as file:
                file.write(save_tensors(tensors, {"facts": facts, "digest": digest}))
                file.flush()
                os.fsync(file.fileno())
            if (self.folder / LAST).exists():
                os.replace(self.folder / LAST, self.folder / PREVIOUS)
            os.replace(aside, self.folder / LAST)
        except OSError as error:
            aside.unlink(missing_ok=True)
            log.warning("no checkpoint could be written: %s", error)

    def read(self) -> State | None:
        """The newest checkpoint that is whole; None if there is none."""
        for name in (LAST, PREVIOUS):
            try:
                with safe_open(self.folder / name, "pt") as file:
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                    facts, digest = (file.metadata()[key] for key in ("facts", "digest"))
            except FileNotFoundError:
                continue
            except (SafetensorError, OSError, KeyError, TypeError) as error:
                log.warning("%s is not whole: %s", self.folder / name, error)
                continue
            if digest == weights_hash(tensors) + hashlib.sha256(facts.encode()).hexdigest():
                return State(tensors, json.loads(facts))
            log.warning("%s is not what was written", self.folder / name)
        return None
