"""atlasmap and scvi-tools on the same simulated cells, in turn, in one run (`make bench`).

Each task of tasks.py runs in a process of its own, first of one tool, then of the other, `--rounds`
times. Written: docs/benchmarks.json (every round, as it is measured) and docs/benchmarks.md (median
of the ratios and their range). Numbers of separate runs are not compared: machines differ, and are
shared. Where scvi-tools is not installed atlasmap is timed alone.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import anndata
import cyclopts
import numpy as np
import pandas as pd
from cyclopts import Parameter
from tasks import How

import atlasmap
from atlasmap.data.simulate import simulate
from atlasmap.device import pick_device
from atlasmap.errors import AtlasmapError
from atlasmap.files import written_aside
from atlasmap.settings import SimulateSettings

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PEER = ROOT / "docs/benchmarks.json", ROOT / ".venv-parity/bin/python"
TASKS = ("scvi", "scanvi", "surgery_per_batch", "surgery_joint", "latent", "predict", "whole")
TRAINS = {"scvi", "whole"}  # these begin with cells alone, the others with a trained model
SHORT = {"clisi": "clisi_knn", "ilisi": "ilisi_knn", "kbet": "kbet_per_label"}
WORTH = {"atlasmap": "ours", "scvi-tools": "theirs"}


@dataclass(frozen=True)
class Atlas:
    """What is simulated."""

    cells: int = 10_000
    """Reference cells; the query has a quarter as many."""
    genes: int = 2000
    """Genes."""
    lineages: int = 6
    """Lineages of the label tree."""
    types: int = 3
    """Cell types a lineage."""
    depth: float = 450.0
    """Median counts of a cell, which sets how many are above zero."""

    @property
    def labels(self) -> int:
        """Labels of the reference: one type is in the query alone."""
        return self.lineages * self.types - 1

    def write(self, folder: Path) -> float:
        """reference.h5ad (16 batches) and query.h5ad (4 batches, a fifth of the cells) as the
        workflow prepares them; returns the share of counts above zero."""
        settings = SimulateSettings(
            n_cells=self.cells * 20 // 16, n_genes=self.genes, n_reference_batches=16,
            n_query_batches=4, n_lineages=self.lineages, n_types_per_lineage=self.types,
            depth=self.depth,
        )  # fmt: skip
        adata = simulate(settings)
        adata.obs["label"] = adata.obs["cell_type"].astype(str)
        for role in ("reference", "query"):
            part = adata[adata.obs["role"] == role].copy()
            part.obs["batch"] = part.obs["batch"].astype(str)
            part.write_h5ad(folder / f"{role}.h5ad")
        return adata.X.nnz / adata.X.shape[0] / adata.X.shape[1]


def of_process(python: str, script: str, *given: str | Path) -> dict:
    """What a script beside this one says in a process of its own."""
    env = dict(os.environ)
    env.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    command = [python, str(Path(__file__).with_name(script)), *map(str, given)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])}: {done.stderr[-3000:]}")
    return json.loads((done.stdout.strip().splitlines() or ["{}"])[-1])


def warm_up(python: str, device: str) -> None:
    """Compile what atlasmap compiles once an installation: that is no part of a round."""
    with tempfile.TemporaryDirectory() as folder:
        Atlas(cells=1000).write(Path(folder))
        how = How(scvi=1, scanvi=1, surgery=1, device=device)
        (Path(folder) / "how.json").write_text(json.dumps(asdict(how)))
        of_process(python, "tasks.py", "atlasmap", "whole", folder)


def in_rounds(
    atlas: Atlas, how: How, tasks: tuple[str, ...], n: int, pythons: dict[str, str]
) -> Iterator[dict]:
    """`n` rounds of each task, the tools in turn; who is first changes with each round."""
    warm_up(pythons["atlasmap"], how.device)
    with tempfile.TemporaryDirectory() as folder:
        nonzero = atlas.write(Path(folder))
        (Path(folder) / "how.json").write_text(json.dumps(asdict(how)))
        if not TRAINS.issuperset(tasks):
            of_process(pythons["atlasmap"], "tasks.py", "atlasmap", "prepare", folder)
        for k in range(n):
            for task in tasks:
                for tool, python in list(pythons.items())[:: -1 if k % 2 else 1]:
                    said = of_process(python, "tasks.py", tool, task, folder)
                    where = {"tool": tool, "task": task, "round": k, "labels": atlas.labels}
                    where["nonzero"] = round(nonzero, 3)
                    where["epochs"] = how.epochs(task)
                    yield asdict(atlas) | where | said


HEAD = """# Benchmarks

