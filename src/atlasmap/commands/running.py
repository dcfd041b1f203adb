"""Where a job that computes runs and what it may use."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata
from cyclopts import Parameter

from atlasmap.settings import Device


@Parameter(name="*")
@dataclass(frozen=True)
class Running:
    """Device, checkpoints and memory of a job."""

    device: Device = "auto"
    """Where to compute."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    memory_gb: float | None = None
    """Memory (GB) that the job may use: counts with no room in it stay on disk; without it 60 % of
    what the job has."""

    def pick_device(self):
        """The torch device."""
        from atlasmap.device import pick_device

        return pick_device(self.device)

    def checkpoints(self, out: Path):
        """Checkpoints beside what is being made; Snakemake, which removes a failed job's outputs,
        does not know of them."""
        from atlasmap.jobs.slurm import job_times
        from atlasmap.training.checkpoint import Checkpoints

        return Checkpoints(out / ".checkpoints", self.checkpoint_minutes * 60, job_times)

    def open_cells(self, path: Path) -> anndata.AnnData:
        """Prepared cells, in memory if there is room."""
        from atlasmap.data.memory import open_cells

        return open_cells(path, self.memory_gb)

    @contextlib.contextmanager
    def open_joined(self, paths: tuple[Path, ...], beside: Path) -> Iterator[anndata.AnnData]:
        """Prepared batches as one; if there is no room for them, in a file `beside` for a while."""
        from anndata.experimental import concat_on_disk

        from atlasmap.data.memory import has_room
        from atlasmap.mapping.query import joined

        if len(paths) == 1 or has_room(list(paths), self.memory_gb):
            yield joined([self.open_cells(path) for path in paths])
            return
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=beside, prefix=".joined") as folder:
            whole = Path(folder) / "joined.h5ad"
            concat_on_disk(list(paths), whole, join="outer", merge="same", uns_merge="same")
            yield self.open_cells(whole)
