"""A finished run of the tiny atlas, made once for all workers."""

import fcntl
import shutil

import pytest
from tiny import new_folder, snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """The run itself: nobody works in it."""
    top = tmp_path_factory.getbasetemp()
    folder = (top if worker_id == "master" else top.parent) / "finished"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "output.txt").is_file():
            new_folder(folder)
            folder.joinpath("output.txt").write_text(snakemake(folder, "--quiet", "rules", "host"))
    return folder


@pytest.fixture(scope="module")
def done(finished, tmp_path_factory):
    """A finished run; tests leave it as they found it."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("run") / "work")


@pytest.fixture
def changed(finished, tmp_path):
    """A finished run, whose config, sheet and results may be changed."""
    return shutil.copytree(finished, tmp_path / "work")
