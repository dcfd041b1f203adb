"""What a run will cost: a short probe of this device, the data's size, the settings; corrected by
what earlier runs really took.

Training, surgery and inference are timed with the models themselves on made-up cells of the data's
size; the other stages by what they were seen to take here per cell, scaled by how long this machine
takes to start Python with torch.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from atlasmap.config import variant_block
from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi, Shape
from atlasmap.models.surgery import append_categories
from atlasmap.reference import SCANVI_EPOCHS
from atlasmap.settings import Config, ScanviSettings, TrainSettings
from atlasmap.training.cells import Cells, Counts
from atlasmap.training.loop import Training, epochs_by_size
from atlasmap.training.objectives import SemiSupervised, Unsupervised
from atlasmap.training.split import split_cells

PROBED_CELLS, PROBE_SECONDS = 2048, 6.0
START_SECONDS = 1.6  # of torch and anndata, where the constants below were measured
SAFE_MEMORY, SAFE_TIME, MORE_MB, MORE_MINUTES = 1.25, 2.0, 300, 5
GPU_RULES = ("train_scvi", "train_scanvi", "map_per_batch", "map_joint")


@dataclass(frozen=True)
class Sizes:
    """The data, as contract.json has them; `nonzero` is the share of counts above zero."""

    n_reference: int
    n_genes: int
    nonzero: float
    n_batches: int
    n_labels: int
    queries: list[int]

    @classmethod
    def of(cls, contract: dict) -> "Sizes":
        """From contract.json."""
        reference = contract["reference"]
        labels = reference["labels"]
        return cls(
            reference["n_cells"],
            reference["n_genes"],
            reference["counts"]["share_nonzero"],
            len(reference["batches"]),
            len(labels) if isinstance(labels, dict) else 0,
            [query["n_cells"] for query in contract["queries"].values()],
        )

    @property
    def n_query(self) -> int:
        """Query cells in all."""
        return sum(self.queries)

    def counts_mb(self, n_cells: int) -> float:
        """Memory of counts as read, encoded and hashed (bytes a stored value: measured)."""
        return 45e-6 * n_cells * self.n_genes * self.nonzero


@dataclass(frozen=True)
class Speeds:
    """Seconds a cell and epoch of each training, and seconds to start."""

    scvi: float
    scanvi: float
    surgery: float
    start: float


@dataclass(frozen=True)
class Forecast:
    """One rule: jobs, seconds of the longest job and of all, MB of memory (and of a GPU's)."""

    rule: str
    jobs: int
    seconds: float
    all_seconds: float
    mem_mb: float
    gpu_mb: float = 0.0


def made_up_cells(sizes: Sizes, n: int, device: torch.device, n_batches: int) -> Cells:
    """Cells of the data's genes and sparsity."""
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
    )


def seconds_per_cell(objective, train: TrainSettings, **how: bool) -> float:
    """Of one epoch, its validation included; the first epoch warms up."""
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
    """How long this machine takes to start Python with what every job needs."""
    took = []
    for _ in range(2):  # the first reads the disk
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch, anndata"], check=True)
        took.append(time.monotonic() - began)
    return min(took)


def probe(sizes: Sizes, config: Config, device: torch.device) -> Speeds:
    """Half a minute of training on made-up cells."""
    n = min(sizes.n_reference, PROBED_CELLS)
    model = Scvi(config.scvi, Shape(sizes.n_genes, (sizes.n_batches,)), keyed_generator(0, "probe"))
    cells = made_up_cells(sizes, n, device, sizes.n_batches)

    def objective_of(model, cells, train, cls=Unsupervised, *more):
        split = split_cells(np.arange(len(cells)), train.train_size, 0)
        return cls(model.to(device), cells, split, train.batch_size, 0, "probe", *more)

    scvi = seconds_per_cell(objective_of(model, cells, config.scvi.train), config.scvi.train)
    scanvi = 0.0
    if sizes.n_labels:
        settings = config.scanvi
        model = Scanvi(model.cpu(), "fixed", sizes.n_labels, keyed_generator(0, "probe"))
        more = (settings.classification_ratio, settings.n_samples_per_label)
        objective = objective_of(model, cells, settings.train, SemiSupervised, *more)
        scanvi = seconds_per_cell(objective, settings.train)
    surgery = 0.0
    if sizes.queries:
        n = min(int(np.median(sizes.queries)), PROBED_CELLS)
        append_categories(model, {0: ["query"]}, 0)
        cells = made_up_cells(replace(sizes, n_labels=0), n, device, 1)
        train = TrainSettings(max_epochs=1, batch_size=config.surgery.batch_size, weight_decay=0)
        surgery = seconds_per_cell(
            objective_of(model, cells, train), train,
            dropout=config.surgery.surgery_dropout, batch_statistics=False,
        )  # fmt: skip
    return Speeds(scvi, scanvi, surgery, start_seconds())


