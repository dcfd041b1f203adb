"""One task of the benchmark in a process of its own; prints a line of JSON.

python tests/bench/tasks.py TOOL TASK FOLDER

TOOL: atlasmap or scvi-tools. FOLDER has reference.h5ad and query.h5ad, as bench.py makes them. Both
tools are given the same cells, settings and epochs. What comes before a task (a reference for
surgery) is not timed; what a user waits for in it is: reading counts into tensors, training with
validation, and of surgery the query's latent and soft labels (and atlasmap's certificate) as well.
"""

import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import anndata
import torch

from atlasmap.bundle import Bundle
from atlasmap.data.registry import Registry
from atlasmap.exchange import peer
from atlasmap.inference import embed
from atlasmap.mapping import map_query
from atlasmap.reference import fit_scanvi, fit_scvi
from atlasmap.settings import ScanviSettings, ScviSettings, SurgerySettings, TrainSettings

SEED, UNLABELED, CPU = 0, "Unknown", torch.device("cpu")
# Of a task that trains, of surgery, and of what is trained before a task: enough that what is paid
# once (reading, compiled code, the certificate) weighs little more than in the hundreds that users
# train for.
EPOCHS, SURGERY_EPOCHS, BEFORE = 20, 50, 5


@dataclass(frozen=True)
class Data:
    """Cells of a benchmark, and epochs that scVI and scANVI are trained for."""

    reference: anndata.AnnData
    query: anndata.AnnData
    of_scvi: int
    of_scanvi: int

    @property
    def scvi(self) -> ScviSettings:
        return ScviSettings(train=TrainSettings(max_epochs=self.of_scvi))

    @property
    def scanvi(self) -> ScanviSettings:
        return ScanviSettings(train=TrainSettings(max_epochs=self.of_scanvi))

    @property
    def surgery(self) -> SurgerySettings:
        return SurgerySettings(max_epochs=SURGERY_EPOCHS)

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
    def registry(self) -> Registry:
        return Registry.of(self.data.reference, UNLABELED, [], [])

    def scvi(self) -> Bundle:
        return fit_scvi(self.data.reference, self.registry, self.data.scvi, SEED, CPU)[0]

    def scanvi(self, scvi: Bundle, variant: str) -> Bundle:
        reference, settings = self.data.reference, self.data.scanvi
        return fit_scanvi(reference, deepcopy(scvi), settings, variant, SEED, CPU)[0]

    def ask(self, model: Bundle, labels: bool) -> None:
        """Latent, and in the same pass label probabilities where the model has them."""
        embed(model.model, self.registry.encode(self.data.reference, CPU))

    def surgery(self, model: Bundle, query: anndata.AnnData, strategy: str) -> Bundle:
        return map_query(deepcopy(model), query, self.data.surgery, strategy, SEED).bundle

    def elbo(self, model: Bundle) -> float:
        of = model.history.query("split == 'validation' and metric == 'elbo'")
        return float(of["value"].iloc[-1])


@dataclass(frozen=True)
class Theirs:
    """scvi-tools, the same."""

    data: Data

    def scvi(self) -> peer.Trained:
        return peer.train_scvi(self.data.reference.copy(), self.data.scvi, SEED, [], [])

    def scanvi(self, scvi: peer.Trained, variant: str) -> peer.Trained:
        return peer.train_scanvi(scvi, self.data.scanvi, variant, SEED, UNLABELED)

    def ask(self, model: peer.Trained, labels: bool) -> None:
        model.model.get_latent_representation()
        if labels:
            model.soft_labels()

    def surgery(self, model: peer.Trained, query: anndata.AnnData, strategy: str) -> peer.Trained:
        mapped = peer.map_query(model, query, self.data.surgery, SEED, UNLABELED)
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
    passed = EPOCHS * data.reference.n_obs
    if task == "whole":
        return timed(lambda: whole(tool), passed)
    if task == "scvi":
        return timed(tool.scvi, passed, tool.elbo)
    scvi = tool.scvi()
    if task == "scanvi":
        return timed(lambda: tool.scanvi(scvi, "fixed"), passed, tool.elbo)
    if task == "latent":
        return timed(lambda: tool.ask(scvi, labels=False), data.reference.n_obs)
    model = tool.scanvi(scvi, "fixed")
    if task == "predict":
        return timed(lambda: tool.ask(model, labels=True), data.reference.n_obs)
    strategy = task.removeprefix("surgery_")
    queries = [data.query] if strategy == "joint" else data.query_batches()
    return timed(
        lambda: [tool.surgery(model, query, strategy) for query in queries],
        SURGERY_EPOCHS * data.query.n_obs,
        lambda mapped: tool.elbo(mapped[0]),
    )


def main(tool: str, task: str, folder: Path) -> None:
    """Run a task and print what it took."""
    logging.disable(logging.WARNING)
    parts = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("reference", "query"))
    of_scvi = EPOCHS if task in ("scvi", "whole") else BEFORE
    of_scanvi = EPOCHS if task in ("scanvi", "whole") else BEFORE
    data = Data(*parts, of_scvi, of_scanvi)
    found = run(Ours(data) if tool == "atlasmap" else Theirs(data), task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    said = {"epochs": SURGERY_EPOCHS if task.startswith("surgery") else EPOCHS}
    said |= {"seconds": found.seconds, "cells_per_s": found.cells / found.seconds,
            "elbo": found.elbo, "peak_mb": peak, "threads": torch.get_num_threads()}  # fmt: skip
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
