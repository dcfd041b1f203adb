"""Measure how fast this device trains the models, on simulated cells of the data's size."""

import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse

from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import append_categories
from atlasmap.models.totalvi import Totalvi
from atlasmap.models.vae import Shape
from atlasmap.settings import Config, TrainSettings
from atlasmap.training.cells import Cells, Counts
from atlasmap.training.loop import Training
from atlasmap.training.objectives import SemiSupervised, Unsupervised
from atlasmap.training.split import split_cells

PROBED_CELLS, PROBE_SECONDS = 2048, 6.0


@dataclass(frozen=True)
class Sizes:
    """Size of the data, from contract.json; `nonzero` is the fraction of counts above zero."""

    n_reference: int
    n_genes: int
    nonzero: float
    n_batches: int
    n_labels: int
    queries: list[int]
    n_proteins: int = 0

    @classmethod
    def of(cls, contract: dict) -> "Sizes":
        """Returns the sizes in the content of contract.json."""
        reference, queries = contract["reference"], contract["queries"].values()
        labels = reference["labels"]
        # a given (already trained) reference has no counts
        counts = [part["counts"] for part in (reference, *queries) if "counts" in part]
        return cls(
            reference["n_cells"],
            reference["n_genes"],
            counts[0]["share_nonzero"],
            len(reference["batches"]),
            len(labels) if isinstance(labels, dict) else 0,
            [query["n_cells"] for query in queries],
            len(reference.get("panel", {}).get("proteins", [])),
        )

    @property
    def n_query(self) -> int:
        """Total number of query cells."""
        return sum(self.queries)

    def counts_mb(self, n_cells: int) -> float:
        """Returns MB needed to read, encode and hash counts (45 bytes per nonzero, measured)."""
        return 45e-6 * n_cells * self.n_genes * self.nonzero


@dataclass(frozen=True)
class Speeds:
    """Measured speed of this device.

    `scvi` (or totalVI), `scanvi`, `surgery`: seconds per cell and epoch. `start`: seconds to start
    a job. `mb`: memory of a training process without its data.
    """

    scvi: float
    scanvi: float
    surgery: float
    start: float
    mb: float


def made_up_cells(sizes: Sizes, n: int, device: torch.device, n_batches: int) -> Cells:
    """Returns `n` simulated cells with the data's number of genes and sparsity."""
    rng = np.random.default_rng(0)
    counts = sparse.random(n, sizes.n_genes, sizes.nonzero, "csr", np.float32, rng)
    counts.data[:] = rng.geometric(0.5, len(counts.data))
    labels = rng.integers(0, sizes.n_labels, n) if sizes.n_labels else np.full(n, -1)
    return Cells(
        Counts.of(counts, device),
        torch.as_tensor(rng.integers(0, n_batches, (n, 1)), device=device),
        None,
        torch.as_tensor(labels, device=device),
        np.arange(n).astype(str),
        torch.as_tensor(rng.poisson(20.0, (n, sizes.n_proteins)), device=device).float()
        if sizes.n_proteins
        else None,
    )


def seconds_per_cell(objective, train: TrainSettings, **how: bool) -> float:
    """Returns seconds per cell of one epoch with validation; an untimed epoch warms up first."""
    how = {"dropout": True, "batch_statistics": True} | how
    training = Training(objective, replace(train, max_epochs=10**6), **how)
    training.train_epoch(lambda: None)
    began, epochs = time.monotonic(), 0
    while time.monotonic() - began < PROBE_SECONDS:
        training.train_epoch(lambda: None)
        epochs += 1
        if objective.cells.device.type == "cuda":
            torch.cuda.synchronize()
    return (time.monotonic() - began) / epochs / len(objective.cells)


def start_seconds() -> float:
    """Returns the seconds that starting Python and importing torch and anndata takes."""
    took = []
    for _ in range(2):  # the first run reads from disk, the second from the cache
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch, anndata"], check=True)
        took.append(time.monotonic() - began)
    return min(took)


def generator() -> torch.Generator:
    """Returns a generator for initial weights, whose values do not matter here."""
    return keyed_generator(0, "probe")


def probe(sizes: Sizes, config: Config, device: torch.device) -> Speeds:
    """Time training, surgery and start-up on this device; takes about half a minute."""
    n, citeseq, rng = min(sizes.n_reference, PROBED_CELLS), sizes.n_proteins > 0, generator()
    shape = Shape(sizes.n_genes, (sizes.n_batches,), n_proteins=sizes.n_proteins)
    model = Totalvi(config.totalvi, shape, 0, rng) if citeseq else Scvi(config.scvi, shape, rng)
    own = config.totalvi.train if citeseq else config.scvi.train
    cells = made_up_cells(sizes, n, device, sizes.n_batches)

    def objective_of(model, cells, train, cls=Unsupervised, *more):
        split = split_cells(np.arange(len(cells)), train.train_size, 0)
        return cls(model.to(device), cells, split, train.batch_size, 0, "probe", *more)

    scvi = seconds_per_cell(objective_of(model, cells, own), own)
    scanvi = 0.0
    if sizes.n_labels and not citeseq:
        settings = config.scanvi
        model = Scanvi(model.cpu(), "fixed", sizes.n_labels, generator())
        more = (settings.classification_ratio, settings.n_samples_per_label)
        objective = objective_of(model, cells, settings.train, SemiSupervised, *more)
        scanvi = seconds_per_cell(objective, settings.train)
    surgery = 0.0
    if sizes.queries:
        n = min(int(np.median(sizes.queries)), PROBED_CELLS)
        append_categories(model, {0: ["query"]}, 0)
        cells = made_up_cells(replace(sizes, n_labels=0), n, device, 1)
        how = config.totalvi_surgery if citeseq else config.surgery
        train = TrainSettings(max_epochs=1, batch_size=how.batch_size, weight_decay=0)
        surgery = seconds_per_cell(
            objective_of(model, cells, train), train,
            dropout=how.surgery_dropout, batch_statistics=False,
        )  # fmt: skip
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Speeds(scvi, scanvi, surgery, start_seconds(), mb)
