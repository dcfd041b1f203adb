"""The command line: errors in one block, flags that are config keys, quick start."""

import subprocess
import sys
from pathlib import Path

ATLASMAP = str(Path(sys.executable).parent / "atlasmap")


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([ATLASMAP, *args], capture_output=True, text=True)


def test_an_error_is_one_block_and_exits_with_2(tmp_path):
    done = run("map", "--reference", "nope", "--query", "q.h5ad", "--out", str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    at = lines.index("error: BUNDLE_MISSING")
    assert [line.split(":")[0].strip() for line in lines[at + 1 :]] == ["expected", "found", "mend"]


def test_a_log_begins_with_the_command_that_made_it(tmp_path):
    log = tmp_path / "a.log"
    run("--log", str(log), "gather", "a b.csv", "--out", str(tmp_path / "x"))
    assert "atlasmap gather 'a b.csv' --out" in log.read_text().splitlines()[0]


def test_flags_are_config_keys(tmp_path):
    text = run("train-scvi", "--help").stdout
    for flag in ("--scvi.n_latent", "--scvi.train.max_epochs", "--scvi.use_layer_norm"):
        assert flag in text
    assert "Dimensions of the latent space" in text
    wrong = run("train-scvi", "x.h5ad", "--out", str(tmp_path), "--scvi.n_latnt", "3")
    assert wrong.returncode != 0 and "--scvi.n_latent" in wrong.stdout + wrong.stderr


def test_simulate_writes_what_is_asked(tmp_path):
    import anndata

    out = tmp_path / "s.h5ad"
    done = run(
        "simulate", "--out", str(out), "--n_cells", "120", "--n_genes", "60", "--n_lineages", "2",
        "--proteins", "12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = anndata.read_h5ad(out)
    assert made.shape == (120, 60) and made.obsm["protein_expression"].shape == (120, 12)
