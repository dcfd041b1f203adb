"""Classify failures: each kind has an exit code, and is recorded as one line of JSON at the log.

Snakemake passes neither exit codes nor reasons on to a retry. A retry therefore reads the record of
the previous attempt, and exits at once if it could only fail in the same way.
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
# Kinds for which a retry may succeed: it gets more memory and time, or another node.
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
# Errors of torch and HDF5 that are recognised by their message only.
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
# CRASHED: what Python's faulthandler writes when a fatal signal (SIGSEGV, …) ends the process.
# NO_MEMORY: in such a log it means that more memory may help.
NO_MEMORY = "std::bad_alloc"
CRASHED = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Failure:
    """The record of a failure, written as one line of JSON."""

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
    """Returns the kind of an error (a key of EXIT_CODES).

    For an AtlasmapError: by its code if that is in KIND_OF_CODE, else the kind of its cause, else
    bad_input.
    """
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
    """Some batches of a job could not be mapped; `kind` is transient if any of `kinds` is."""

    def __init__(self, kinds: list[str], **said: str):
        transient = [kind for kind in kinds if kind in TRANSIENT]
        self.kind = (transient or kinds)[0]
        super().__init__("BATCHES_FAILED", **said)


def failure_of(error: BaseException, arguments: list[str], attempt: int) -> Failure:
    """Returns the record of an error; `arguments` are those of the atlasmap command."""
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
    """Hash the command, atlasmap's version, and size and mtime of every file it names.

    For a folder (a bundle) these are the files in it. Contents are not read, to be fast.
    """
    digest = hashlib.sha256(atlasmap.__version__.encode())
    for word in arguments:
        digest.update(word.encode() + b"\0")
        path = Path(word.split("=", 1)[-1] if word.startswith("--") else word)
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            facts = [f.stat() for f in files if f.is_file() and not f.name.startswith(".")]
        except OSError:  # an argument in JSON may be too long for a file name
            continue
        digest.update("".join(f"{f.st_size} {f.st_mtime_ns};" for f in facts).encode())
    return digest.hexdigest()


def failure_path(log: Path) -> Path:
    """Returns the path of the failure record that belongs to a log."""
    return log.with_suffix(".failure.json")


def read_failure(log: Path) -> Failure | None:
    """Returns the failure record of a log; None if there is none or it is unreadable."""
    try:
        return Failure(**json.loads(failure_path(log).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_failure(failure: Failure, log: Path) -> None:
    """Write the record beside the log, atomically."""
    aside = failure_path(log).with_suffix(f".{os.getpid()}.partial")
    aside.write_text(json.dumps(asdict(failure), ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, failure_path(log))


class Crashed(Exception):
    """An earlier attempt ended itself by a signal (SIGSEGV, SIGBUS, SIGABRT, …)."""


def crash_of(log: Path) -> str | None:
    """Returns the crash reported in a log; None if there is none, or memory ran out.

    A crashed process could not write a failure record.
    """
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    said = CRASHED.findall(text)
    return said[-1] if said and NO_MEMORY not in text else None


def hopeless(log: Path, arguments: list[str], attempt: int) -> Failure | None:
    """Returns the failure of the previous attempt if a retry would only repeat it, else None."""
    kept = sorted(log.parent.glob(f"{glob.escape(log.stem)}.attempt{attempt - 1}*{log.suffix}"))
    crash = crash_of(kept[-1]) if kept else None
    if crash:
        return failure_of(Crashed(f"{crash}, in {kept[-1]}"), arguments, attempt - 1)
    before = read_failure(log) if attempt > 1 else None
    if before is None or before.transient or before.inputs != inputs_hash(arguments):
        return None
    return before
