"""Memory available to a job, and whether counts are loaded or stay on disk."""

import logging
import os
from pathlib import Path

import anndata
from scipy import sparse

from atlasmap.data.readers import stored_bytes
from atlasmap.data.structure import Damaged, check_sparse
from atlasmap.errors import AtlasmapError

log = logging.getLogger("atlasmap")
SHARE = 0.6  # fraction of the job's memory to use if the config sets no memory_gb
LIBRARIES = 1000 * 2**20  # bytes of the process before any data is loaded
CGROUPS = Path("/sys/fs/cgroup")


def cgroup_limits(own: Path = Path("/proc/self/cgroup"), top: Path = CGROUPS) -> list[int]:
    """Return the memory limits (bytes) of the control groups (v1 and v2) of this process."""
    found = []
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        start = (top / "memory" if controllers else top) / path.strip("/")
        for folder in (start, *start.parents):
            said = folder / file
            if said.is_file() and (limit := said.read_text().strip()).isdigit():
                found.append(int(limit))
            if folder == top:
                break
    return found


def job_memory() -> int:
    """Bytes that this process may use: the machine's memory, or a lower limit by Slurm or a control
    group."""
    import psutil

    limits = [psutil.virtual_memory().total, *cgroup_limits()]
    asked = os.environ.get("SLURM_MEM_PER_NODE", "")  # MB
    return min([*limits, int(asked) * 2**20] if asked.isdigit() and int(asked) else limits)


def room_for_counts(memory_gb: float | None) -> int:
    """Bytes available for counts, out of `memory_gb` (None: a fraction of the job's memory)."""
    whole = SHARE * job_memory() if memory_gb is None else memory_gb * 1e9
    return max(0, int(whole) - LIBRARIES)


def has_room(paths: list[Path], memory_gb: float | None, copies: int = 1) -> bool:
    """Whether `copies` copies of these files' counts fit in memory."""
    size, room = copies * sum(map(stored_bytes, paths)), room_for_counts(memory_gb)
    if size > room:
        names = ", ".join(Path(path).name for path in paths)
        log.info("%s: counts stay on disk (%.1f GB, room for %.1f)", names, size / 1e9, room / 1e9)
    return size <= room


def open_cells(path: Path, memory_gb: float | None) -> anndata.AnnData:
    """Open prepared cells; counts that do not fit in memory stay on disk (`backed`).

    Raises FILE_UNREADABLE if the arrays of a loaded sparse matrix are inconsistent; those on disk
    are checked as they are read.
    """
    cells = anndata.read_h5ad(path, backed=None if has_room([path], memory_gb) else "r")
    if sparse.issparse(cells.X):
        try:
            check_sparse(cells.X)
        except Damaged as error:
            raise AtlasmapError(
                "FILE_UNREADABLE",
                expected="prepared cells as they were written",
                found=f"{path}: X: {error}",
                mend=f"delete {path} and run again: it is made anew",
            ) from error
    return cells
