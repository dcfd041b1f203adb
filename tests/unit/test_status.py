"""How far a run is, from its logs, records and measurements; how commands speak."""

import io
import json
import logging
import os
import pty
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

from atlasmap.commands.main import COMMANDS, app, show_whole_help
from atlasmap.commands.saying import JsonLines, in_red, listen
from atlasmap.errors import AtlasmapError
from atlasmap.files import MANIFEST
from atlasmap.forecast.status import by_command, jobs_of, latest_atlas, seconds_left, status_text
from atlasmap.training import progress
from atlasmap.training.history import History
from atlasmap.training.stopping import Watch


@pytest.fixture
def atlas(tmp_path):
    """Two jobs done, one running, one failed; a forecast."""
    logs = tmp_path / "logs/seed0"
    logs.mkdir(parents=True)
    commands = {"train_scvi": "train-scvi", "assemble_a": "assemble",
                "train_scanvi_fixed": "train-scanvi", "assemble_b": "assemble"}  # fmt: skip
    for name, command in commands.items():
        (logs / f"{name}.log").write_text(f"10:00:00 atlasmap {command} x --out y\n")
    os.link(logs / "train_scanvi_fixed.log", logs / "train_scanvi_fixed.attempt1.log")
    record = dict.fromkeys(("found", "mend", "command", "inputs", "host", "time"), "")
    record |= {"kind": "bad_input", "code": "GENES_FEW", "transient": False, "exit_code": 2,
               "attempt": 1, "slurm_job": None}  # fmt: skip
    (logs / "assemble_b.failure.json").write_text(json.dumps(record))
    rows = [{"rule": "train_scvi", "jobs": 1, "seconds": 100.0},
            {"rule": "train_scanvi", "jobs": 2, "seconds": 600.0},
            {"rule": "map_joint", "jobs": 2, "seconds": 30.0}]  # fmt: skip
    (tmp_path / "forecast.json").write_text(json.dumps({"forecast": rows}))
    return tmp_path


def test_jobs_are_done_running_or_failed(atlas):
    table = by_command(jobs_of(atlas))
    assert table.loc["assemble"].to_dict() == {"done": 1, "running": 0, "failed": 1}
    assert table.loc["train-scanvi", "running"] == 1 and table.loc["train-scvi", "done"] == 1
    assert "GENES_FEW" in status_text(atlas)


def test_the_forecast_says_what_is_left(atlas):
    assert seconds_left(atlas, jobs_of(atlas)) == 2 * 600 + 2 * 30
    assert "21 min" in status_text(atlas)
    (atlas / "forecast.json").unlink()
    assert "not known" in status_text(atlas)


def test_how_far_each_running_training_is(atlas):
    log = atlas / "logs/seed0/train_scanvi_fixed.log"
    with log.open("a") as file:
        file.write("10:00:09 scANVI fixed: epoch 3 of 60, elbo 612.20, 4 min left\n")
        file.write("10:00:19 scANVI fixed: epoch 9 of 60, elbo 580.10, 3 min left\nother\n")
    said = "seed0/train_scanvi_fixed: scANVI fixed: epoch 9 of 60, elbo 580.10, 3 min left"
    assert said in status_text(atlas) and "612.20" not in status_text(atlas)
    done = atlas / "logs/seed0/train_scvi.log"
    with done.open("a") as file:
        file.write("10:00:09 scVI: epoch 60 of 60, elbo 500.00, 0 s left\n")
    assert "500.00" not in status_text(atlas)


def test_a_training_says_how_long_it_will_take(caplog, monkeypatch):
    """Lines grow rarer; the last epoch has one of its own."""
    now, history = [0.0], History()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "atlasmap")
    shown = progress.Progress("scVI", 300, 0, Watch())
    for epoch in range(1, 301):
        now[0] += 2.0
        history.add(epoch, "validation", {"elbo": 1000.0 - epoch})
        shown.tell(epoch, history, "elbo")
    lines = [record.message for record in caplog.records]
    assert lines[0] == "scVI: epoch 3 of 300, elbo 997.00, 10 min left"
    assert lines[-1] == "scVI: epoch 300 of 300, elbo 700.00, 0 s left" and 20 < len(lines) < 100
    assert all(record.progress for record in caplog.records)


