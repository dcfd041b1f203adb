"""One task of the benchmark in a process of its own; prints a line of JSON.

python tests/bench/tasks.py TOOL TASK FOLDER

TOOL: atlasmap or scvi-tools. FOLDER has reference.h5ad, query.h5ad and how.json, as bench.py makes
them. Both tools are given the same cells, settings and epochs. What a user waits for is timed:
reading counts into tensors, training with validation, and of surgery the query's latent and soft
labels (and atlasmap's certificate) as well. The trained models that other tasks begin with are the
same for both: `prepare` trains them with atlasmap and writes them for scvi-tools too. On a GPU
scvi-tools trains for FEW epochs: what the others would take is added.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import torch

from atlasmap.bundle import Bundle, load, save
from atlasmap.data.registry import Registry
from atlasmap.device import pick_device
from atlasmap.exchange.exporting import write_save
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.query import map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi
from atlasmap.parity import peer
from atlasmap.settings import ScanviSettings, ScviSettings, SurgerySettings, TrainSettings

SEED, UNLABELED = 0, "Unknown"
FEW = 3


@dataclass(frozen=True)
class How:
    """Epochs of scVI, scANVI and surgery: enough that what is paid once (reading, compiled
    code, the certificate) weighs little more than in the hundreds that users train for; and of the
    models that a task begins with."""

    scvi: int = 20
    scanvi: int = 20
    surgery: int = 50
    before: int = 50
    device: Literal["cpu", "cuda"] = "cpu"

    def epochs(self, task: str) -> int:
        """Of a task."""
        if task in ("latent", "predict"):
            return 1
        return self.scvi if task == "whole" else getattr(self, task.split("_")[0])


@dataclass(frozen=True)
class Data:
    """Cells of a benchmark, where the models that it begins with are, and how and on what it is
    run."""

    reference: anndata.AnnData
    query: anndata.AnnData
    folder: Path
    how: How
    device: torch.device

    def query_batches(self) -> list[anndata.AnnData]:
        """The query's batches, one by one."""
        names = self.query.obs["batch"].unique()
        return [self.query[self.query.obs["batch"] == name].copy() for name in names]


@dataclass(frozen=True)
class Timed:
    """Seconds of a task, cells that passed (× epochs), and its validation ELBO where it trains."""

    seconds: float
    cells: int
    elbo: float | None = None


def timed(work: Callable, cells: int, elbo: Callable | None = None) -> Timed:
    """Run and time `work`; `elbo` reads it off what `work` returns."""
    began = time.perf_counter()
    out = work()
    return Timed(time.perf_counter() - began, cells, elbo(out) if elbo else None)


@dataclass(frozen=True)
class Ours:
    """atlasmap. What is trained further, or operated on, is a copy: both consume what they get."""

    data: Data

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def registry(self) -> Registry:
        return Registry.of(self.data.reference)

    def trained(self, name: str) -> Bundle:
        return load(self.data.folder / name, self.device)

    def scvi(self) -> Bundle:
        settings = ScviSettings(train=TrainSettings(max_epochs=self.data.how.scvi))
        return fit_scvi(self.data.reference, self.registry, settings, SEED, self.device)[0]

    def scanvi(self, scvi: Bundle, variant: str) -> Bundle:
        reference = self.data.reference
        settings = ScanviSettings(train=TrainSettings(max_epochs=self.data.how.scanvi))
        return fit_scanvi(reference, deepcopy(scvi), settings, variant, SEED, self.device)[0]

    def ask(self, model: Bundle, labels: bool) -> None:
        """Latent, and in the same pass label probabilities where the model has them."""
        embed(model.model, encode(self.registry, self.data.reference, self.device))

    def surgery(self, model: Bundle, query: anndata.AnnData, strategy: str) -> Bundle:
        settings = SurgerySettings(max_epochs=self.data.how.surgery)
        return map_query(deepcopy(model), query, settings, strategy, SEED).bundle

    def elbo(self, model: Bundle) -> float:
        of = model.history.query("split == 'validation' and metric == 'elbo'")
        return float(of["value"].iloc[-1])


