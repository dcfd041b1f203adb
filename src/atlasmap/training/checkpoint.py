"""Checkpoints: everything that changes while a model is trained, in one safetensors file.

Without pickle, a checkpoint is safe to open. It is written atomically, and the one before is kept.
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
    """Contents of a checkpoint: `tensors`, and `facts` that JSON can represent."""

    tensors: Tensors
    facts: dict


@dataclass(frozen=True)
class Checkpoints:
    """Folder of the checkpoints, seconds between two (`every`), and the job's start and end
    (`times`)."""

    folder: Path
    every: float = 300.0
    times: Times = no_limit

    def remove(self) -> None:
        """Remove the folder, with checkpoints of all settings: the trained model has been saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Lasting(Checkpoints):
    """Checkpoints of a job with several trainings, which removes them when all are done."""

    def remove(self) -> None:
        """Does nothing: the checkpoints stay."""


def weights_hash(state: Tensors) -> str:
    """SHA-256 of a state's names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity_hash(identity: dict, device: torch.device) -> str:
    """Hash that a checkpoint and the training that resumes it must share: of `identity` (inputs,
    settings, start values), device type, versions, number of threads and implementation."""
    machine = [device.type, torch.__version__, torch.get_num_threads(), in_use(device), FORMAT]
    text = json.dumps([identity, machine], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The checkpoints of one training on disk: the last one and the one before it."""

    def __init__(self, checkpoints: Checkpoints, key: str):
        self.folder, self.every = checkpoints.folder / key[:16], checkpoints.every
        self.written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether `every` seconds have passed since the last checkpoint."""
        return time.monotonic() - self.written >= self.every

    def write(self, state: State) -> None:
        """Write a checkpoint atomically: to a temporary file, fsync, rename. An OSError (full disk)
        is logged and does not stop the training."""
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
        """The newest checkpoint that is complete (by its digest); None if there is none."""
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
