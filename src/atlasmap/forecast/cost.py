"""What a run will cost: a short probe of this device, the data's size, the settings; corrected by
what earlier runs really took.

Training, surgery and inference are timed with the models themselves on made-up cells of the data's
size; the other stages by what they were seen to take here per cell, scaled by how long this machine
takes to start Python with torch.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atlasmap.config import variant_block
from atlasmap.forecast.speed_probe import Sizes, Speeds
from atlasmap.mapping.reference import SCANVI_EPOCHS
from atlasmap.settings import GPU_RULES, Config
from atlasmap.training.loop import epochs_by_size

START_SECONDS = 1.85  # of torch and anndata, where the constants below were measured
SAFE_MEMORY, SAFE_TIME, MORE_MB, MORE_MINUTES = 1.25, 2.0, 300, 5


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
    model, decoders = (config.totalvi, 4) if sizes.n_proteins else (config.scvi, 1)
    wide = model.n_hidden * (2 * sizes.n_genes + decoders * 2 * model.n_hidden)
    minibatch = model.train.batch_size * sizes.n_genes * 4 * 24
    counts = 20 * n_cells * sizes.n_genes * sizes.nonzero
    return (wide * 16 * 2 + minibatch + counts) / 1e6 + 700


@dataclass(frozen=True)
class Seen:
    """What a stage was seen to take: seconds and MB, and as much more per thousand cells."""

    seconds: float
    per_1000: float
    mb: float
    mb_per_1000: float

    def forecast(self, rule: str, jobs: int, cells: float, slow: float, mb: float = 0) -> Forecast:
        """Of jobs with so many cells each, and `mb` of counts."""
        seconds = slow * (self.seconds + self.per_1000 * cells / 1000)
        return Forecast(
            rule, jobs, seconds, jobs * seconds, self.mb + self.mb_per_1000 * cells / 1000 + mb
        )


SEEN = {
    "prepare_reference": Seen(2.7, 0.5, 700, 0),
    "prepare_query": Seen(2.4, 0.3, 420, 0),
    "fit_umap": Seen(9.5, 4.6, 680, 20),
    "assemble": Seen(8.0, 0.3, 670, 20),
    "score_labels": Seen(3.1, 0.08, 480, 10),
    "model_card": Seen(4.2, 1.2, 640, 20),
}
# What a reference that was taken over does without.
TRAINED = (
    "train_scvi",
    "train_scanvi",
    "train_totalvi",
    "denoise_reference",
    "train_twin_scvi",
    "train_twin_scanvi",
    "train_twin_totalvi",
    "map_held_out",
    "prepare_reference",
    "score_embeddings",
)
DECODING = 0.4  # of a training step's time, to decode a draw
DENOISED_LAYERS = 4  # mean and interval, and one being put together
TRAINING_START, TRAINING_MB = 2.9, 500  # seconds and MB before the first step
BATCH_SECONDS = 0.4  # to open one more batch
SCORING = Seen(30, 0, 1800, 200)  # compiling, whatever is scored
EMBEDDING = Seen(2.0, 0.64, 0, 0)  # one more embedding


def of_training(sizes: Sizes, config: Config, given: dict, speeds: Speeds) -> list[Forecast]:
    """The rules that train: epochs × cells × seconds a cell and epoch."""
    slow, seeds = speeds.start / START_SECONDS, len(config.seeds)

    def row(rule: str, jobs: int, cells: int, seconds: float, batches: int = 0, mb: float = 0):
        took = slow * (TRAINING_START + batches * BATCH_SECONDS) + seconds
        mb += TRAINING_MB + sizes.counts_mb(cells)
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
    rows = [row(f"train_{name}", seeds, n, n * scvi)]
    if citeseq:
        rows.append(row("denoise_reference", seeds, n, n * denoising, mb=denoised_mb(n)))
    models, held = seeds, int(config.calibration.share * n)
    twins = sizes.n_labels and config.calibration.scheme == "batches"
    if twins:
        rows.append(row(f"train_twin_{name}", seeds, n - held // 2, (n - held // 2) * scvi))
    if sizes.n_labels and not citeseq:
        models *= len(config.variants)
        blocks = [variant_block(given, variant).get("train") or {} for variant in config.variants]
        epochs = max(block.get("max_epochs") or SCANVI_EPOCHS for block in blocks)
        scanvi = epochs * speeds.scanvi
        rows.append(row("train_scanvi", models, n, n * scanvi))
        if twins:
            rows.append(row("train_twin_scanvi", models, n - held // 2, (n - held // 2) * scanvi))
    if twins:
        rows.append(row("map_held_out", models, held, held * held_a_cell))
    if sizes.queries and "per_batch" in config.strategies:
        packed, largest = config.mapping.batches_per_job, max(sizes.queries)
        jobs = -(-len(sizes.queries) // packed)
        each = min(packed, len(sizes.queries))
        seconds = each * largest * a_cell
        mb = denoised_mb(largest)
        rows.append(row("map_per_batch", jobs * models, largest, seconds, each, mb))
    if sizes.queries and "joint" in config.strategies:
        seconds, mb = sizes.n_query * a_cell, denoised_mb(sizes.n_query)
        rows.append(row("map_joint", models, sizes.n_query, seconds, mb=mb))
    return rows


def of_other_stages(sizes: Sizes, config: Config, speeds: Speeds) -> list[Forecast]:
    """The rest: what was seen, by the number of cells and how fast this machine is."""
    slow, seeds = speeds.start / START_SECONDS, len(config.seeds)
    n, every = sizes.n_reference, sizes.n_reference + sizes.n_query
    variants = sizes.n_labels and not sizes.n_proteins
    models = len(config.variants) if variants else 1
    atlases = models * len(config.strategies) if sizes.queries else 0
    scored = 1 + models + bool(variants) + atlases  # PCA, scVI, scANVI's latents, atlases
    jobs, each = (1, scored) if every <= config.benchmark.split_above else (scored, 1)
    carded, looked_at = models + bool(variants), min(n, config.card.max_cells)
    counts = sizes.counts_mb(every)
    seconds = slow * (
        SCORING.seconds + each * (EMBEDDING.seconds + EMBEDDING.per_1000 * every / 1000)
    )
    mb = SCORING.mb + SCORING.mb_per_1000 * min(every, 50_000) / 1000 + counts
    rows = [
        SEEN[rule].forecast(rule, jobs, cells, slow, mb)
        for rule, jobs, cells, mb in [
            ("prepare_reference", 1, n, 4 * sizes.counts_mb(n)),
            (
                "prepare_query",
                len(sizes.queries),
                sizes.n_query,
                2 * sizes.counts_mb(sizes.n_query),
            ),
            ("fit_umap", models * seeds, min(n, config.umap.max_cells), 0),
            ("assemble", atlases * seeds, every, 0),
            ("score_labels", int(sizes.n_labels > 0), max(1, atlases * seeds) * every, 0),
            ("model_card", carded * seeds, looked_at, 3 * sizes.counts_mb(looked_at)),
        ]
    ]
    rows.append(Forecast("score_embeddings", jobs * seeds, seconds, jobs * seeds * seconds, mb))
    return [row for row in rows if row.jobs]


def forecast(sizes: Sizes, config: Config, given: dict, speeds: Speeds) -> list[Forecast]:
    """Every rule, from sizes, settings (`given`: the config as written) and speeds."""
    rows = of_training(sizes, config, given, speeds) + of_other_stages(sizes, config, speeds)
    idle = TRAINED if config.reference.given else ()
    return [row for row in rows if row.rule not in idle]


def rule_of(benchmark: Path) -> str | None:
    """The rule a benchmark file in a result tree belongs to."""
    parts = benchmark.parts[benchmark.parts.index("logs") + 1 :]
    name = parts[1] if parts[0].startswith("seed") else parts[0]
    known = (*GPU_RULES, *SEEN, "score_embeddings")
    return next((rule for rule in known if name.startswith(rule)), None)


def measured(folder: Path, since: float) -> pd.DataFrame:
    """Seconds and MB of an atlas's jobs that ended after `since`, from Snakemake's benchmark files.

    Jobs that took up a checkpoint, or found batches mapped already, tell nothing of the whole.
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
    """Rule → by how much time and memory of earlier runs differed from their forecast.

    Of each atlas that was forecast: what its jobs took since then, else what was known then.
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
    """The last forecast of an atlas against what its jobs took since: a row a rule that ran."""
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
    raw: list[Forecast], by: dict[str, list[float]], speeds: Speeds, device: torch.device
) -> dict:
    """forecast.json: what the workflow reads (`resources`), and how it came about."""
    rows = corrected(raw, by)
    gpu_seconds = sum(row.all_seconds for row in rows if row.rule in GPU_RULES)
    return {
        "device": device.type,
        "hours": round(sum(row.all_seconds for row in rows) / 3600, 3),
        "gpu_hours": round(gpu_seconds / 3600, 3),
        "resources": resources(rows),
        "forecast": [asdict(row) for row in rows],
        "raw": [asdict(row) for row in raw],
        "corrections": by,
        "speeds": asdict(speeds),
    }