Made by `make bench`: atlasmap and scvi-tools 1.4.2 on the same simulated cells, in turn, each
task in a process of its own; of two numbers the first is atlasmap's. Numbers are medians of the
rounds, and the ratio is that of each round (lowest to highest). Cells a second are cells times
epochs over all the seconds that a user waits for: counts read into tensors, training, validation;
of surgery the query's latent and soft labels, and of atlasmap the certificate and the misfit of
each cell, too. `whole` is scVI, three variants of scANVI, and surgery of four batches onto each.
Latent, labels and surgery begin with one model, trained for 50 epochs (1 of 100,000 cells), that
both tools load. What surgery pays once a batch (the certificate, the misfit) weighs more at few
epochs. What atlasmap compiles once an installation (about a minute) is compiled before the rounds.
Memory is the process's peak (not known of 100,000 cells and more). The ELBO (lower is better) is
that of the validation cells after so few epochs, to show that both do the same. Each table names
the commit of atlasmap that was measured, and the card where there is one. On a card scvi-tools is
timed for one and for three epochs, and the others are extrapolated from these: the column
"extrapolated from" says where. A number alone is atlasmap's.
"""
KEYS = ["task", "cells", "labels", "nonzero", "epochs"]
MEASURED = ["cells_per_s", "seconds", "peak_mb", "elbo"]


def table(rows: list[dict]) -> pd.DataFrame:
    """A row a task and atlas: medians of both, and of the ratios of each round with their range."""
    flat = pd.DataFrame(rows).replace({"tool": WORTH}).astype({"elbo": float})
    wide = flat.pivot(index=[*KEYS, "round"], columns="tool", values=MEASURED)
    out = []
    for key, part in wide.groupby(level=KEYS, sort=False):
        medians, speed = part.median(), part["cells_per_s"]
        line = dict(zip(KEYS, key, strict=True)) | {"rounds": len(part)}
        line["cells/s"] = both(medians["cells_per_s"], 0)
        if "theirs" in speed and len(r := (speed["ours"] / speed["theirs"]).dropna()):
            line["times as fast"] = f"{r.median():.2f} ({r.min():.2f} to {r.max():.2f})"
        line["seconds"] = both(medians["seconds"], 1)
        line["memory, MB"] = both(medians["peak_mb"], 0)
        line["validation ELBO"] = both(medians["elbo"], 1)
        out.append(line | extrapolated(flat, key))
    return pd.DataFrame(out).fillna("")


def extrapolated(flat: pd.DataFrame, key: tuple) -> dict[str, str]:
    """From how many epochs of scvi-tools, where it is so."""
    if "epochs_timed" not in flat:
        return {}
    found = flat.loc[(flat[KEYS] == list(key)).all(axis=1), "epochs_timed"].dropna()
    return {"extrapolated from": f"{found.iloc[0]:.0f} epochs"} if len(found) else {}


def both(values: pd.Series, digits: int) -> str:
    """Ours and theirs, where there are any."""
    found = [values.get(tool, np.nan) for tool in WORTH.values()]
    return " / ".join(f"{value:,.{digits}f}" for value in found if not np.isnan(value))


def commit() -> str:
    """Of this clone; without git the version."""

    def git(*told: str) -> str:
        return subprocess.check_output(
            ["git", "-C", str(ROOT), *told], text=True, stderr=subprocess.DEVNULL
        ).strip()

    try:
        changed = "-dirty" if git("diff", "--name-only", "HEAD", "--", "src") else ""
        return git("rev-parse", "--short", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return atlasmap.__version__


def machine(row: dict) -> dict:
    """Where and with what a row was measured (atlasmap: the commit)."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    card = {"gpu": row["gpu"]} if "gpu" in row else {}
    return card | {
        "cpu": cpu, "cores": os.cpu_count(), "threads": row["threads"],
        "python": platform.python_version(), "torch": version("torch"), "atlasmap": commit(),
    }  # fmt: skip


def tools(theirs: Path) -> dict[str, str]:
    """The Python of each tool; scvi-tools may be in this one."""
    ours = {"atlasmap": sys.executable}
    if theirs.is_file():
        return ours | {"scvi-tools": str(theirs)}
    if find_spec("scvi"):
        return ours | {"scvi-tools": sys.executable}
    print("scvi-tools is not installed: atlasmap alone", file=sys.stderr)
    return ours


app = cyclopts.App(help=__doc__)


