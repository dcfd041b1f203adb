"""Whole or not there, recorded, named reversibly; devices; sources."""

import subprocess

import numpy as np
import pytest
from scipy import sparse

from atlasmap import device
from atlasmap.data.sources import pbmc68k
from atlasmap.errors import AtlasmapError
from atlasmap.files import folder_aside, recorded, sha256, written_aside
from atlasmap.names import slug, unslug


@pytest.mark.parametrize(
    "name", ["a", "a/b", "a b", "Zoë", "50%", "~x", ".hidden", "a+b", "..", "a:b", "日本", "A~2Eb"]
)
def test_slugs_are_reversible_file_names(name, tmp_path):
    text = slug(name)
    assert unslug(text) == name and "/" not in text and not text.startswith(".")
    (tmp_path / text).touch()


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_checksums_are_recorded_as_sha256sum_reads_them(tmp_path):
    with written_aside(tmp_path / "a b.txt") as aside:
        aside.write_text("x")
    assert recorded(tmp_path) == {tmp_path / "a b.txt": sha256(tmp_path / "a b.txt")}
    run = subprocess.run(["sha256sum", "-c", ".a b.txt.sha256"], cwd=tmp_path, capture_output=True)
    assert run.returncode == 0


def test_a_folder_is_finished_with_its_last_file(tmp_path):
    folder = tmp_path / "bundle"
    with pytest.raises(RuntimeError), folder_aside(folder, last="settings.json") as scratch:
        (scratch / "settings.json").write_text("{}")
        raise RuntimeError
    assert list(folder.iterdir()) == []
    with folder_aside(folder, last="settings.json") as scratch:
        (scratch / "settings.json").write_text("{}")
        (scratch / "z.txt").write_text("z")
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        "settings.json", "z.txt"
    }  # fmt: skip


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(device, "usable_cuda", lambda: "no CUDA here")


@pytest.mark.parametrize("asked", ["auto", "cpu", "any"])
def test_without_a_gpu_outside_a_job_the_cpu_computes(no_cuda, monkeypatch, asked, caplog):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with caplog.at_level("INFO", "atlasmap"):
        assert device.pick_device(asked).type == "cpu"
    assert "device: cpu" in caplog.text


def test_a_gpu_job_without_a_usable_gpu_is_an_error(no_cuda, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    for asked, fails in [("auto", True), ("cuda", True), ("cpu", False), ("any", False)]:
        if fails:
            with pytest.raises(AtlasmapError) as error:
                device.pick_device(asked)
            assert error.value.code == "GPU_UNUSABLE" and "no CUDA here" in error.value.found
        else:
            assert device.pick_device(asked).type == "cpu"
    monkeypatch.delenv("SLURM_JOB_GPUS")
    assert device.pick_device("auto").type == "cpu"


def test_pbmc68k_counts_are_recovered():
    import scanpy

    adata = pbmc68k()
    assert adata.shape == (700, 765) and adata.obs["batch"].nunique() == 8
    assert adata.obs["bulk_labels"].nunique() == 10
    assert np.array_equal(adata.X.data, np.rint(adata.X.data)) and adata.X.data.min() == 1
    source = scanpy.datasets.pbmc68k_reduced()
    scale = 1e4 / source.obs["n_counts"].to_numpy()
    again = sparse.diags(scale) @ adata.X
    assert np.abs(again.log1p() - source.raw.X).max() < 6e-4


def test_what_a_killed_process_left_aside_is_removed(tmp_path):
    (tmp_path / ".77.partial.a[1].csv").write_text("half")
    (tmp_path / ".77.partial.b.csv").write_text("another job's")
    with written_aside(tmp_path / "a[1].csv") as aside:
        aside.write_text("whole")
    assert {p.name for p in tmp_path.glob(".77*")} == {".77.partial.b.csv"}
    (tmp_path / "bundle" / ".partial-x").mkdir(parents=True)
    with folder_aside(tmp_path / "bundle", last="z") as scratch:
        (scratch / "z").write_text("z")
    assert {p.name for p in (tmp_path / "bundle").iterdir()} == {"z", ".z.sha256"}
