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
from dataclasses import dataclass
from pathlib import Path

import anndata
import torch

from atlasmap.settings import ScanviSettings, ScviSettings, SurgerySettings, TrainSettings

SEED, UNLABELED = 0, "Unknown"
EPOCHS, SURGERY_EPOCHS, BEFORE = 5, 20, 10  # of a task that trains, of surgery, of its reference


@dataclass(frozen=True)
class Data:
    """Cells of a benchmark, and epochs that a reference is trained for."""

    reference: anndata.AnnData
    query: anndata.AnnData
    epochs: int

    @property
    def scvi(self) -> ScviSettings:
        return ScviSettings(train=TrainSettings(max_epochs=self.epochs))

    @property
    def scanvi(self) -> ScanviSettings:
        return ScanviSettings(train=TrainSettings(max_epochs=self.epochs))

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


def of_atlasmap(task: str, data: Data) -> Timed:
    """A task of ours."""
    from atlasmap.data.registry import Registry
    from atlasmap.inference import embed
    from atlasmap.mapping import map_query
    from atlasmap.reference import fit_scanvi, fit_scvi

    cpu = torch.device("cpu")
    registry = Registry.of(data.reference, UNLABELED, [], [])

    def scvi():
        return fit_scvi(data.reference, registry, data.scvi, SEED, cpu)[0]

    def scanvi(first=None, variant="fixed"):
        first = first or scvi()
        return fit_scanvi(data.reference, first, data.scanvi, variant, SEED, cpu)[0]

    def elbo(bundle) -> float:
        history = bundle.history
        of = history[(history["split"] == "validation") & (history["metric"] == "elbo")]
        return float(of["value"].iloc[-1])

    def surgery(reference, queries, strategy):
        return [map_query(reference(), q, data.surgery, strategy, SEED) for q in queries]

    passed = data.epochs * data.reference.n_obs
    if task == "scvi":
        return timed(scvi, passed, elbo)
    if task == "scanvi":
        first = scvi()
        return timed(lambda: scanvi(first), passed, elbo)
    if task in ("latent", "predict"):
        model = scvi() if task == "latent" else scanvi()

        def ask():
            return embed(model.model, registry.encode(data.reference, cpu))

        return timed(ask, data.reference.n_obs)
    if task.startswith("surgery"):
        from copy import deepcopy

        reference, joint = scanvi(), task == "surgery_joint"
        queries = [data.query] if joint else data.query_batches()
        strategy = "joint" if joint else "per_batch"
        return timed(
            lambda: surgery(lambda: deepcopy(reference), queries, strategy),
            SURGERY_EPOCHS * data.query.n_obs,
            lambda mapped: elbo(mapped[0].bundle),
        )

    def whole():
        from copy import deepcopy

        first = scvi()
        for variant in ("prefix", "fixed", "linear"):
            reference = scanvi(deepcopy(first), variant)
            embed(reference.model, registry.encode(data.reference, cpu))
            surgery(lambda kept=reference: deepcopy(kept), data.query_batches(), "per_batch")

    return timed(whole, passed)


def of_scvi_tools(task: str, data: Data) -> Timed:
    """The same task of scvi-tools."""
    from atlasmap.exchange import peer

    def scvi():
        return peer.train_scvi(data.reference.copy(), data.scvi, SEED, [], [])

    def scanvi(first=None, variant="fixed"):
        return peer.train_scanvi(first or scvi(), data.scanvi, variant, SEED, UNLABELED)

    def elbo(trained) -> float:
        return trained.last("elbo")

    def surgery(reference, queries):
        out = []
        for query in queries:
            mapped = peer.map_query(reference, query, data.surgery, SEED, UNLABELED)
            mapped.model.get_latent_representation()
            mapped.soft_labels()
            out.append(mapped)
        return out

    passed = data.epochs * data.reference.n_obs
    if task == "scvi":
        return timed(scvi, passed, elbo)
    if task == "scanvi":
        first = scvi()
        return timed(lambda: scanvi(first), passed, elbo)
    if task == "latent":
        model = scvi().model
        return timed(model.get_latent_representation, data.reference.n_obs)
    if task == "predict":
        trained = scanvi()

        def ask():  # ours gives both in one pass
            trained.model.get_latent_representation()
            return trained.soft_labels()

        return timed(ask, data.reference.n_obs)
    if task.startswith("surgery"):
        reference = scanvi()
        queries = [data.query] if task == "surgery_joint" else data.query_batches()
        return timed(
            lambda: surgery(reference, queries), SURGERY_EPOCHS * data.query.n_obs,
            lambda mapped: elbo(mapped[0]),
        )  # fmt: skip

    def whole():
        first = scvi()
        for variant in ("prefix", "fixed", "linear"):
            trained = scanvi(first, variant)
            trained.model.get_latent_representation()
            trained.soft_labels()
            surgery(trained, data.query_batches())

    return timed(whole, passed)


def main(tool: str, task: str, folder: Path) -> None:
    """Run a task and print what it took."""
    logging.disable(logging.WARNING)
    parts = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("reference", "query"))
    epochs = BEFORE if task.startswith("surgery") else EPOCHS
    found = (of_atlasmap if tool == "atlasmap" else of_scvi_tools)(task, Data(*parts, epochs))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    said = {"epochs": SURGERY_EPOCHS if task.startswith("surgery") else EPOCHS}
    said |= {"seconds": found.seconds, "cells_per_s": found.cells / found.seconds,
            "elbo": found.elbo, "peak_mb": peak, "threads": torch.get_num_threads()}  # fmt: skip
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
