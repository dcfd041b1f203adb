"""Forecast time and memory of training and mapping.

The models are timed on simulated cells on this device (`speed_probe`), scaled by the data's size
and the settings, and corrected by what earlier runs took. Other stages are not forecast: they take
minutes, and request memory by the size of their inputs.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atlasmap.config import MOST_HELD_OUT, N_DEPTHS, n_folds, variant_block
from atlasmap.forecast.speed_probe import Sizes, Speeds
from atlasmap.mapping.reference import SCANVI_EPOCHS
from atlasmap.settings import Config
from atlasmap.training.loop import epochs_by_size

# Rules that train or map.
RULES = ("train_scvi", "train_scanvi", "train_totalvi", "denoise_reference", "train_held_out",
         "map_per_batch", "map_joint")  # fmt: skip
SAFE_MEMORY, SAFE_TIME, MORE_MB, MORE_MINUTES = 1.25, 2.0, 300, 5
# Time to decode one sample, as a fraction of a training step: the probe does not time denoising.
DECODING = 0.4
DENOISED_LAYERS = 4  # cells × genes arrays: mean, both interval bounds, and one in assembly


@dataclass(frozen=True)
class Forecast:
    """Forecast of a rule: number of jobs, seconds of the longest job and of all, MB per job."""

    rule: str
    jobs: int
    seconds: float
    all_seconds: float
    mem_mb: float
    gpu_mb: float = 0.0


def gpu_mb(sizes: Sizes, config: Config, n_cells: int) -> float:
    """Returns MB on the GPU: weights with gradients and Adam moments, counts, activations, CUDA."""
    model, decoders = (config.totalvi, 4) if sizes.n_proteins else (config.scvi, 1)
    wide = model.n_hidden * (2 * sizes.n_genes + decoders * 2 * model.n_hidden)
    minibatch = model.train.batch_size * sizes.n_genes * 4 * 24
    counts = 20 * n_cells * sizes.n_genes * sizes.nonzero
    return (wide * 16 * 2 + minibatch + counts) / 1e6 + 700


def forecast(sizes: Sizes, config: Config, given: dict, speeds: Speeds) -> list[Forecast]:
    """Returns a forecast per rule that trains or maps: epochs × cells × seconds per cell and epoch.

    `given`: the config as the user wrote it, without defaults.
    """
    seeds, trains = len(config.seeds), not config.reference.given

    def row(rule: str, jobs: int, cells: int, seconds: float, mb: float = 0):
        took, mb = speeds.start + seconds, mb + speeds.mb + sizes.counts_mb(cells)
        return Forecast(rule, jobs, took, jobs * took, mb, gpu_mb(sizes, config, cells))

    def denoised_mb(cells: int) -> float:
        return DENOISED_LAYERS * 4e-6 * cells * sizes.n_genes * (citeseq and config.denoise.rna)

    n, citeseq = sizes.n_reference, sizes.n_proteins > 0
    surgery = config.totalvi_surgery if citeseq else config.surgery
    train, name = (
        (config.totalvi if citeseq else config.scvi).train,
        "totalvi" if citeseq else "scvi",
    )
    denoising = DECODING * config.denoise.n_samples * speeds.scvi if citeseq else 0.0
    held_a_cell = surgery.max_epochs * speeds.surgery
    a_cell = held_a_cell + denoising
    scvi = (train.max_epochs or epochs_by_size(n)) * speeds.scvi
    rows = [row(f"train_{name}", seeds, n, n * scvi)] if trains else []
    if trains and citeseq:
        rows.append(row("denoise_reference", seeds, n, n * denoising, mb=denoised_mb(n)))
    models, folds = seeds, n_folds(config.calibration.folds, sizes.n_batches, n)
    held, kept = n // folds, n - n // folds
    in_a_fold = kept * scvi
    if sizes.n_labels and not citeseq:
        models *= len(config.variants)
        blocks = [variant_block(given, variant).get("train") or {} for variant in config.variants]
        epochs = max(block.get("max_epochs") or SCANVI_EPOCHS for block in blocks)
        scanvi = epochs * speeds.scanvi
        if trains:
            rows.append(row("train_scanvi", models, n, n * scanvi))
        in_a_fold += len(config.variants) * kept * scanvi
    if trains and sizes.n_labels and config.calibration.scheme == "batches":
        asked = min(held, MOST_HELD_OUT // folds)
        in_a_fold += (models // seeds) * N_DEPTHS * asked * held_a_cell
        rows.append(row("train_held_out", seeds * folds, kept, in_a_fold))
    if sizes.queries and "per_batch" in config.strategies:
        packed, largest = config.mapping.batches_per_job, max(sizes.queries)
        jobs = -(-len(sizes.queries) // packed)
        each = min(packed, len(sizes.queries))
        seconds = each * largest * a_cell
        rows.append(row("map_per_batch", jobs * models, largest, seconds, denoised_mb(largest)))
    if sizes.queries and "joint" in config.strategies:
        seconds, mb = sizes.n_query * a_cell, denoised_mb(sizes.n_query)
        rows.append(row("map_joint", models, sizes.n_query, seconds, mb))
    return rows


def rule_of(benchmark: Path) -> str | None:
    """Returns the rule that a log or benchmark file below logs/ belongs to; None for others."""
    parts = benchmark.parts[benchmark.parts.index("logs") + 1 :]
    name = parts[1] if parts[0].startswith("seed") else parts[0]
    return next((rule for rule in RULES if name.startswith(rule)), None)


def measured(folder: Path, since: float) -> pd.DataFrame:
    """Returns rule, seconds and MB of jobs that ended after `since`, from Snakemake's benchmarks.

    Jobs that resumed from a checkpoint, or found batches already mapped, are left out: they did
    only a part of the work.
    """
    rows = []
    for path in sorted((folder / "logs").glob("**/*.tsv")):
        rule, log = rule_of(path), path.with_suffix(".log")
        if rule is None or path.stat().st_mtime < since or not path.stat().st_size:
            continue
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if "taken up at" in text or "mapped already" in text:
            continue
        last = pd.read_csv(path, sep="\t", na_values=["NA", "-"]).iloc[-1]
        rows.append((rule, float(last["s"]), float(last["max_rss"])))
    return pd.DataFrame(rows, columns=["rule", "seconds", "mem_mb"])


def corrections(results: Path) -> dict[str, list[float]]:
    """Returns rule → [measured / forecast time, measured / forecast memory] of earlier runs.

    Each atlas with a forecast contributes what its jobs took since, or else the ratios in its
    forecast. Over atlases: the median of time, the maximum of memory.
    """
    known: dict[str, list[list[float]]] = defaultdict(list)
    for plan in sorted(results.glob("*/forecast.json")):
        said = json.loads(plan.read_text(encoding="utf-8"))
        raw = {row["rule"]: row for row in said["raw"]}
        ratios = dict(said["corrections"])
        for rule, jobs in measured(plan.parent, plan.stat().st_mtime).groupby("rule"):
            if rule in raw:
                took = jobs["seconds"].median() / raw[rule]["seconds"]
                memory = jobs["mem_mb"].max() / raw[rule]["mem_mb"]
                ratios[rule] = [took, 1.0 if np.isnan(memory) else memory]
        for rule, ratio in ratios.items():
            known[rule].append(ratio)
    return {
        rule: [float(np.median([r[0] for r in ratios])), max(r[1] for r in ratios)]
        for rule, ratios in known.items()
    }


def compared(folder: Path) -> pd.DataFrame:
    """Compare an atlas's last forecast with what its jobs took since; one row per rule that ran."""
    plan = folder / "forecast.json"
    said = pd.DataFrame(json.loads(plan.read_text(encoding="utf-8"))["forecast"]).set_index("rule")
    jobs = measured(folder, plan.stat().st_mtime).groupby("rule")
    took = jobs.agg({"seconds": ["sum", "median"], "mem_mb": "max"})
    took.columns = ["took_s", "a_job_took_s", "took_mb"]
    took["jobs"] = jobs.size()
    table = took.join(said[["seconds", "mem_mb"]], how="inner")
    table["forecast_s"] = table["seconds"] * table["jobs"]
    table["time"] = table["forecast_s"] / table["took_s"]
    table["memory"] = table["mem_mb"] / table["took_mb"]
    return table[["jobs", "forecast_s", "took_s", "time", "mem_mb", "took_mb", "memory"]]