@dataclass(frozen=True)
class Theirs:
    """scvi-tools, the same. `added` are seconds that trainings of few epochs would have taken
    longer for all of theirs."""

    data: Data
    added: list[float] = field(default_factory=list)

    @property
    def accelerator(self) -> str:
        return self.data.device.type.replace("cuda", "gpu")

    def fitted(self, train: Callable[[int], peer.Trained], epochs: int) -> peer.Trained:
        """`train` for all epochs; on a GPU for FEW, and for one before that to know what is paid
        once."""
        if self.data.device.type == "cpu" or epochs <= FEW:
            return train(epochs)
        one = timed(lambda: train(1), 0).seconds
        began = time.perf_counter()
        model = train(FEW)
        an_epoch = (time.perf_counter() - began - one) / (FEW - 1)
        self.added.append(an_epoch * (epochs - FEW) - one)
        return model

    def trained(self, name: str) -> peer.Trained:
        kind = getattr(peer.scvi_tools().model, name.upper())
        folder, cells = str(self.data.folder / f"{name}_for_scvi_tools"), self.data.reference.copy()
        with peer.quiet():
            return peer.Trained(
                kind.load(folder, cells, accelerator=self.accelerator), np.arange(0)
            )

    def scvi(self) -> peer.Trained:
        def train(epochs: int) -> peer.Trained:
            cells = self.data.reference.copy()
            settings = ScviSettings(train=TrainSettings(max_epochs=epochs))
            return peer.train_scvi(cells, settings, SEED, [], [], self.accelerator)

        return self.fitted(train, self.data.how.scvi)

    def scanvi(self, scvi: peer.Trained, variant: str) -> peer.Trained:
        def train(epochs: int) -> peer.Trained:
            settings = ScanviSettings(train=TrainSettings(max_epochs=epochs))
            return peer.train_scanvi(scvi, settings, variant, SEED, UNLABELED, self.accelerator)

        return self.fitted(train, self.data.how.scanvi)

    def ask(self, model: peer.Trained, labels: bool) -> None:
        model.model.get_latent_representation()
        if labels:
            model.soft_labels()

    def surgery(self, model: peer.Trained, query: anndata.AnnData, strategy: str) -> peer.Trained:
        def train(epochs: int) -> peer.Trained:
            settings = SurgerySettings(max_epochs=epochs)
            return peer.map_query(model, query, settings, SEED, UNLABELED, self.accelerator)

        mapped = self.fitted(train, self.data.how.surgery)
        self.ask(mapped, labels=True)
        return mapped

    def elbo(self, model: peer.Trained) -> float | None:
        return None if self.added else model.last("elbo")


def whole(tool: Ours | Theirs) -> None:
    """scVI, three variants of scANVI, and surgery of each batch onto each."""
    scvi = tool.scvi()
    for variant in ("prefix", "fixed", "linear"):
        model = tool.scanvi(scvi, variant)
        tool.ask(model, labels=True)
        for query in tool.data.query_batches():
            tool.surgery(model, query, "per_batch")


def run(tool: Ours | Theirs, task: str) -> Timed:
    """Run and time a task."""
    data = tool.data
    surgery = task.startswith("surgery")
    passed = data.how.epochs(task) * (data.query if surgery else data.reference).n_obs
    if task == "whole":
        return timed(lambda: whole(tool), passed)
    if task == "scvi":
        return timed(tool.scvi, passed, tool.elbo)
    if task == "scanvi":
        scvi = tool.trained("scvi")
        return timed(lambda: tool.scanvi(scvi, "fixed"), passed, tool.elbo)
    model = tool.trained("scvi" if task == "latent" else "scanvi")
    if task == "latent":
        return timed(lambda: tool.ask(model, labels=False), passed)
    if task == "predict":
        return timed(lambda: tool.ask(model, labels=True), passed)
    strategy = task.removeprefix("surgery_")
    queries = [data.query] if strategy == "joint" else data.query_batches()
    return timed(
        lambda: [tool.surgery(model, query, strategy) for query in queries],
        passed,
        lambda mapped: tool.elbo(mapped[0]),
    )


def peak_mb() -> float:
    """Most memory of this process, NaN where the kernel does not say. (What getrusage tells may be
    that of its parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = (int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return next(found, math.nan)


def prepare(data: Data) -> None:
    """Train the models that tasks begin with, and write them for both tools."""
    before = replace(data.how, scvi=data.how.before, scanvi=data.how.before)
    tool = Ours(replace(data, how=before))
    scvi = tool.scvi()
    for name, bundle in (("scvi", scvi), ("scanvi", tool.scanvi(scvi, "fixed"))):
        save(bundle, data.folder / name)
        write_save(bundle, data.folder / f"{name}_for_scvi_tools", None)


def read(folder: Path) -> Data:
    """What bench.py wrote, and the device that it asks for."""
    how = How(**json.loads((folder / "how.json").read_text()))
    parts = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("reference", "query"))
    return Data(*parts, folder, how, pick_device(how.device))


def ran(data: Data, tool: str, task: str) -> dict:
    """Run a task: what it took, and of what card."""
    if tool == "scvi-tools":  # as its users run it
        torch.set_deterministic_debug_mode("default")
    does = Ours(data) if tool == "atlasmap" else Theirs(data)
    found, peak = run(does, task), peak_mb()
    added = getattr(does, "added", [])
    seconds = found.seconds + sum(added)
    told = {"seconds": seconds, "cells_per_s": found.cells / seconds,
            "elbo": found.elbo, "peak_mb": peak, "threads": torch.get_num_threads()}  # fmt: skip
    if added:
        told |= {"epochs_timed": FEW}
    if data.device.type == "cuda":
        told |= {"gpu": torch.cuda.get_device_name(),
                 "gpu_mb": torch.cuda.max_memory_allocated() / 2**20}  # fmt: skip
    return told


def main(tool: str, task: str, folder: Path) -> None:
    """Run a task and print what it took."""
    logging.disable(logging.WARNING)
    data = read(folder)
    if task == "prepare":
        return prepare(data)
    print(json.dumps(ran(data, tool, task)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
