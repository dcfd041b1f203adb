"""What a run will cost: a short probe of this device, the data's size, the settings; corrected by
what earlier runs really took.

Training, surgery and inference are timed with the models themselves on made-up cells of the data's
size; the other stages by what they were seen to take here per cell, scaled by how long this machine
takes to start Python with torch.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atlasmap.config import variant_block
from atlasmap.probe import Sizes, Speeds
from atlasmap.reference import SCANVI_EPOCHS
from atlasmap.settings import Config, ScanviSettings
from atlasmap.training.loop import epochs_by_size

START_SECONDS = 1.6  # of torch and anndata, where the constants below were measured
SAFE_MEMORY, SAFE_TIME, MORE_MB, MORE_MINUTES = 1.25, 2.0, 300, 5
GPU_RULES = ("train_scvi", "train_scanvi", "map_per_batch", "map_joint")


@dataclass(frozen=True)
class Forecast:
    """One rule: jobs, seconds of the longest job and of all, MB of memory (and of a GPU's)."""

    rule: str
    jobs: int
    seconds: float
    all_seconds: float
    mem_mb: float
    gpu_mb: float = 0.0


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
