"""Failures have names: an exit code each, and one line of JSON beside the log.

Snakemake sees neither exit codes nor reasons. A retry reads the record of the attempt before it and
leaves at once if nothing could have changed.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shlex
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from cyclopts import CycloptsError

import atlasmap
from atlasmap.errors import AtlasmapError
from atlasmap.jobs import slurm
from atlasmap.training.stopping import Stopped

EXIT_CODES = {
    "bug": 1,
    "bad_input": 2,
    "nan": 3,
    "host_memory": 4,
    "gpu_memory": 5,
    "preempted": 6,
    "walltime": 7,
    "missing_gpu": 8,
    "disk_full": 9,
    "not_writable": 10,
    "io": 11,
    "crash": 12,
    "interrupted": 13,
}
# Another attempt may succeed: it is given more memory and time, or another node.
TRANSIENT = {"host_memory", "preempted", "interrupted", "walltime", "missing_gpu", "io"}
KIND_OF_CODE = {"TRAINING_NAN": "nan", "GPU_UNUSABLE": "missing_gpu", "DOWNLOAD_FAILED": "io"}
KIND_OF_ERRNO = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.EACCES: "not_writable",
    errno.EPERM: "not_writable",
    errno.EROFS: "not_writable",
    errno.ENOMEM: "host_memory",
    errno.EIO: "io",
    errno.ESTALE: "io",
    errno.ETIMEDOUT: "io",
}
# What torch and HDF5 say in words alone.
KIND_OF_WORDS = {
    "can't allocate memory": "host_memory",
    "No space left on device": "disk_full",
    "Disk quota exceeded": "disk_full",
    "CUBLAS_STATUS_ALLOC_FAILED": "gpu_memory",
    "CUDA error": "missing_gpu",
}
MEND = {
    "bug": "this is a bug in atlasmap: please report it with the log",
    "host_memory": "the next attempt is given more; or --set-resources RULE:mem_mb=…",
    "gpu_memory": "ask for a GPU with more memory (gpu_model in slurm/config.yaml), or set a "
    "smaller train.batch_size, which changes the result",
    "preempted": "run snakemake again: training is taken up where its checkpoint is",
    "interrupted": "run snakemake again: training is taken up where its checkpoint is",
    "walltime": "run snakemake again: training is taken up where its checkpoint is; or "
    "--set-resources RULE:runtime=…",
    "disk_full": "free space where results/ and TMPDIR are (atlasmap doctor shows both)",
    "not_writable": "make results/ writable for the jobs",
    "io": "nothing, if it happens once; else ask about the disk or the network",
    "missing_gpu": "nothing, if it happens once; else leave out this node (sinfo -R)",
    "crash": "another attempt would crash again: try another node (a broken disk or memory), make "
    "the environment anew (a broken library); else please report it with the log",
}
# What Python's faulthandler writes when a signal of the process's own making ends it.
NO_MEMORY = "std::bad_alloc"  # then more memory may help
CRASHED = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Failure:
    """What failed and why, in one line of JSON."""

    kind: str
    code: str
    found: str
    mend: str
    transient: bool
    exit_code: int
    command: str
    inputs: str
    attempt: int
    slurm_job: str | None
    host: str
    time: str
    expected: str = ""


def kind_of(error: BaseException) -> str:
    """Which of EXIT_CODES an error is; what caused an AtlasmapError counts before its code."""
    if isinstance(error, Stopped):
        return "walltime" if error.kind == "preempted" and slurm.near_end() else error.kind
    if isinstance(error, BatchesFailed):
        return error.kind
    if isinstance(error, Crashed):
        return "crash"
    if isinstance(error, AtlasmapError):
        deeper = kind_of(error.__cause__) if error.__cause__ else "bug"
        return KIND_OF_CODE.get(error.code, "bad_input" if deeper == "bug" else deeper)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return "gpu_memory"
    if isinstance(error, MemoryError):
        return "host_memory"
    if isinstance(error, CycloptsError):
        return "bad_input"
    number = getattr(error, "errno", None)
    if number in KIND_OF_ERRNO:
        return KIND_OF_ERRNO[number]
    words = (kind for said, kind in KIND_OF_WORDS.items() if said in str(error))
    return next(words, "bug")


class BatchesFailed(AtlasmapError):
    """Some batches of a job could not be mapped; `kind` is the one that decides on a retry."""

    def __init__(self, kinds: list[str], **said: str):
        transient = [kind for kind in kinds if kind in TRANSIENT]
        self.kind = (transient or kinds)[0]
        super().__init__("BATCHES_FAILED", **said)


def failure_of(error: BaseException, arguments: list[str], attempt: int) -> Failure:
    """The record of an error."""
    kind = kind_of(error)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if kind == "bug" and last else ""
    atlasmaps = isinstance(error, AtlasmapError)
    return Failure(
        kind=kind,
        code=error.code if atlasmaps else type(error).__name__,
        expected=error.expected if atlasmaps else "",
        found=error.found if atlasmaps else f"{error}{where}",
        mend=error.mend if atlasmaps else MEND.get(kind, "correct the command: --help"),
        transient=kind in TRANSIENT,
        exit_code=EXIT_CODES[kind],
        command=shlex.join(["atlasmap", *arguments]),
        inputs=inputs_hash(arguments),
        attempt=attempt,
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        host=socket.gethostname(),
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def inputs_hash(arguments: list[str]) -> str:
    """Of the command, atlasmap's version, and size and time of every file it names. Folders count
    by the files in them (a bundle), contents not at all: this must take no time."""
    digest = hashlib.sha256(atlasmap.__version__.encode())
    for word in arguments:
        digest.update(word.encode() + b"\0")
        path = Path(word.split("=", 1)[-1] if word.startswith("--") else word)
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            facts = [f.stat() for f in files if f.is_file() and not f.name.startswith(".")]
        except OSError:  # JSON is too long a name
            continue
        digest.update("".join(f"{f.st_size} {f.st_mtime_ns};" for f in facts).encode())
    return digest.hexdigest()


def failure_path(log: Path) -> Path:
    """Where the record of a job with this log is."""
    return log.with_suffix(".failure.json")


def read_failure(log: Path) -> Failure | None:
    """The record beside a log; None if the job did not fail or could not say why."""
    try:
        return Failure(**json.loads(failure_path(log).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_failure(failure: Failure, log: Path) -> None:
    """One line beside the log."""
    aside = failure_path(log).with_suffix(f".{os.getpid()}.partial")
    aside.write_text(json.dumps(asdict(failure), ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, failure_path(log))


class Crashed(Exception):
    """An earlier attempt ended itself by a signal (SIGSEGV, SIGBUS, SIGABRT, …)."""


def crash_of(log: Path) -> str | None:
    """How the job with this log crashed, if its log says so; no record could be written then."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    said = CRASHED.findall(text)
    return said[-1] if said and NO_MEMORY not in text else None


def hopeless(log: Path, arguments: list[str], attempt: int) -> Failure | None:
    """The failure of an earlier attempt that this one would only repeat."""
    kept = sorted(log.parent.glob(f"{glob.escape(log.stem)}.attempt{attempt - 1}*{log.suffix}"))
    crash = crash_of(kept[-1]) if kept else None
    if crash:
        return failure_of(Crashed(f"{crash}, in {kept[-1]}"), arguments, attempt - 1)
    before = read_failure(log) if attempt > 1 else None
    if before is None or before.transient or before.inputs != inputs_hash(arguments):
        return None
    return before
