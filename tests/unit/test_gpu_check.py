"""The check of a GPU (tests/gpu), on a CPU as far as it goes: tensors are only called cuda."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import check
import golden_subset
import numpy as np
import pytest
import stages
import torch
import wheels
from check import HERE, SECONDS, Report
from golden import needs_shared
from golden_numbers import differences
from make_golden import whole
from named_cuda import named_cuda
from stages import How, unlike

from atlasmap.device import pick_device
from atlasmap.models import ops
from atlasmap.training.adam import Adam

CPU = torch.device("cpu")
SMALL = ["--device", "forced", "--size", "small"]
# Without what is neither torch's, numpy's, scipy's or numba's own nor in wheels.txt.
BARE = """
import re, sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

def with_needs(names):
    found, left = set(), [plain(name) for name in names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            try:
                needs = requires(name) or []
            except PackageNotFoundError:
                continue
            left += [plain(re.match("[A-Za-z0-9._-]+", n)[0]) for n in needs if "extra" not in n]
    return found

text = open(sys.argv[1] + "/wheels.txt").read()
there = with_needs(["torch", "numpy", "scipy", "numba"])
there |= {plain(name) for name in re.findall("^[a-z].*", text, re.M)} | {"atlasmap"}
absent = {module for module, of in packages_distributions().items()
          if there.isdisjoint(map(plain, of))}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in absent:
            return super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
assert {"scanpy", "matplotlib", "snakemake"} <= absent
import bench, tasks, check
sys.exit(check.main(sys.argv[2:]))
"""


def figures(out: Path) -> dict[str, dict]:
    """stage → what → figure, of a file with one run."""
    (ran,) = json.loads(out.read_text())
    found = {}
    for figure in ran["figures"]:
        found.setdefault(figure["stage"], {})[figure["what"]] = figure
    return found


def test_all_stages_run_on_the_wheels_alone_and_every_figure_is_in_the_file(tmp_path):
    out, root = tmp_path / "gpu_check.json", HERE.parents[1]
    paths = [str(root / name) for name in ("src", "tests/gpu", "tests/bench")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BARE, str(HERE), *SMALL, "--out", str(out)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    found = figures(out)
    assert list(found) == list(SECONDS)
    assert all(stage["ended"]["found"] == "well" for stage in found.values())
    assert "CPU" in found["environment"]["card"]["found"]
    assert found["tests"]["test_taken_up_after_any_step[5-scvi-cpu]"]["found"] == "passed"
    for name in golden_subset.NAMES:
        n = sum(what.startswith(f"{name} ") for what in found["golden"])
        assert n == {"scvi": 6, "scan": 15, "tota": 13}[name[:4]]
        assert f"{name} latent" in found["cpu"] and f"{name} loss" in found["cpu"]
        assert (f"{name} label probabilities" in found["cpu"]) == name.startswith("scanvi")
    for kind in ("scvi", "scanvi", "surgery"):
        assert found["cpu"][f"{kind} losses of 5 steps"]["most"] == 1e-4
        assert f"{kind} weights unlike those of a repeat" in found["bits"]
        assert any(f"{kind} weights unlike when taken up" in what for what in found["bits"])
        assert 0 < found["speed"][f"{kind} seconds a step, median"]["found"] < 10
        assert f"{kind} peak MB of the GPU" in found["speed"]
    assert found["speed"]["labels"]["found"] == 17
    # Else the branches of a GPU were not taken: a CPU's compiled loops round otherwise.
    assert found["cpu"]["scanvi_prefix latent"]["found"] > 0


def test_a_stage_that_fails_is_told_and_the_others_run(tmp_path, monkeypatch):
    name, folder = golden_subset.NAMES[0], tmp_path / "golden"
    shutil.copytree(golden_subset.FOLDER / name, folder / name)
    weights = folder / name / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(golden_subset, "FOLDER", folder)
    out = tmp_path / "gpu_check.json"
    chosen = ["--stages", "golden", "environment"]
    assert check.main([*SMALL, "--out", str(out), *chosen]) == 1
    found = figures(out)
    assert not found["golden"]["ended"]["ok"]
    assert "BUNDLE_ALTERED" in found["golden"]["ended"]["found"]
    assert found["environment"]["ended"]["ok"]


def test_a_stage_whose_time_is_over_or_that_dies_takes_no_other_with_it(tmp_path, monkeypatch):
    def slow(_how, say):
        say("begun", 1)
        time.sleep(60)

    monkeypatch.setattr(stages, "environment", slow)
    monkeypatch.setattr(stages, "tests", lambda _how, _say: os._exit(7))
    monkeypatch.setattr(stages, "cpu", lambda _how, say: say("a number", 0.2, ok=False))
    monkeypatch.setattr(check, "SECONDS", SECONDS | {"environment": 1})
    out = tmp_path / "gpu_check.json"
    told = [*SMALL, "--out", str(out), "--stages", "environment", "tests", "cpu"]
    assert check.main(told) == 1
    found = figures(out)
    assert found["environment"]["begun"]["ok"] and not found["environment"]["ended"]["ok"]
    assert "stopped after 1 s" in found["environment"]["ended"]["found"]
    assert found["tests"]["ended"]["found"] == "died with exit code 7"
    assert found["cpu"]["ended"]["ok"] and not found["cpu"]["a number"]["ok"]


def test_each_figure_is_in_the_file_once_it_is_known(tmp_path):
    out = tmp_path / "gpu_check.json"
    for run in (1, 2):
        report = Report(out, {"device": "forced"})
        for n in (1, 2):
            report.add({"stage": "a", "what": str(n), "found": n, "ok": n == 1})
            runs = json.loads(out.read_text())
            assert len(runs) == run and len(runs[-1]["figures"]) == n
    assert [figure["what"] for figure in report.failed] == ["2"]


def test_missing_wheels_are_named(monkeypatch, capsys, tmp_path):
    def version(name: str) -> str:
        if name == "zarr":
            raise check.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(check, "version", version)
    told = argparse.Namespace(device="forced", size="small", stages=[], seconds=1, out=tmp_path)
    monkeypatch.setitem(sys.modules, "stages", None)
    with pytest.raises(SystemExit):
        check.check(told)
    assert "missing here: zarr " in capsys.readouterr().err


@needs_shared
@pytest.mark.parametrize("name", golden_subset.NAMES)
def test_the_golden_models_of_the_tree_are_those_of_scvi_tools(name, tmp_path):
    golden_subset.write(whole(name), tmp_path)
    for file in ("weights.safetensors", "registry.json"):
        here = golden_subset.FOLDER / name / file
        assert here.read_bytes() == (tmp_path / file).read_bytes()
    for file in ("cells.npz", "expected.npz"):
        here = golden_subset.arrays(golden_subset.FOLDER / name / file)
        there = golden_subset.arrays(tmp_path / file)
        assert here.keys() == there.keys()
        assert all(np.array_equal(here[key], there[key]) for key in here)


def test_they_are_small():
    files = [path for path in golden_subset.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6


def test_a_number_that_is_off_is_found():
    golden = golden_subset.read("scanvi_prefix", CPU)
    assert all(each.found < each.most for each in differences(golden))
    off = golden.expected | {"px_mean": golden.expected["px_mean"] * 1.001}
    found = differences(replace(golden, expected=off))
    assert [each.what for each in found if each.found >= each.most] == ["px_mean"]


def test_within_it_the_branches_of_a_gpu_are_taken():
    x = torch.ones(3, 4)
    with named_cuda():
        assert pick_device("cuda").type == pick_device("auto").type == "cuda"
        assert x.device.type == torch.zeros(2, device="cuda").device.type == "cuda"
        assert not ops.faster(x)
        copy = x.cpu()
        copy += 1
        assert torch.equal(x.to("cuda") + 1, copy)
        assert torch.Generator(device="cuda").manual_seed(1).initial_seed() == 1
    assert x.device == CPU and ops.faster(x)
    torch.set_deterministic_debug_mode("default")


def test_a_training_that_is_taken_up_otherwise_is_found(monkeypatch):
    said = {}

    def say(what: str, found, ok: bool = True) -> None:
        said[what] = ok

    monkeypatch.setattr(Adam, "restore", lambda *_: None)  # moments are lost
    monkeypatch.setattr(stages, "KINDS", ("scvi",))
    stages.bits(How("forced", True), say)
    torch.set_deterministic_debug_mode("default")
    repeat, taken_up, _ = said.values()
    assert repeat and not taken_up


def test_any_other_bit_counts(scvi):
    assert unlike(scvi, scvi) == 0
    history = replace(scvi, history=scvi.history.iloc[1:])
    assert unlike(scvi, history) == -1
    other = golden_subset.load(golden_subset.FOLDER / "scvi_batchnorm_zinb", CPU)
    weight = other.model.scale.weight
    again = golden_subset.load(golden_subset.FOLDER / "scvi_batchnorm_zinb", CPU)
    with torch.no_grad():
        weight[0, 0] += 1
    assert unlike(other, again) == 1


def test_every_wheel_has_a_locked_version_and_too_many_are_refused(monkeypatch, tmp_path, capsys):
    names = [x for x in (HERE / "wheels.txt").read_text().splitlines() if not x.startswith("#")]
    assert [pin.split("==")[0] for pin in wheels.pins()] == names
    assert {"anndata", "pytest", "safetensors"} <= set(names)
    for megabytes, code in ((59.0, 0), (61.0, 1)):
        monkeypatch.setattr(wheels, "collect", lambda *_, found=megabytes: found)
        assert wheels.main(str(tmp_path)) == code
        assert f"{megabytes} MB" in capsys.readouterr().out
