"""Failures have names: kinds, exit codes, the record beside the log, retries that are no use."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from atlasmap.errors import AtlasmapError
from atlasmap.jobs import slurm
from atlasmap.jobs.failures import (
    EXIT_CODES,
    MEND,
    TRANSIENT,
    BatchesFailed,
    failure_of,
    failure_path,
    hopeless,
    inputs_hash,
    kind_of,
    read_failure,
    write_failure,
)
from atlasmap.jobs.why import explain
from atlasmap.mapping.embed import CHUNK, embed
from atlasmap.mapping.encode import encode
from atlasmap.models.layers import Stack
from atlasmap.training import stopping
from atlasmap.training.stopping import JobTimes, Stopped

ATLASMAP = str(Path(sys.executable).parent / "atlasmap")


def an_error(code: str) -> AtlasmapError:
    return AtlasmapError(code, expected="e", found="f", mend="m")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def numpys() -> MemoryError:
    with pytest.raises(MemoryError) as error:
        np.empty(10**15)
    return error.value


def torchs() -> RuntimeError:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    return error.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (an_error("COUNTS_NOT_INTEGER"), "bad_input"),
        (an_error("TRAINING_NAN"), "nan"),
        (an_error("GPU_UNUSABLE"), "missing_gpu"),
        (torch.OutOfMemoryError("CUDA out of memory"), "gpu_memory"),
        (numpys(), "host_memory"),
        (torchs(), "host_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError("file write failed: errno = 28, 'No space left on device'"), "disk_full"),
        (PermissionError(errno.EACCES, "Permission denied"), "not_writable"),
        (OSError(errno.EROFS, "Read-only file system"), "not_writable"),
        (Stopped("SIGTERM came"), "preempted"),
        (Stopped("the end", kind="walltime"), "walltime"),
        (KeyError("x"), "bug"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host_memory"),
        (OSError(errno.ESTALE, "Stale file handle"), "io"),
        (an_error("DOWNLOAD_FAILED"), "io"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "gpu_memory"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "missing_gpu"),
        (caused(an_error("FILE_UNREADABLE"), MemoryError()), "host_memory"),
        (caused(an_error("FILE_UNREADABLE"), KeyError("x")), "bad_input"),
        (BatchesFailed(["nan", "bug"], expected="e", found="f", mend="m"), "nan"),
        (BatchesFailed(["nan", "host_memory"], expected="e", found="f", mend="m"), "host_memory"),
    ],
)
def test_every_error_has_a_kind(error, kind):
    assert kind_of(error) == kind
    failure = failure_of(error, ["command"], 1)
    assert failure.exit_code == EXIT_CODES[kind] and failure.mend
    assert failure.transient == (kind in TRANSIENT)


def test_exit_codes_are_distinct_and_all_is_said():
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES) and 0 not in EXIT_CODES.values()
    assert set(EXIT_CODES) == {*MEND, "bad_input", "nan"}  # these bring their own


def test_a_record_is_one_line_and_comes_back(tmp_path):
    log = tmp_path / "train.v2.log"
    failure = failure_of(an_error("X"), ["a", "--b=c"], 2)
    write_failure(failure, log)
    assert failure_path(log).name == "train.v2.failure.json"
    assert failure_path(log).read_text().count("\n") == 1
    assert read_failure(log) == failure
    failure_path(log).write_text("{")
    assert read_failure(log) is None


@pytest.mark.parametrize("change", ["nothing", "file", "file in folder", "argument", "version"])
def test_a_retry_of_what_failed_for_good_is_hopeless_until_something_changes(
    tmp_path, monkeypatch, change
):
    (tmp_path / "bundle").mkdir()
    files = [tmp_path / "in.h5ad", tmp_path / "bundle" / "weights"]
    for file in files:
        file.write_text("1")
    arguments = ["train", str(files[0]), f"--scvi_bundle={files[1].parent}", '--scvi={"a": 1}']
    write_failure(failure_of(an_error("X"), arguments, 1), tmp_path / "a.log")
    if change == "file":
        files[0].write_text("22")
    if change == "file in folder":
        os.utime(files[1], (1, 1))
    if change == "argument":
        arguments = [*arguments, "--seed=1"]
    if change == "version":
        monkeypatch.setattr("atlasmap.__version__", "99")
    found = hopeless(tmp_path / "a.log", arguments, 2)
    assert (found is not None) == (change == "nothing")
    assert hopeless(tmp_path / "a.log", arguments, 1) is None, "a new run always tries"


def test_what_may_go_away_by_itself_is_tried_again(tmp_path):
    write_failure(failure_of(Stopped("t"), ["a"], 1), tmp_path / "a.log")
    assert hopeless(tmp_path / "a.log", ["a"], 2) is None


def test_long_arguments_are_no_files():
    assert inputs_hash(["--scvi=" + "x" * 9999])


def run(log: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ATLASMAP, "--log", str(log), *words], capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def test_a_failed_command_leaves_log_and_record_and_a_retry_leaves_at_once(tmp_path):
    log = tmp_path / "logs" / "gather.log"
    bad = tmp_path / "table.csv"
    row = json.dumps({"id": "q", "path": str(bad), "role": "query"})
    words = ["prepare-query", str(bad), "--dataset", row, "--batch=b", "--reference", str(bad),
             "--out", str(tmp_path / "o"), "--facts", str(tmp_path / "f")]  # fmt: skip
    bad.write_text("a\n")
    first = run(log, *words)
    failure = read_failure(log)
    assert first.returncode == failure.exit_code != 0
    assert "atlasmap prepare-query" in log.read_text().splitlines()[0]
    assert first.stdout == first.stderr == ""
    second = run(log, *words, "--attempt", "2")
    assert second.returncode == first.returncode and read_failure(log) == failure
    assert "not tried again" in log.read_text().splitlines()[-1]
    logs = {path.name: path.read_text() for path in log.parent.glob("*.log")}
    assert set(logs) == {"gather.log", "gather.attempt1.log", "gather.attempt2.log"}
    assert "error:" in logs["gather.attempt1.log"], "the first attempt's log is kept"


def test_success_removes_the_record_and_keeps_the_logs_of_failed_attempts(tmp_path):
    log, table = tmp_path / "a.log", tmp_path / "t.csv"
    words = ["gather", "--scib", str(table), "--out", str(tmp_path / "out")]
    assert run(log, *words).returncode == EXIT_CODES["bug"]  # no such file
    assert read_failure(log).code == "FileNotFoundError" and "Traceback" in log.read_text()
    table.write_text("a\n1\n")
    assert run(log, *words, SLURM_RESTART_COUNT="1", SLURM_JOB_ID="9").returncode == 0
    assert read_failure(log) is None and "slurm job 9" in log.read_text()
    assert [path.name for path in tmp_path.glob("a.*.log")] == ["a.attempt1.log"]
    assert "Traceback" in (tmp_path / "a.attempt1.log").read_text()
    assert run(log, *words).returncode == 0 and not list(tmp_path.glob("a.*.log"))


def test_a_wrong_flag_is_bad_input(tmp_path):
    assert run(tmp_path / "a.log", "gather", "--nope").returncode == EXIT_CODES["bad_input"]
    assert read_failure(tmp_path / "a.log").kind == "bad_input"


def test_an_attempt_that_is_killed_is_not_known_by_an_older_record(tmp_path):
    log = tmp_path / "a.log"
    words = ["simulate", "--out", str(tmp_path / "s.h5ad"), "--n_cells", "400000"]
    write_failure(failure_of(KeyError("mended since"), words, 1), log)
    process = subprocess.Popen([ATLASMAP, "--log", str(log), *words])
    until = time.monotonic() + 20
    while failure_path(log).exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert read_failure(log) is None and hopeless(log, words, 2) is None


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_crash_is_called_a_crash_and_not_tried_again(tmp_path, number):
    log = tmp_path / "logs" / "a.log"
    words = ["simulate", "--out", str(tmp_path / "s.h5ad"), "--n_cells", "400000"]
    process = subprocess.Popen([ATLASMAP, "--log", str(log), *words])
    until = time.monotonic() + 20
    while not (log.exists() and log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=60) == -number and read_failure(log) is None
    text = " ".join(explain(str(log), tmp_path).split())
    assert "failed (crash;" in text and "crashed by itself" in text and "outside" not in text
    log.unlink()  # as Snakemake does before it tries again
    assert run(log, "--attempt", "2", *words).returncode == EXIT_CODES["crash"]
    failure = read_failure(log)
    assert failure.kind == "crash" and "Fatal" not in failure.found and not failure.transient
    assert "a.attempt1.log" in failure.found and not list(tmp_path.glob("*.h5ad"))


def test_walltime_outside_of_training_is_called_so(monkeypatch):
    now = time.time()
    monkeypatch.setattr(slurm, "job_times", lambda: JobTimes(now - 600, now + 5))
    assert kind_of(Stopped("SIGTERM came")) == "walltime"
    monkeypatch.setattr(slurm, "job_times", lambda: JobTimes(now - 600, now + 500))
    assert kind_of(Stopped("SIGTERM came")) == "preempted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_anywhere_is_recorded(tmp_path, number):
    log = tmp_path / "a.log"
    words = ["simulate", "--out", str(tmp_path / "s.h5ad"), "--n_cells", "400000"]
    process = subprocess.Popen(
        [ATLASMAP, "--log", str(log), *words],
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    until = time.monotonic() + 20
    while not (log.exists() and log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(number)
    kind = "interrupted" if number == signal.SIGINT else "preempted"
    assert process.wait(timeout=60) == EXIT_CODES[kind] and read_failure(log).kind == kind
    assert number.name in read_failure(log).found and read_failure(log).transient
    assert not list(tmp_path.glob("*s.h5ad*"))


def test_a_signal_that_python_drops_is_raised_again(monkeypatch):
    class Last:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler runs here, where nothing can be raised

    monkeypatch.setattr(stopping, "AGAIN", 0.2)
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    try:
        stopping.install()
        with pytest.raises(Stopped, match="SIGTERM"):
            Last()
            time.sleep(10)
    finally:
        stopping.ignore_signals()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_second_signal_does_not_spoil_the_record(monkeypatch, tmp_path):
    """It comes while the first is being written down."""
    from atlasmap.commands import main

    def again(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    try:
        stopping.install()
        monkeypatch.setattr(main, "write_failure", again)
        code = main.give_up(Stopped("SIGTERM came"), ["a"], tmp_path / "a.log", 1, as_json=False)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == EXIT_CODES["preempted"]


def test_a_gpu_without_memory_is_given_smaller_chunks(reference, scanvi, monkeypatch):
    cells = encode(scanvi.registry, reference, torch.device("cpu"))
    whole, forward, sizes = embed(scanvi.model, cells), Stack.forward, []

    def short_of_memory(self, x, *args, **how):
        sizes.append(len(x))
        if len(x) > CHUNK // 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, *args, **how)

    monkeypatch.setattr(Stack, "forward", short_of_memory)
    again = embed(scanvi.model, cells)
    assert max(sizes) > CHUNK // 4 and len(again.mean) == len(whole.mean)
    np.testing.assert_allclose(again.mean, whole.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.soft_labels, whole.soft_labels, rtol=1e-5, atol=1e-6)