def corrected(raw: list[Forecast], by: dict[str, list[float]]) -> list[Forecast]:
    """Scale forecasts by the ratios of earlier runs (`corrections`); memory at least by 0.5."""
    out = []
    for row in raw:
        time_ratio, memory = by.get(row.rule, (1.0, 1.0))
        seconds, mem = row.seconds * time_ratio, row.mem_mb * max(memory, 0.5)
        out.append(replace(row, seconds=seconds, all_seconds=seconds * row.jobs, mem_mb=mem))
    return out


def resources(forecasts: list[Forecast]) -> dict[str, dict[str, int]]:
    """Returns rule → mem_mb and runtime (minutes) to request: the forecast with a margin."""
    return {
        row.rule: {
            "mem_mb": int(SAFE_MEMORY * row.mem_mb + MORE_MB),
            "runtime": int(np.ceil(SAFE_TIME * row.seconds / 60 + MORE_MINUTES)),
        }
        for row in forecasts
    }


def as_json(
    raw: list[Forecast], by: dict[str, list[float]], speeds: Speeds, device: torch.device
) -> dict:
    """Returns the content of forecast.json: `resources`, which the workflow reads, and the rest."""
    rows = corrected(raw, by)
    return {
        "device": device.type,
        "hours": round(sum(row.all_seconds for row in rows) / 3600, 3),
        "resources": resources(rows),
        "forecast": [asdict(row) for row in rows],
        "raw": [asdict(row) for row in raw],
        "corrections": by,
        "speeds": asdict(speeds),
    }
