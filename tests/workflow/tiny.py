"""A tiny atlas, and Snakemake run on it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
import zygote

from atlasmap.data.simulate import simulate
from atlasmap.files import sha256
from atlasmap.settings import SimulateSettings

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"query0": "Zoë/1 a", "query1": "b.2"}  # a slash, a space, an accent
TOP = Path("results/tiny")
CONFIG = {
    "atlas": "tiny",
    "datasets": "sheet.tsv",
    "device": "cpu",
    "variants": ["fixed", "linear"],
    "strategies": ["per_batch", "joint"],
    "seeds": [0],
    "data": {"n_top_genes": None},
    "scvi": {"n_hidden": 16, "n_latent": 5, "train": {"max_epochs": 4}},
    "scanvi": {"train": {"max_epochs": 4}},
    "surgery": {"max_epochs": 3},
    "calibration": {"folds": 2},
    "card": {"description": "of {atlas} and {nobody}"},  # which Snakemake must leave alone
}
VALIDATION = {"scheme": "validation", "min_cells": 5}  # no twin is trained
SHEET = [
    ["id", "path", "role", "batch_key", "label_key", "truth_key", "obs_filter"],
    [
        "ref",
        "atlas.h5ad",
        "reference",
        "batch",
        "cell_type",
        "",
        "role == 'reference' and batch != '{no}'",
    ],
    ["zoe", "atlas.h5ad", "query", "batch", "", "cell_type", "batch == 'Zoë/1 a'"],
    ["b", "atlas.h5ad", "query", "batch", "", "cell_type", "batch == 'b.2'"],
]


def write(folder: Path, config: dict, sheet: list[list[str]]) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "sheet.tsv").write_text("\n".join("\t".join(row) for row in sheet) + "\n")


def snakemake(
    folder: Path, *args: str, ok: bool = True, anew: bool = False, config: Path | None = None
) -> str:
    """Run in `folder` with no environment activated; output as text. `anew`: each job starts Python
    itself, as it does for users (elsewhere that is most of the time)."""
    command = [
        str(Path(sys.executable).parent / "snakemake"), "-s", str(ROOT / "Snakefile"),
        "--directory", str(folder), "--configfile", str(config or folder / "config.yaml"),
        "--cores", "2", *args,
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    env["PATH"] = f"{Path(__file__).parent / 'no_slurm'}:/usr/local/bin:/usr/bin:/bin"
    if not anew and "-n" not in args:
        env["BASH_ENV"] = zygote.command()
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    text = run.stdout + run.stderr
    assert (run.returncode == 0) == ok, text[-6000:]
    return text


def jobs(text: str) -> dict[str, int]:
    """Rule → number of jobs, of a dry run's (last) job statistics; the targets left out."""
    if "Nothing to be done" in text:
        return {}
    table = text.split("Job stats:")[1].split("total")[0]
    found = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    return {rule: n for rule, n in found.items() if rule not in ("default", "all")}


def hashes(folder: Path) -> dict[str, str]:
    """Checksums of all results but logs, and the report, which says how long jobs took."""
    files = sorted((folder / TOP).rglob("*"))
    keep = [
        f
        for f in files
        if f.is_file() and "logs" not in f.parts and f.name[0] != "." and f.name != "report.html"
    ]
    return {str(f.relative_to(folder)): sha256(f) for f in keep}


def new_folder(path: Path, config: dict = CONFIG, sheet: list[list[str]] = SHEET) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    settings = SimulateSettings(
        n_cells=500, n_genes=60, n_reference_batches=3, n_query_batches=2, n_lineages=2,
        n_types_per_lineage=2, seed=3,
    )  # fmt: skip
    adata = simulate(settings)
    adata.obs = adata.obs.astype(str).replace({"batch": NAMES})
    adata.write_h5ad(path / "atlas.h5ad")
    write(path, config, sheet)
    return path