@app.command
def run(
    *,
    atlas: Annotated[Atlas, Parameter(name="*")] = Atlas(),
    how: Annotated[How, Parameter(name="*")] = How(),
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = TASKS,
    rounds: int = 5,
    theirs: Path = PEER,
    out: Path = RESULTS,
) -> None:
    """Time tasks on a simulated atlas; the rounds are added to a JSON file.

    Parameters
    ----------
    atlas
        What is simulated.
    how
        Epochs and device.
    tasks
        What to time.
    rounds
        Times that each task is run by each tool.
    theirs
        Python of an environment with scvi-tools and atlasmap; without one, this one if it has it.
    out
        File of all rounds.
    """
    try:
        pick_device(how.device)
    except AtlasmapError as error:
        raise SystemExit(f"error: {error}") from error
    known, rows = read(out), []
    for row in in_rounds(atlas, how, tasks, rounds, tools(theirs)):
        print(json.dumps(row), flush=True)
        rows.append(row)
        write(out, [*known, {"machine": machine(rows[0]), "rows": rows}])
    print(table(rows).to_markdown(index=False))


def read(out: Path) -> list[dict]:
    """The runs of a file of all."""
    return json.loads(out.read_text()) if out.is_file() else []


def write(out: Path, runs: list[dict]) -> None:
    """A file of all runs."""
    with written_aside(out) as aside:
        aside.write_text(json.dumps(runs, indent=1))


@app.command
def metrics(*, cells: tuple[int, ...] = (700, 32_000), out: Path = RESULTS) -> None:
    """Time scib-metrics of five embeddings, as atlasmap and as scib_metrics.Benchmarker run them.

    Parameters
    ----------
    cells
        Cells (700: the size of the default config).
    out
        File of all rounds.
    """
    from metrics import embeddings  # needs what a GPU machine may not have

    rows = []
    for n in cells:
        with tempfile.TemporaryDirectory() as folder:
            Atlas(cells=n).write(Path(folder))
            adata = anndata.read_h5ad(Path(folder) / "reference.h5ad")
            adata.obsm = embeddings(adata.X, adata.obs["batch"].astype(str).to_numpy())
            adata.write_h5ad(Path(folder) / "embedded.h5ad")
            for tool in ("atlasmap", "scib-metrics"):
                said = of_process(
                    sys.executable, "metrics.py", tool, Path(folder) / "embedded.h5ad"
                )
                rows.append({"tool": tool, "cells": n} | said)
                print(json.dumps(rows[-1]), flush=True)
    ran = {"machine": machine({"threads": os.cpu_count()}), "metrics": rows}
    write(out, [*read(out), ran])


def metrics_table(rows: list[dict]) -> pd.DataFrame:
    """A row a size and tool, and the largest difference of a metric from the other tool's."""
    out = []
    for row in rows:
        (other,) = (r for r in rows if r["cells"] == row["cells"] and r is not row)
        ours, others = (pd.DataFrame(r["values"]).T for r in (row, other))
        for table_of in (ours, others):  # the Benchmarker's names as ours
            names = (name.lower().replace(" ", "_") for name in table_of.columns)
            table_of.columns = [SHORT.get(name, name) for name in names]
        same = [name for name in ours.columns if name in others.columns]
        apart = (
            (ours[same].apply(pd.to_numeric, errors="coerce")
             - others[same].apply(pd.to_numeric, errors="coerce")).abs().max()
        )  # fmt: skip
        worst = apart.idxmax()
        out.append(
            {
                "tool": row["tool"],
                "cells × embeddings": f"{row['cells']:,} × {len(row['values'])}",
                "seconds": f"{row['seconds']:,.0f}",
                "memory, MB": f"{row['peak_mb']:,.0f}",
                "metrics compared": len(same),
                "largest difference": f"{apart[worst]:.3f} ({worst})",
            }
        )
    return pd.DataFrame(out)


@app.command
def page(*, results: Path = RESULTS) -> None:
    """Write the page of a JSON file of rounds beside it.

    Parameters
    ----------
    results
        File of all rounds.
    """
    said, rounds = [HEAD], {}
    for ran in json.loads(results.read_text()):
        where = ", ".join(f"{key} {value}" for key, value in ran["machine"].items())
        made = table(ran["rows"]) if "rows" in ran else metrics_table(ran["metrics"])
        rounds.setdefault((where, "rows" in ran), []).append(made)
    for (where, _), tables in rounds.items():
        said += [f"{where}.", pd.concat(tables).to_markdown(index=False, disable_numparse=True)]
    results.with_suffix(".md").write_text("\n\n".join(said) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
