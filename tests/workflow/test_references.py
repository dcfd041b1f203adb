"""Other runs beside a finished one: mapped onto its reference, from disk, again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import pandas as pd
import pytest
from tiny import CONFIG, SHEET, TOP, hashes, jobs, new_folder, snakemake, write

from atlasmap.files import sha256


def test_a_trained_reference_is_mapped_onto(done, tmp_path):
    bundle = done / TOP / "seed0/reference/scanvi_fixed"
    idle = ("scvi", "scanvi", "variants")
    config = {key: value for key, value in CONFIG.items() if key not in idle}
    config |= {"reference": {"bundle": str(bundle)}}
    folder = new_folder(tmp_path, config, [SHEET[0], *SHEET[2:]])
    assert "score_embeddings" not in jobs(snakemake(folder, "-n"))
    names = "labels.csv", "soft_labels.parquet", "soft_labels_calibrated.parquet"
    mapped = [TOP / f"seed0/mapping/fixed/{how}/{k}" for how in ("per_batch", "joint")
              for k in names]  # fmt: skip
    targets = [str(path) for path in (TOP / "atlas.h5ad", *mapped)]
    text = snakemake(folder, "--", *targets)
    run = set(re.findall(r"^(?:rule|checkpoint|localrule) (\w+):", text, re.MULTILINE))
    assert {"take_reference", "map_per_batch", "map_joint", "publish"} <= run
    assert not {"train_scvi", "train_scanvi", "prepare_reference", "score_embeddings"} & run
    for path in mapped:
        assert sha256(folder / path) == sha256(done / path), path
    contract = json.loads((folder / TOP / "data/contract.json").read_text())["reference"]
    assert "scib-metrics" in contract["left_out"] and contract["classifier"] == "fixed"
    assert jobs(snakemake(folder, "-n", "--", *targets)) == {}
    # what scvi-tools saved, and seeds that vary the mapping alone
    tool = str(Path(sys.executable).parent / "atlasmap")
    out = folder / "saved"
    subprocess.run([tool, "export-scvi", str(bundle), "--out", str(out)], check=True)
    more = {"atlas": "other", "reference": {"scvi_tools": "saved"}, "variants": ["fixed"]}
    write(folder, config | more | {"seeds": [0, 1], "strategies": ["joint"]}, [SHEET[0], SHEET[2]])
    snakemake(folder, *(f"results/other/seed{k}/mapping/fixed/joint/labels.csv" for k in (0, 1)))
    other = folder / "results/other"
    weights = [sha256(p) for p in other.glob("seed*/reference/*/weights.safetensors")]
    assert len(weights) == 2 and len(set(weights)) == 1
    assert len({sha256(p) for p in other.glob("seed*/mapping/fixed/joint/labels.csv")}) == 2
    write(folder, config | more | {"seeds": [0, 1], "strategies": ["joint"]}, SHEET[:1] + SHEET[2:])
    planned = jobs(snakemake(folder, "-n"))  # next month's batch: nothing is taken over again
    assert planned["find_batches"] == 1 and "take_reference" not in planned


@pytest.mark.parametrize(
    "change, code",
    [
        ({"variants": ["linear"]}, "CONFIG_REFERENCE"),
        ({"unlabeled_category": "none"}, "REFERENCE_DIFFERS"),
    ],
)
def test_a_trained_reference_that_does_not_fit_is_refused(done, tmp_path, change, code):
    idle = ("scvi", "scanvi", "variants")
    config = {key: value for key, value in CONFIG.items() if key not in idle}
    config |= {"reference": {"bundle": str(done / TOP / "seed0/reference/scanvi_fixed")}} | change
    folder = new_folder(tmp_path, config, [SHEET[0], *SHEET[2:]])
    text = snakemake(folder, ok=False)
    said = text + "".join(p.read_text() for p in folder.rglob("take_reference*.log"))
    assert code in said and "map_per_batch:" not in text


@pytest.mark.parametrize("absolute", [False, True])
def test_a_reference_inside_its_own_results_is_refused_and_left_alone(done, tmp_path, absolute):
    bundle = TOP / "seed0/reference/scanvi_fixed"
    idle = ("scvi", "scanvi", "variants")
    config = {key: value for key, value in CONFIG.items() if key not in idle}
    named = str(tmp_path / bundle) if absolute else str(bundle)
    folder = new_folder(tmp_path, config | {"reference": {"bundle": named}}, [SHEET[0], *SHEET[2:]])
    shutil.copytree(done / bundle, folder / bundle)
    before = hashes(folder)
    assert "CONFIG_REFERENCE" in snakemake(folder, ok=False) and hashes(folder) == before


def test_counts_may_stay_on_disk(done, tmp_path):
    """In less memory than libraries take: the same data, shuffled by blocks, to the labels."""
    small = {"data": {"n_top_genes": None, "memory_gb": 0.1}, "variants": ["fixed"]}
    folder = new_folder(tmp_path / "work", CONFIG | small | {"strategies": ["joint"]})
    snakemake(folder, *(str(TOP / name) for name in ("atlas.h5ad", "labels.csv")))
    for facts in ("reference.json", "contract.json"):
        one, other = (
            json.loads((top / TOP / "data" / facts).read_text()) for top in (done, folder)
        )
        assert one == other
    seed = folder / TOP / "seed0"
    for trained in ("reference/scanvi_fixed", "held_out/0/scanvi_fixed", "mapping/fixed/joint/all"):
        assert json.loads((seed / trained / "settings.json").read_text())["training"]["streamed"]
    assert not list(folder.rglob(".joined*"))


def test_two_runs_are_bit_identical(done, tmp_path):
    """The answer and all it is made of, by processes of their own; unit tests compare the bytes of
    metrics, figures and pages."""
    again = new_folder(tmp_path / "again")
    snakemake(again, *(str(TOP / name) for name in ("atlas.h5ad", "labels.csv")), anew=True)
    first, second = hashes(done), hashes(again)
    assert [n for n in second if second[n] != first.get(n)] == []
    assert len([n for n in second if "held_out" in n]) > 4 and len(second) > 25


def test_mapping_without_snakemake_gives_the_same_labels(done, tmp_path):
    reference = done / TOP / "seed0/reference/scanvi_fixed"
    command = [
        str(Path(sys.executable).parent / "atlasmap"), "map", "--reference", str(reference),
        "--query", str(done / "atlas.h5ad"), "--out", str(tmp_path), "--batch_key", "batch",
        "--obs_filter", "role == 'query'", "--surgery.max_epochs", "3", "--device", "cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = (
        pd.read_csv(path, index_col="barcode").sort_index()
        for path in (tmp_path / "labels.csv", done / TOP / "labels.csv")
    )
    assert set(ours.pop("dataset")) == {"atlas"} and set(theirs.pop("dataset")) == {"zoe", "b"}
    assert (ours.pop("cell_id") == "atlas:" + ours.index).all() and theirs.pop("cell_id").is_unique
    assert ours.equals(theirs)
    maps = [anndata.read_h5ad(f / "atlas.h5ad").obsm["X_umap"] for f in (tmp_path, done / TOP)]
    assert (maps[0] == maps[1]).all()
