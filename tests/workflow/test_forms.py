"""The forms in which the workflow is used: in the clone, as a module, renamed, moved by a prefix,
two atlases in one workflow, from a host of repositories; by a Snakemake without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import CONFIG, ROOT, new_folder

BIN = Path(sys.executable).parent
# What a bare Snakemake does not bring.
OURS = ("atlasmap", "cyclopts", "torch", "anndata", "scanpy", "sklearn", "numba")
SMALL = CONFIG | {
    "variants": ["fixed"], "strategies": ["per_batch"], "benchmark": {"scope": "none"},
    "calibration": {"scheme": "none"},
}  # fmt: skip


@pytest.fixture
def stock(tmp_path_factory) -> dict[str, str]:
    """The environment of a Snakemake beside which nothing of ours is installed."""
    folder = tmp_path_factory.mktemp("stock")
    for name in OURS:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    kept = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    return kept | {"PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}


def run(folder: Path, env: dict[str, str], *args: str) -> str:
    command = [str(BIN / "snakemake"), "--directory", str(folder), "--cores", "2", *args]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout + done.stderr


def written(folder: Path, text: str) -> list[str]:
    """A workflow of somebody's own, as the arguments that name it."""
    (folder / "Snakefile").write_text(text)
    return ["-s", str(folder / "Snakefile")]


def module(name: str, snakefile: str, config: dict, more: str = "", renamed: str = "") -> str:
    return (
        f"module {name}:\n    snakefile: {snakefile}\n    config: {json.dumps(config)}\n{more}\n"
        f"use rule * from {name}{renamed}\n\n"
    ).replace("null", "None").replace("false", "False").replace("true", "True")  # fmt: skip


LOCAL = f'"{ROOT}/workflow/Snakefile"'


def test_in_the_clone(tmp_path, stock):
    folder = new_folder(tmp_path, SMALL)
    text = run(folder, stock, "-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "-n")
    assert "train_scanvi" in text


def test_stock_lint(tmp_path, stock):
    folder = new_folder(tmp_path, SMALL)
    args = ["-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--lint"]
    assert "Congratulations" in run(folder, stock, *args)


@pytest.mark.parametrize(
    ("more", "renamed", "rule", "top"),
    [
        ("", "", "train_scanvi", "results/tiny"),
        ("", " as other_*", "other_train_scanvi", "results/tiny"),
        ('    prefix: "moved"\n', " as other_*", "other_train_scanvi", "moved/results/tiny"),
    ],
)
def test_as_a_module(tmp_path, stock, more, renamed, rule, top):
    folder = new_folder(tmp_path, SMALL)
    args = written(folder, module("one", LOCAL, SMALL, more, renamed))
    target = f"{top}/data/contract.json"
    assert rule in run(folder, stock, *args, "-n", *(["other_all"] if renamed else []))
    assert "write_contract" in run(folder, stock, *args, "-n", target)


def test_two_atlases_in_one_workflow_reach_their_labels(tmp_path):
    """One of them moved by a prefix. With the package, for it is run."""
    folder = new_folder(tmp_path, SMALL)
    two = SMALL | {"atlas": "second", "seeds": [1]}
    text = module("one", LOCAL, SMALL, "", " as one_*")
    text += module("two", LOCAL, two, '    prefix: "moved"\n', " as two_*")
    labels = ["results/tiny/labels.csv", "moved/results/second/labels.csv"]
    run(folder, dict(os.environ), *written(folder, text), "--", *labels)
    for path in labels:
        rows = (folder / path).read_text().splitlines()
        assert rows[0].startswith("cell_id") and len(rows) > 100
    assert not (folder / "results/second").exists()


def test_from_a_host_of_repositories(tmp_path, stock):
    """github(…), with a bare repository in place of the host."""
    bare, home = tmp_path / "hosted.git", tmp_path / "home"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    source = tmp_path / "source"
    source.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, files):
        if name.split("/")[0] in ("Snakefile", "workflow", "src", "config", "envs", "profiles"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    for command in (
        ["git", "init", "-q", "-b", "main"], ["git", "add", "-A"], [*git, "commit", "-qm", "x"],
        ["git", "tag", "v1"], ["git", "clone", "-q", "--bare", ".", str(bare)],
    ):  # fmt: skip
        subprocess.run(command, cwd=source, check=True)
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[url "file://{bare}"]\n    insteadOf = https://github.com/somebody/atlasmap\n'
        "[safe]\n    directory = *\n"
    )
    folder = new_folder(tmp_path / "work", SMALL)
    hosted = 'github("somebody/atlasmap", path="workflow/Snakefile", tag="v1")'
    args = written(folder, module("hosted", hosted, SMALL))
    env = stock | {"HOME": str(home), "GIT_CONFIG_GLOBAL": str(home / ".gitconfig")}
    assert "train_scanvi" in run(folder, env, *args, "-n")
