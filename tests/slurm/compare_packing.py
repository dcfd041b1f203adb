"""200 query batches of 300 cells on the local Slurm: one job each, packed, and Snakemake's groups.

python tests/slurm/compare_packing.py FOLDER [--batches 200] [--ways alone,packed,groups]

Prints seconds, jobs and whether the bits are the same. Needs a running cluster (SLURM_CONF).
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from cyclopts import App

from atlasmap.bundle import save
from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.data.simulate import simulate
from atlasmap.device import pick_device
from atlasmap.files import sha256
from atlasmap.mapping.reference import fit_scanvi, fit_scvi
from atlasmap.settings import (
    DataConfig,
    DataSettings,
    ScanviSettings,
    ScviSettings,
    SimulateSettings,
    TrainSettings,
)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit"))
from parts import CHECKS  # noqa: E402

CELLS, GENES, PER_JOB = 300, 1000, 25
TOP = Path("results/many")
GROUPS = ["--groups", "map_per_batch=g", "--group-components", f"g={PER_JOB}"]
WAYS = {"alone": (1, []), "packed": (PER_JOB, []), "groups": (1, GROUPS)}


def prepare(folder: Path, n_batches: int) -> None:
    """Everything before the mapping, made here: it is the same for every way."""
    data = DataConfig(data=DataSettings(n_top_genes=None))
    atlas = simulate(
        SimulateSettings(
            n_cells=(n_batches + 6) * CELLS, n_genes=GENES, n_reference_batches=6,
            n_query_batches=n_batches,
        )
    )  # fmt: skip
    atlas.write_h5ad(folder / "atlas.h5ad")
    shared = {"path": "atlas.h5ad", "batch_key": "batch"}
    reference = Dataset(id="ref", role="reference", label_key="cell_type",
                        obs_filter="role == 'reference'", **shared)  # fmt: skip
    query = Dataset(id="query", role="query", obs_filter="role == 'query'", **shared)
    path = folder / "atlas.h5ad"
    prepared = prepare_reference([reference], [path], data)
    registry = Registry.of(prepared.adata)
    device, few, top = pick_device("cpu"), TrainSettings(max_epochs=5), folder / TOP
    (top / "data/queries").mkdir(parents=True)
    (top / "data/batches").mkdir()
    prepared.adata.write_h5ad(top / "data/reference.h5ad")
    whole = checked_dataset(query, path, data)
    names = sorted(whole.obs["batch"].unique())
    (top / "data/batches/query.json").write_text(json.dumps(names))
    for name in names:
        adata = prepare_query(whole, query, name, registry, data).adata
        adata.write_h5ad(top / f"data/queries/{name}.h5ad")
    for name in ["reference", *(f"queries/{name}" for name in names), "contract"]:
        (top / f"data/{name}.json").write_text("{}")
    scvi, _ = fit_scvi(prepared.adata, registry, ScviSettings(train=few), 0, device)
    save(scvi, top / "seed0/reference/scvi")
    scanvi, _ = fit_scanvi(prepared.adata, scvi, ScanviSettings(train=few), "fixed", 0, device)
    save(scanvi, top / "seed0/reference/scanvi_fixed")
    rows = [["id", "path", "role", "batch_key", "label_key"],
            ["ref", "atlas.h5ad", "reference", "batch", "cell_type"],
            ["query", "atlas.h5ad", "query", "batch", ""]]  # fmt: skip
    (folder / "sheet.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")


def run(folder: Path, way: str, epochs: int) -> tuple[float, int]:
    """Map all batches one way; seconds, and Slurm jobs."""
    per_job, args = WAYS[way]
    config = {"atlas": "many", "datasets": "sheet.tsv", "device": "any", "variants": ["fixed"],
              "strategies": ["per_batch"], "mapping": {"batches_per_job": per_job},
              "surgery": {"max_epochs": epochs}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    names = json.loads((folder / TOP / "data/batches/query.json").read_text())
    done = TOP / "seed0/mapping/fixed/per_batch/.mapped"
    markers = [str(done / f"{job}.json") for job in CHECKS.packed(names, per_job, lambda _job: 0)]
    command = [
        str(Path(sys.executable).parent / "snakemake"), "-s", str(ROOT / "Snakefile"), "--profile",
        str(ROOT / "slurm"), "--directory", str(folder), "--configfile",
        str(folder / "config.yaml"), "--slurm-init-seconds-before-status-checks", "1",
        "--rerun-triggers", "mtime", "--retries", "0", *args, "--", *markers,
    ]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    took = time.monotonic() - began
    text = done.stdout + done.stderr
    (folder / f"{way}.log").write_text(text)
    if done.returncode:
        sys.exit(text[-3000:])
    return took, text.count("submitted with SLURM jobid")


def hashes(folder: Path) -> dict[str, str]:
    """Checksums of every mapping."""
    top = folder / TOP / "seed0/mapping/fixed/per_batch"
    files = [p for p in sorted(top.glob("query*/*")) if not p.name.startswith(".")]
    return {str(path.relative_to(top)): sha256(path) for path in files}


def compare(
    folder: Path, batches: int = 200, ways: str = "packed,alone", epochs: int = 100,
    anew: bool = True,
) -> None:  # fmt: skip
    """Time each way on the same prepared data (made anew, or those there)."""
    if anew:
        prepare(folder, batches)
    results = {}
    for way in ways.split(","):
        shutil.rmtree(folder / TOP / "seed0/mapping", ignore_errors=True)
        seconds, n_jobs = run(folder, way, epochs)
        results[way] = (seconds, hashes(folder))
        print(f"{way}: {seconds:.0f} s, {n_jobs} jobs, {len(results[way][1])} files", flush=True)
    if "alone" in results:
        seconds, alone = results["alone"]
        for way, (took, files) in results.items():
            print(f"{way}: {took / seconds:.3f} of one job each, same bits: {files == alone}")


if __name__ == "__main__":
    app = App()
    app.default(compare)
    app()