def test_progress_goes_to_the_terminal_beside_the_log(tmp_path):
    """A job's stderr is its log; who started the workflow on a terminal sees its epochs."""
    code = (
        "import logging, os, sys; from atlasmap.commands.saying import keep_terminal, listen\n"
        "listen(); keep_terminal(); file = open(sys.argv[1], 'wb'); os.dup2(file.fileno(), 2)\n"
        "log = logging.getLogger('atlasmap'); log.info('plain')\n"
        "log.info('epoch 1 of 2', extra={'progress': True})"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    subprocess.run(command, stderr=theirs, check=True)
    os.close(theirs)
    seen = os.read(ours, 10_000).decode()
    assert "epoch 1 of 2" in seen and "plain" not in seen
    assert (tmp_path / "log").read_text().count("epoch 1 of 2") == 1
    subprocess.run([*command[:-1], str(tmp_path / "other")], stderr=subprocess.PIPE, check=True)


def test_a_finished_run_that_lost_results_is_not_called_finished(atlas):
    for name in ("assemble_b.failure.json", "train_scanvi_fixed.attempt1.log"):
        (atlas / "logs/seed0" / name).unlink()
    (atlas / "labels.csv").write_text("x")
    assert "finished" not in status_text(atlas)
    (atlas / MANIFEST).write_text("labels.csv\n")
    assert status_text(atlas).endswith("\nfinished")
    (atlas / "labels.csv").unlink()
    assert "removed: labels.csv" in status_text(atlas)
    assert not status_text(atlas).endswith("\nfinished")


def test_a_job_that_has_long_said_nothing_is_named(atlas):
    log = atlas / "logs/seed0/train_scanvi_fixed.log"
    os.utime(log, (1, 1))
    assert "quiet for" in status_text(atlas)


def test_the_atlas_that_ran_last_is_meant(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name / "logs/seed0").mkdir(parents=True)
        (tmp_path / name / "logs/seed0/a.log").write_text("x")
    for path in (tmp_path / "old").rglob("*"):
        os.utime(path, (1, 1))
    assert latest_atlas(tmp_path) == tmp_path / "new"
    with pytest.raises(AtlasmapError, match="STATUS_NONE"):
        latest_atlas(tmp_path / "old")


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(AtlasmapError, match="STATUS_NONE"):
        jobs_of(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_an_example_that_it_understands(name):
    show_whole_help([name, "--help"])
    out = io.StringIO()
    app.help_print([name], console=Console(file=out, width=1000, no_color=True))
    shown = out.getvalue()
    (line,) = (line for line in shown.splitlines() if line.startswith("Example: atlasmap"))
    words = shlex.split(line.removeprefix("Example: "))
    assert words[:2] == ["atlasmap", name]
    app.parse_args(words[1:], exit_on_error=False)


def test_logs_are_lines_of_json_if_asked(capsys):
    record = logging.LogRecord("atlasmap", logging.INFO, "", 0, "a %s", ('"b"',), None)
    said = json.loads(JsonLines().format(record))
    assert said["message"] == 'a "b"' and said["level"] == "info"
    before = logging.getLogger().handlers[:]
    try:
        listen(logging.WARNING, as_json=True)
        logging.getLogger("atlasmap").info("not said")
        logging.getLogger("atlasmap").warning("said")
        lines = capsys.readouterr().err.splitlines()
        assert [json.loads(line)["message"] for line in lines] == ["said"]
    finally:
        logging.getLogger().handlers[:] = before


def test_there_is_no_color_but_on_a_terminal(monkeypatch):
    assert in_red("error:") == "error:"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert in_red("error:") != "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert in_red("error:") == "error:"


@pytest.mark.parametrize("flags", [["--quiet"], ["--json_log", "--quiet"], ["--verbose"]])
def test_how_to_speak_is_a_flag_of_every_command(tmp_path, flags):
    command = [sys.executable, "-m", "atlasmap.commands.main", *flags, "status", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "STATUS_NONE" in done.stderr and "\033" not in done.stderr
    lines = done.stderr.splitlines()
    if "--json_log" in flags:
        assert [json.loads(line)["failure"]["code"] for line in lines] == ["STATUS_NONE"]
    assert ("MB at most" in lines[-1]) == (flags == ["--verbose"])