def gpu_mb(sizes: Sizes, config: Config, n_cells: int) -> float:
    """Weights, their gradients and Adam's moments; counts; activations; the CUDA context."""
    wide = config.scvi.n_hidden * (2 * sizes.n_genes + config.scvi.n_hidden * config.scvi.n_layers)
    minibatch = config.scvi.train.batch_size * sizes.n_genes * 4 * 24
    counts = 20 * n_cells * sizes.n_genes * sizes.nonzero
    return (wide * 16 * 2 + minibatch + counts) / 1e6 + 700


def forecast(sizes: Sizes, config: Config, given: dict, speeds: Speeds) -> list[Forecast]:
    """Every rule, from sizes, settings (`given`: the config as written) and speeds."""
    n, all_cells, slow = (
        sizes.n_reference,
        sizes.n_reference + sizes.n_query,
        speeds.start / START_SECONDS,
    )
    seeds, n_queries = len(config.seeds), len(sizes.queries)
    models = len(config.variants) if sizes.n_labels else 1
    strategies = len(config.strategies) if sizes.queries else 0
    counts, every = sizes.counts_mb(n), sizes.counts_mb(all_cells)
    out = []

    def add(rule: str, jobs: int, seconds: float, mem_mb: float, gpu: float = 0.0) -> None:
        if jobs:
            out.append(Forecast(rule, jobs, seconds, seconds * jobs, mem_mb, gpu))

    starts = 2.6 * slow
    epochs = config.scvi.train.max_epochs or epochs_by_size(n)
    train = starts + 1.0 * slow
    gpu = gpu_mb(sizes, config, n)
    add("train_scvi", seeds, train + epochs * n * speeds.scvi, 500 + counts, gpu)
    if sizes.n_labels:
        blocks = [variant_block(given, variant) for variant in config.variants]
        default = ScanviSettings().train.max_epochs or SCANVI_EPOCHS
        most = max((b.get("train") or {}).get("max_epochs") or default for b in blocks)
        add("train_scanvi", seeds * models, train + most * n * speeds.scanvi, 500 + counts, gpu)
    per_cell = config.surgery.max_epochs * speeds.surgery
    most = config.mapping.batches_per_job
    if "per_batch" in config.strategies and sizes.queries:
        largest = max(sizes.queries)
        jobs = -(-n_queries // most)
        seconds = train + min(most, n_queries) * (0.4 * slow + largest * per_cell)
        mem = 500 + sizes.counts_mb(largest)
        add("map_per_batch", jobs * models * seeds, seconds, mem, gpu_mb(sizes, config, largest))
    if "joint" in config.strategies and sizes.queries:
        mem, gpu = 500 + sizes.counts_mb(sizes.n_query), gpu_mb(sizes, config, sizes.n_query)
        add("map_joint", models * seeds, train + sizes.n_query * per_cell, mem, gpu)
    fitted = min(n, config.umap.max_cells)
    add("fit_umap", models * seeds, slow * (12.5 + 4.6e-3 * fitted), 680 + 0.02 * fitted)
    add(
        "assemble",
        models * strategies * seeds,
        slow * (8.5 + 3e-4 * all_cells),
        670 + 0.02 * all_cells,
    )
    embeddings = 1 + (1 + models if sizes.n_labels else 1) + models * strategies
    together = all_cells <= config.benchmark.split_above
    jobs, each = (seeds, embeddings) if together else (seeds * embeddings, 1)
    seconds = slow * (44 + each * (2.3 + 6.4e-4 * all_cells))
    add("score_embeddings", jobs, seconds, 1800 + every + 0.2 * min(all_cells, 50_000))
    runs = max(1, models * strategies * seeds)
    add(
        "score_labels",
        int(bool(sizes.n_labels)),
        slow * (3.3 + 8e-5 * runs * all_cells),
        480 + 0.01 * all_cells,
    )
    add("prepare_reference", 1, slow * (3 + 5e-4 * n), 700 + 4 * counts)
    add(
        "prepare_query",
        n_queries,
        slow * (2.7 + 3e-4 * sizes.n_query),
        420 + 2 * sizes.counts_mb(sizes.n_query),
    )
    return out


def rule_of(benchmark: Path) -> str | None:
    """The rule a benchmark file in a result tree belongs to."""
    parts = benchmark.parts[benchmark.parts.index("logs") + 1 :]
    name = parts[1] if parts[0].startswith("seed") else parts[0]
    known = ("train_scvi", "train_scanvi", "map_per_batch", "map_joint", "fit_umap", "assemble",
             "score_embeddings", "score_labels", "prepare_reference", "prepare_query")  # fmt: skip
    return next((rule for rule in known if name.startswith(rule)), None)


def measured(folder: Path) -> pd.DataFrame:
    """Seconds and MB of every finished job of an atlas (Snakemake's benchmark files)."""
    rows = []
    for path in sorted((folder / "logs").glob("**/*.tsv")):
        rule, table = rule_of(path), pd.read_csv(path, sep="\t")
        if rule and len(table):
            last = table.iloc[-1]
            rows.append((rule, float(last["s"]), float(last["max_rss"])))
    return pd.DataFrame(rows, columns=["rule", "seconds", "mem_mb"])


def corrections(results: Path) -> dict[str, tuple[float, float]]:
    """Rule → by how much time and memory of earlier runs differed from their forecast."""
    ratios = []
    for plan in sorted(results.glob("*/forecast.json")):
        raw = {row["rule"]: row for row in json.loads(plan.read_text())["raw"]}
        for rule, jobs in measured(plan.parent).groupby("rule"):
            if rule in raw:
                time_ratio = jobs["seconds"].median() / raw[rule]["seconds"]
                ratios.append((rule, time_ratio, jobs["mem_mb"].max() / raw[rule]["mem_mb"]))
    table = pd.DataFrame(ratios, columns=["rule", "time", "memory"])
    by_rule = table.groupby("rule").agg({"time": "median", "memory": "max"})
    return {rule: (row["time"], row["memory"]) for rule, row in by_rule.iterrows()}


def corrected(raw: list[Forecast], by: dict[str, tuple[float, float]]) -> list[Forecast]:
    """Forecasts scaled by what earlier runs took; memory is never taken to be less than seen."""
    out = []
    for row in raw:
        time_ratio, memory = by.get(row.rule, (1.0, 1.0))
        seconds, mem = row.seconds * time_ratio, row.mem_mb * max(memory, 0.5)
        out.append(replace(row, seconds=seconds, all_seconds=seconds * row.jobs, mem_mb=mem))
    return out


def resources(forecasts: list[Forecast]) -> dict[str, dict[str, int]]:
    """What jobs ask for: the forecast and some more."""
    return {
        row.rule: {
            "mem_mb": int(SAFE_MEMORY * row.mem_mb + MORE_MB),
            "runtime": int(np.ceil(SAFE_TIME * row.seconds / 60 + MORE_MINUTES)),
        }
        for row in forecasts
    }


def as_json(
    raw: list[Forecast], rows: list[Forecast], speeds: Speeds, device: torch.device
) -> dict:
    """forecast.json: what the workflow reads (`resources`), and how it came about."""
    gpu_seconds = sum(row.all_seconds for row in rows if row.rule in GPU_RULES)
    return {
        "device": device.type,
        "hours": round(sum(row.all_seconds for row in rows) / 3600, 3),
        "gpu_hours": round(gpu_seconds / 3600, 3),
        "resources": resources(rows),
        "forecast": [asdict(row) for row in rows],
        "raw": [asdict(row) for row in raw],
        "speeds": asdict(speeds),
    }
