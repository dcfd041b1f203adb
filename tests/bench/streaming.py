"""Counts larger than memory: peak memory and speed at two sizes of a simulated atlas.

python tests/bench/streaming.py [--cells 300000 3000000] [--memory_gb 2]

Each command runs in a process of its own, whose peak memory the kernel tells. The smallest atlas is
also trained in memory, with as many seeds, to compare speed and validation ELBO. Written:
docs/larger_than_memory.json and .md.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cyclopts
import pandas as pd
from bench import ROOT, machine

from atlasmap.files import written_aside

ATLASMAP = Path(sys.executable).with_name("atlasmap")
OUT = ROOT / "docs/larger_than_memory.json"
ON_DISK, IN_MEMORY = 0.5, 16  # GB allowed, so that counts of the smallest atlas are there
LEAST, MOST = 1, 4  # epochs of the largest and of the smallest atlas
ROW = {"id": "atlas", "batch_key": "batch"}
HEAD = """# Counts larger than memory

Made by `make bench-streaming`: each command in a process of its own, on simulated cells. Memory is
the process's peak as the kernel tells it; `data.memory_gb` is what it was allowed. Cells a second
are cells times epochs over all the seconds of the command, the reference's latent included.
"""


@dataclass(frozen=True)
class Run:
    """A command: what it is called in the table, cells × epochs it takes, and its arguments."""

    task: str
    cells: int
    arguments: list[str]

    def measured(self, memory_gb: float, seed: int) -> dict:
        """Run it; its seconds and peak memory."""
        began = time.perf_counter()
        process = subprocess.Popen([str(ATLASMAP), *self.arguments], stderr=subprocess.PIPE)
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{self.task}: {said[-3000:]}")
        seconds = time.perf_counter() - began
        row = {"task": self.task, "memory_gb": memory_gb, "seed": seed, "seconds": seconds}
        row |= {"cells_per_s": self.cells / seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9}
        row["on_disk"] = "stay on disk" in said
        print(json.dumps(row), flush=True)
        return row


def validation_elbo(bundle: Path) -> float:
    """The last of a training."""
    rows = pd.read_csv(bundle / "history.csv")
    rows = rows[(rows["split"] == "validation") & (rows["metric"] == "elbo")]
    return float(rows["value"].iloc[-1])


def prepared(folder: Path, cells: int, memory_gb: float) -> list[dict]:
    """Simulate, and prepare the reference (which chooses genes) and a query batch."""
    atlas, reference = folder / "atlas.h5ad", folder / "reference.h5ad"
    simulation = ["--n_cells", str(cells), "--n_genes", "2000", "--n_reference_batches", "16",
                  "--n_query_batches", "4"]  # fmt: skip
    config = ["--config", json.dumps({"data": {"n_top_genes": 1500, "memory_gb": memory_gb}})]
    base = ROW | {"path": str(atlas)}
    rows = [base | {"role": "reference", "label_key": "cell_type"}, base | {"role": "query"}]
    for row in rows:
        row["obs_filter"] = f"role == '{row['role']}'"
    shared = [*config, "--facts", str(folder / "facts.json")]
    return [
        Run("simulate", cells, ["simulate", "--out", str(atlas), *simulation]).measured(0, 0),
        Run("prepare the reference", cells, [
            "prepare-reference", str(atlas), "--datasets", json.dumps(rows[:1]),
            "--out", str(reference), *shared]).measured(memory_gb, 0),
        Run("prepare a query batch", cells, [
            "prepare-query", str(atlas), "--dataset", json.dumps(rows[1]), "--batch", "query0",
            "--reference", str(reference), "--out", str(folder / "query0.h5ad"), *shared,
        ]).measured(memory_gb, 0),
    ]  # fmt: skip


def trained(folder: Path, cells: int, epochs: int, memory_gb: float, seed: int) -> dict:
    """Train scVI on the prepared reference, and take its latent."""
    out = folder / f"scvi{seed}_{memory_gb}"
    arguments = ["train-scvi", str(folder / "reference.h5ad"), "--out", str(out), "--scvi",
                 json.dumps({"train": {"max_epochs": epochs}}), "--seed", str(seed),
                 "--memory_gb", str(memory_gb), "--device", "cpu"]  # fmt: skip
    row = Run("train scVI", cells * epochs, arguments).measured(memory_gb, seed)
    return row | {"elbo": validation_elbo(out)}


def mapped(folder: Path, cells: int, memory_gb: float) -> dict:
    """Map the query batch onto it by surgery."""
    epochs = 3
    arguments = ["map-batches", str(folder / "query0.h5ad"), "--reference_bundle",
                 str(folder / f"scvi0_{memory_gb}"), "--out", str(folder / "mapped"), "--surgery",
                 json.dumps({"max_epochs": epochs}), "--memory_gb", str(memory_gb),
                 "--device", "cpu"]  # fmt: skip
    return Run("surgery", cells * epochs, arguments).measured(memory_gb, 0)


def page(rows: list[dict]) -> str:
    """The table."""
    shown = pd.DataFrame(rows)
    shown["counts"] = shown["on_disk"].map({True: "on disk", False: "in memory"})
    for key, digits in (("cells_per_s", 0), ("seconds", 0), ("peak_gb", 2), ("elbo", 2)):
        shown[key] = shown[key].map(lambda x, d=digits: "" if pd.isna(x) else f"{x:,.{d}f}")
    shown[["seed", "memory_gb"]] = shown[["seed", "memory_gb"]].astype(str)
    shown.loc[shown["task"] == "simulate", ["seed", "memory_gb", "counts"]] = ""  # in pieces
    names = {"memory_gb": "data.memory_gb", "cells_per_s": "cells/s", "peak_gb": "peak, GB"}
    columns = ["cells", "task", "memory_gb", "counts", "seed", "seconds", "cells_per_s", "peak_gb"]
    return (
        shown[[*columns, "elbo"]]
        .rename(columns=names)
        .to_markdown(index=False, disable_numparse=True)
    )


def main(
    *, cells: tuple[int, ...] = (300_000, 3_000_000), memory_gb: float = 2.0, seeds: int = 2
) -> None:
    """Measure all.

    Parameters
    ----------
    cells
        Sizes of the simulated atlases, reference and query.
    memory_gb
        Memory that each command may use.
    seeds
        Trainings of the smallest atlas, from disk and in memory.
    """
    rows = []
    for n in cells:
        with tempfile.TemporaryDirectory(dir=ROOT / "results") as name:
            folder, smallest = Path(name), n == min(cells)
            n_reference, epochs = n * 16 // 20, MOST if smallest else LEAST
            found = prepared(folder, n, ON_DISK if smallest else memory_gb)
            for seed in range(seeds if smallest else 1):
                for allowed in (ON_DISK, IN_MEMORY) if smallest else (memory_gb,):
                    found.append(trained(folder, n_reference, epochs, allowed, seed))
            found.append(mapped(folder, n // 20, ON_DISK if smallest else memory_gb))
            rows += [{"cells": n, **row} for row in found]
    said = machine(os.cpu_count())
    with written_aside(OUT) as aside:
        aside.write_text(json.dumps({"machine": said, "rows": rows}, indent=1) + "\n")
    of_machine = ", ".join(f"{key} {value}" for key, value in said.items()) + "."
    OUT.with_suffix(".md").write_text(f"{HEAD}\n{of_machine}\n\n{page(rows)}\n", encoding="utf-8")


if __name__ == "__main__":
    cyclopts.run(main)
