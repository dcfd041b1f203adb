"""One task of the benchmark in a process of its own; prints a line of JSON.

python tests/bench/tasks.py TOOL TASK FOLDER

TOOL: atlasmap or scvi-tools. FOLDER has reference.h5ad, query.h5ad and how.json, as bench.py makes
them. Both tools are given the same cells, settings and epochs. What a user waits for is timed:
reading counts into tensors, training with validation, and of surgery the query's latent and soft
labels (and atlasmap's certificate) as well. The trained models that other tasks begin with are the
same for both: `prepare` trains them with atlasmap and writes them for scvi-tools too.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import torch

from atlasmap.bundle import Bundle, load, save
from atlasmap.data.registry import Registry
from atlasmap.exchange import peer
from atlasmap.exchange.exporting import write_save
from atlasmap.inference import embed
from atlasmap.mapping import map_query
from atlasmap.reference import fit_scanvi, fit_scvi
from atlasmap.settings import ScanviSettings, ScviSettings, SurgerySettings, TrainSettings

SEED, UNLABELED = 0, "Unknown"


@dataclass(frozen=True)
class How:
    """Epochs of scVI, scANVI and surgery: enough that what is paid once (reading, compiled
    code, the certificate) weighs little more than in the hundreds that users train for; and of the
    models that a task begins with. `device` is cpu or cuda."""

    scvi: int = 20
    scanvi: int = 20
    surgery: int = 50
    before: int = 50
    device: str = "cpu"

    def epochs(self, task: str) -> int:
        """Of a task."""
        if task in ("latent", "predict"):
            return 1
        return self.scvi if task == "whole" else getattr(self, task.split("_")[0])


@dataclass(frozen=True)
class Data:
    """Cells of a benchmark, where the models that it begins with are, and how it is run."""

    reference: anndata.AnnData
    query: anndata.AnnData
    folder: Path
    how: How

    @property
    def scvi(self) -> ScviSettings:
        return ScviSettings(train=TrainSettings(max_epochs=self.how.scvi))

    @property
    def scanvi(self) -> ScanviSettings:
        return ScanviSettings(train=TrainSettings(max_epochs=self.how.scanvi))

    @property
    def surgery(self) -> SurgerySettings:
        return SurgerySettings(max_epochs=self.how.surgery)

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
        return torch.device(self.data.how.device)

    @property
    def registry(self) -> Registry:
        return Registry.of(self.data.reference, UNLABELED, [], [])

    def trained(self, name: str) -> Bundle:
        return load(self.data.folder / name, self.device)

    def scvi(self) -> Bundle:
        return fit_scvi(self.data.reference, self.registry, self.data.scvi, SEED, self.device)[0]

    def scanvi(self, scvi: Bundle, variant: str) -> Bundle:
        reference, settings = self.data.reference, self.data.scanvi
        return fit_scanvi(reference, deepcopy(scvi), settings, variant, SEED, self.device)[0]

    def ask(self, model: Bundle, labels: bool) -> None:
        """Latent, and in the same pass label probabilities where the model has them."""
        embed(model.model, self.registry.encode(self.data.reference, self.device))

    def surgery(self, model: Bundle, query: anndata.AnnData, strategy: str) -> Bundle:
        return map_query(deepcopy(model), query, self.data.surgery, strategy, SEED).bundle

    def elbo(self, model: Bundle) -> float:
        of = model.history.query("split == 'validation' and metric == 'elbo'")
        return float(of["value"].iloc[-1])


@dataclass(frozen=True)
class Theirs:
    """scvi-tools, the same."""

    data: Data

    @property
    def accelerator(self) -> str:
        return self.data.how.device.replace("cuda", "gpu")

    def trained(self, name: str) -> peer.Trained:
        kind = getattr(peer.scvi_tools().model, name.upper())
        folder, cells = str(self.data.folder / f"{name}_for_scvi_tools"), self.data.reference.copy()
        with peer.quiet():
            return peer.Trained(
                kind.load(folder, cells, accelerator=self.accelerator), np.arange(0)
            )

    def scvi(self) -> peer.Trained:
        cells, settings = self.data.reference.copy(), self.data.scvi
        return peer.train_scvi(cells, settings, SEED, [], [], self.accelerator)

    def scanvi(self, scvi: peer.Trained, variant: str) -> peer.Trained:
        settings = self.data.scanvi
        return peer.train_scanvi(scvi, settings, variant, SEED, UNLABELED, self.accelerator)

    def ask(self, model: peer.Trained, labels: bool) -> None:
        model.model.get_latent_representation()
        if labels:
            model.soft_labels()

    def surgery(self, model: peer.Trained, query: anndata.AnnData, strategy: str) -> peer.Trained:
        settings = self.data.surgery
        mapped = peer.map_query(model, query, settings, SEED, UNLABELED, self.accelerator)
        self.ask(mapped, labels=True)
        return mapped

    def elbo(self, model: peer.Trained) -> float:
        return model.last("elbo")


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
    """Most memory of this process. (What getrusage tells may be that of its parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def prepare(data: Data) -> None:
    """Train the models that tasks begin with, and write them for both tools."""
    before = replace(data.how, scvi=data.how.before, scanvi=data.how.before)
    tool = Ours(replace(data, how=before))
    scvi = tool.scvi()
    for name, bundle in (("scvi", scvi), ("scanvi", tool.scanvi(scvi, "fixed"))):
        save(bundle, data.folder / name)
        write_save(bundle, data.folder / f"{name}_for_scvi_tools", None)


def main(tool: str, task: str, folder: Path) -> None:
    """Run a task and print what it took."""
    logging.disable(logging.WARNING)
    parts = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("reference", "query"))
    data = Data(*parts, folder, How(**json.loads((folder / "how.json").read_text())))
    if task == "prepare":
        return prepare(data)
    found = run(Ours(data) if tool == "atlasmap" else Theirs(data), task)
    peak = peak_mb()
    told = {"seconds": found.seconds, "cells_per_s": found.cells / found.seconds,
            "elbo": found.elbo, "peak_mb": peak, "threads": torch.get_num_threads()}  # fmt: skip
    if data.how.device == "cuda":
        told |= {"gpu": torch.cuda.get_device_name(),
                 "gpu_mb": torch.cuda.max_memory_allocated() / 2**20}  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
