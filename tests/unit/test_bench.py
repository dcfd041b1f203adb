"""The benchmark (tests/bench): its table, that rounds are saved, and how it treats a GPU."""

import json
from dataclasses import asdict

import bench
import pytest
import tasks
import torch
from bench import Atlas
from named_cuda import CARD, named_cuda
from tasks import Data, How, Theirs

import atlasmap
from atlasmap.device import pick_device

TINY = Atlas(cells=160, genes=60)


def row(tool: str, n: int, **more) -> dict:
    """A row of the task scvi in the n-th round."""
    speed = {"atlasmap": 3000.0, "scvi-tools": 1000.0}[tool] + n
    return {
        "task": "scvi", "cells": 10, "labels": 17, "nonzero": 0.1, "epochs": 20, "round": n,
        "tool": tool, "cells_per_s": speed, "seconds": 2.0, "peak_mb": 5.0, "elbo": 7.0,
        "threads": 1,
    } | more  # fmt: skip


def test_a_table_of_a_gpu():
    card = {"gpu": "a card", "gpu_mb": 1.0}
    rows = [row(tool, n, **card) for n in (0, 1) for tool in bench.WORTH]
    made = bench.table(rows).to_dict("records")[0]
    assert made["cells/s"] == "3,000 / 1,000" and made["rounds"] == 2
    assert made["times as fast"] == "3.00 (3.00 to 3.00)" and made["validation ELBO"] == "7.0 / 7.0"
    assert "extrapolated from" not in made
    assert bench.machine(rows[0])["gpu"] == "a card"
    rows[1] |= {"epochs_timed": 3, "elbo": None}
    rows[3] |= {"epochs_timed": 3, "elbo": None}
    made = bench.table(rows).to_dict("records")[0]
    assert made["extrapolated from"] == "3 epochs" and made["validation ELBO"] == "7.0"


def test_a_table_of_atlasmap_alone():
    made = bench.table([row("atlasmap", n) for n in (0, 1)]).to_dict("records")[0]
    assert made["cells/s"] == "3,000" and "times as fast" not in made


def test_each_round_is_saved_as_it_is_measured(tmp_path, monkeypatch):
    out, runs = tmp_path / "benchmarks.json", []
    out.write_text(json.dumps([{"machine": {}, "rows": []}]))

    def of_process(_python, _script, tool, task, _folder):
        if task == "scvi":
            runs.append(tool)
            if len(runs) == 3:
                raise KeyboardInterrupt
        return row("atlasmap", 0) if task == "scvi" else {}

    monkeypatch.setattr(bench, "of_process", of_process)
    theirs = tmp_path / "python"
    theirs.touch()
    with pytest.raises(KeyboardInterrupt):
        bench.run(atlas=TINY, tasks=("scvi",), theirs=theirs, out=out)
    earlier, ran = json.loads(out.read_text())
    assert earlier == {"machine": {}, "rows": []}
    assert len(ran["rows"]) == 2 and ran["machine"]["threads"] == 1
    assert runs == ["atlasmap", "scvi-tools", "scvi-tools"]


def test_without_scvi_tools_atlasmap_is_timed_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_spec", lambda _name: None)
    assert list(bench.tools(tmp_path / "none")) == ["atlasmap"]
    assert "alone" in capsys.readouterr().err
    monkeypatch.setattr(bench, "find_spec", lambda name: name == "scvi")
    assert len(set(bench.tools(tmp_path / "none").values())) == 1
    assert list(bench.tools(tmp_path / "none")) == list(bench.WORTH)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="GPU_UNUSABLE"):
        bench.run(how=How(device="cuda"), out=tmp_path / "benchmarks.json")


def test_without_git_the_version_stands_for_the_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert bench.commit() == atlasmap.__version__


def test_a_task_on_a_gpu_names_the_card_that_the_package_picked(tmp_path):
    TINY.write(tmp_path)
    (tmp_path / "how.json").write_text(json.dumps(asdict(How(scvi=1, device="cuda"))))
    with named_cuda():
        found = tasks.ran(tasks.read(tmp_path), "atlasmap", "scvi")
        assert torch.are_deterministic_algorithms_enabled()
    torch.set_deterministic_debug_mode("default")
    assert found["gpu"] == CARD and found["gpu_mb"] == 0 and found["elbo"] > 0


@pytest.mark.parametrize(("device", "epochs", "trained"), [
    ("cuda", 100, [1, 3]), ("cuda", 3, [3]), ("cpu", 100, [100]),
])  # fmt: skip
def test_on_a_gpu_scvi_tools_trains_few_epochs_and_the_others_are_added(
    monkeypatch, device, epochs, trained
):
    clock, told = [0.0], []

    def train(n: int) -> str:
        told.append(n)
        clock[0] += 5 + 2 * n  # seconds
        return "model"

    monkeypatch.setattr(tasks.time, "perf_counter", lambda: clock[0])
    tool = Theirs(Data(None, None, None, How(), torch.device(device)))
    assert tool.fitted(train, epochs) == "model"
    assert told == trained and clock[0] + sum(tool.added) == pytest.approx(5 + 2 * epochs)
    assert bool(tool.added) == (device == "cuda" and epochs > 3)


def test_the_device_of_a_task_is_as_asked(tmp_path):
    TINY.write(tmp_path)
    (tmp_path / "how.json").write_text(json.dumps(asdict(How())))
    assert tasks.read(tmp_path).device == pick_device("cpu")
