"""Options of jobs that train or map: device, checkpoints, memory."""

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
    """Minutes between checkpoints of a training."""
    memory_gb: float | None = None
    """Memory (GB) that the job may use; counts that do not fit stay on disk. Default: 60 % of the
    job's memory."""

    def pick_device(self):
        """The torch device."""
        from atlasmap.device import pick_device

        return pick_device(self.device)

    def checkpoints(self, out: Path):
        """Checkpoints in a hidden folder inside `out`. They are not outputs of the rule, so that
        Snakemake does not remove them when a job fails."""
        from atlasmap.jobs.slurm import job_times
        from atlasmap.training.checkpoint import Checkpoints

        return Checkpoints(out / ".checkpoints", self.checkpoint_minutes * 60, job_times)

    def open_cells(self, path: Path) -> anndata.AnnData:
        """Read prepared cells, into memory if there is room, else backed by the file."""
        from atlasmap.data.memory import open_cells

        return open_cells(path, self.memory_gb)

    @contextlib.contextmanager
    def open_joined(self, paths: tuple[Path, ...], beside: Path) -> Iterator[anndata.AnnData]:
        """Prepared batches, concatenated. If they do not fit into memory, they are concatenated in
        a temporary file below `beside`."""
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
