"""The whole workflow on a tiny atlas: what a finished run has."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest
import requests
from browser import opened
from tiny import NAMES, ROOT, TOP, snakemake

from atlasmap.names import slug


def test_every_promised_result_is_there(done):
    promised = [
        "atlas.h5ad", "labels.csv", "data/reference.h5ad", "data/contract.json",
        *(f"data/queries/{slug(name)}.h5ad" for name in NAMES.values()),
        "benchmark/certificates.csv", "benchmark/classification.csv", "benchmark/scib.csv",
        "benchmark/history.csv", "benchmark/trust.csv", "benchmark/opinions.csv",
        "benchmark/fitness.csv", "report.html", "explorer.html",
        "benchmark/knn_sensitivity.csv", "benchmark/gene_gap.csv", "logs/opinions.csv",
        *(f"figures/{name}.{end}" for end in ("svg", "png")
          for name in ("loss_curves", "confusion_validation", "confusion_query", "embeddings",
                       "scib_table", "reliability", "risk_coverage", "shifts")),
    ]  # fmt: skip
    for model in ("scvi", "scanvi_fixed", "scanvi_linear"):
        for name in ("settings.json", "registry.json", "weights.safetensors", "golden.npz"):
            promised.append(f"seed0/reference/{model}/{name}")
    for name in ("calibration.json", "profiles.npz"):
        promised += [f"seed0/reference/scanvi_{variant}/{name}" for variant in ("fixed", "linear")]
    for variant in ("fixed", "linear"):
        for strategy, folders in [("joint", ["all"]), ("per_batch", map(slug, NAMES.values()))]:
            top = f"seed0/mapping/{variant}/{strategy}"
            tables = ("labels.csv", "soft_labels.parquet", "soft_labels_calibrated.parquet",
                      "shifts.csv")  # fmt: skip
            promised += [f"{top}/{name}" for name in ("atlas.h5ad", *tables)]
            promised += [f"{top}/{folder}/weights.safetensors" for folder in folders]
    assert [name for name in promised if not (done / TOP / name).is_file()] == []


def test_its_pages_open_without_a_network(done):
    with opened(done / TOP / "explorer.html") as (page, _):
        page.wait_for_function("document.body.dataset.ready === 'yes'", timeout=60_000)
        assert page.locator("#names li").count() > 1
    with opened(done / TOP / "report.html", 390) as (page, _):
        page.wait_for_function("document.body.dataset.ready === 'yes'")
        text = page.inner_text("#short")
        assert "Zoë/1 a" in text and "bit for bit" in text
        assert page.locator("figure img").count() == 8
        stages = page.inner_html("#table-stages")
        assert "train-scvi" in stages and "map-batches" in stages


def test_cellxgene_serves_the_atlas(done):
    own = ROOT / ".venv-cellxgene/bin/cellxgene"
    program = str(own) if own.exists() else shutil.which("cellxgene")
    if not program:
        pytest.skip("needs cellxgene (make env-cellxgene)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "launch", str(done / TOP / "atlas.h5ad"), "--host", "127.0.0.1",
               "--port", str(port), "--disable-annotations"]  # fmt: skip
    atlas = anndata.read_h5ad(done / TOP / "atlas.h5ad")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            url = f"http://127.0.0.1:{port}/api/v0.2"
            schema = answer(server, f"{url}/schema")["schema"]
            colors = answer(server, f"{url}/colors")
        finally:
            server.terminate()
    assert schema["dataframe"]["nObs"] == atlas.n_obs
    assert {"X_umap", "umap"} & {layout["name"] for layout in schema["layout"]["obs"]}
    names = atlas.obs["predicted_label"].cat.categories
    stored = dict(zip(names, atlas.uns["predicted_label_colors"], strict=True))
    assert colors["predicted_label"] == stored


def answer(server: subprocess.Popen, url: str) -> dict:
    """What a server says once it is there, as JSON."""
    for _ in range(240):
        assert server.poll() is None, server.stdout.read().decode()
        with contextlib.suppress(requests.ConnectionError):
            said = requests.get(url, timeout=30)
            assert said.ok, said.text
            return said.json()
        time.sleep(0.5)
    raise AssertionError("no answer in two minutes")


def test_readers_in_other_languages_find_nothing_odd_in_the_atlas(done):
    atlas = anndata.read_h5ad(done / TOP / "atlas.h5ad")
    for key, column in atlas.obs.items():
        assert column.dtype.kind in "fiubOU" and not (column.isna().any() and column.dtype == "O")
        if isinstance(column.dtype, pd.CategoricalDtype):
            assert column.cat.categories.dtype.kind in "OUT" and (column.cat.codes >= 0).all(), key
    assert all(values.dtype.kind == "f" for values in atlas.obsm.values())
    assert all(isinstance(value, np.ndarray | str) for value in atlas.uns.values())
    assert atlas.X.shape == (atlas.n_obs, 0)


def test_the_atlas_has_one_colour_a_label(done):
    atlas = anndata.read_h5ad(done / TOP / "atlas.h5ad")
    colors = {}
    for key in ("label", "predicted_label", "knn_label", "truth"):
        names = atlas.obs[key].cat.categories
        assert len(atlas.uns[f"{key}_colors"]) == len(names)
        for name, color in zip(names, atlas.uns[f"{key}_colors"], strict=True):
            assert colors.setdefault(name, color) == color and re.fullmatch("#[0-9a-f]{6}", color)
    assert len(set(colors.values())) == len(colors)
    assert not any(atlas.obs[key].isna().any() for key in atlas.obs.select_dtypes("category"))


def test_it_ends_with_the_table_and_where_things_are(done):
    text = (done / "output.txt").read_text()
    assert re.search(r"fixed +per_batch +query", text) and "figures:  results/tiny/figures" in text


def test_the_genes_have_an_opinion_beside_every_variant(done):
    found = pd.read_csv(done / TOP / "benchmark/opinions.csv").groupby("variant")["method"].unique()
    latent = {"knn", "random_forest", "logistic", "majority"}
    assert set(found["fixed"]) == set(found["linear"]) == {"classifier", "genes", *latent}
    assert set(found["scvi"]) == latent  # which has no classifier, and learned nothing of labels
    learned = json.loads((done / TOP / "seed0/reference/scanvi_fixed/calibration.json").read_text())
    weights = learned["views"][0]["opinions"]
    assert set(weights) == {"classifier", "genes", *latent} - {"majority"}
    assert all(weight > 0 for weight in weights.values())
    opinions = pd.read_parquet(done / TOP / "seed0/mapping/fixed/joint/opinions.parquet")
    labels = pd.read_csv(done / TOP / "seed0/mapping/fixed/joint/labels.csv", index_col="cell_id")
    same = labels.loc[opinions["cell_id"], "genes_label"].to_numpy() == opinions["genes"].to_numpy()
    assert same.all()


def test_the_tables_say_what_they_should(done):
    scores = pd.read_csv(done / TOP / "benchmark/classification.csv", keep_default_na=False)
    assert list(scores) == [
        "seed", "variant", "strategy", "batch", "split", "method", "probabilities", "level",
        "n", "n_not_in_reference", "accuracy", "macro_f1", "ece",
    ]  # fmt: skip
    assert set(scores["split"]) == {"train", "validation", "query"}
    assert {*NAMES.values(), "all"} == set(scores[scores["split"] == "query"]["batch"])
    assert not scores.duplicated().any()
    calibrated = scores[(scores["probabilities"] == "calibrated") & (scores["batch"] == "all")]
    assert set(calibrated["split"]) == {"query"}  # reference cells are not weighed
    assert set(calibrated["method"]) == {"classifier", "pooled"}
    assert set(scores.loc[scores["split"] == "query", "method"]) == {
        "classifier", "pooled", "genes", "knn", "random_forest", "logistic", "majority",
    }  # fmt: skip
    adata = anndata.read_h5ad(done / "atlas.h5ad")
    novel = set(adata.obs.loc[adata.obs["role"] == "query", "cell_type"]) - set(
        adata.obs.loc[adata.obs["role"] == "reference", "cell_type"]
    )
    everyone = scores[(scores["split"] == "query") & (scores["batch"] == "all")]
    expected = int((adata.obs["cell_type"].isin(novel)).sum())
    assert expected > 0 and (everyone["n_not_in_reference"] == expected).all()
    scib = pd.read_csv(done / TOP / "benchmark/scib.csv")
    assert list(scib["embedding"]) == [
        "pca", "scvi", "scanvi_fixed", "scanvi_linear", "scanvi_fixed_per_batch",
        "scanvi_fixed_joint", "scanvi_linear_per_batch", "scanvi_linear_joint",
    ]  # fmt: skip
    assert set(scib["cells"]) == {"reference", "atlas"} and (pd.to_numeric(scib["total"]) > 0).all()
    history = pd.read_csv(done / TOP / "benchmark/history.csv")
    assert list(history)[5:] == ["epoch", "split", "metric", "value"]
    found = history.fillna("")[["model", "variant", "strategy", "batch"]].drop_duplicates()
    found = set(found.itertuples(index=False, name=None))
    of_reference = {("scvi", "", "", ""), ("scanvi", "fixed", "", ""), ("scanvi", "linear", "", "")}
    mapped = {("scanvi", v, "per_batch", b) for v in ("fixed", "linear") for b in NAMES.values()}
    assert found == of_reference | mapped | {
        ("scanvi", v, "joint", "all") for v in ("fixed", "linear")
    }


def test_the_atlas_is_whole_and_has_no_counts(done):
    atlas = anndata.read_h5ad(done / TOP / "atlas.h5ad")
    assert (atlas.n_obs == 500 and atlas.X is None) or atlas.n_vars == 0
    assert {"X_latent", "X_umap"} <= set(atlas.obsm)
    assert {"batch", "role", "label", "predicted_label", "confidence"} <= set(atlas.obs)
    assert not atlas.obs["predicted_label"].isna().any()
    query = atlas.obs[atlas.obs["role"] == "query"]
    assert (query["label"] == "Unknown").all() and set(query["batch"]) == set(NAMES.values())
    assert set(query["verdict"]) <= {"confident", "ambiguous", "novel"}
    labels = pd.read_csv(done / TOP / "labels.csv", keep_default_na=False)
    first = ["cell_id", "barcode", "dataset", "batch", "predicted_label", "confidence"]
    assert list(labels)[:6] == first and labels["cell_id"].is_unique
    assert (labels["cell_id"] == labels["dataset"] + ":" + labels["barcode"]).all()
    soft = pd.read_parquet(done / TOP / "seed0/mapping/fixed/per_batch/soft_labels.parquet")
    assert len(labels) == len(query) == len(soft)
    top = done / TOP / "seed0/mapping/fixed/per_batch"
    calibrated = pd.read_parquet(top / "soft_labels_calibrated.parquet")
    for table in (soft, calibrated):
        assert table.drop(columns=first[1:4]).sum(axis=1).between(0.999, 1.001).all()
    trust = pd.read_csv(done / TOP / "benchmark/trust.csv")
    assert set(trust["batch"]) == {*NAMES.values(), "all"}
    assert trust["coverage"].between(0, 1).all() and trust["novel_auroc"].between(0, 1).all()
    shifts = pd.read_csv(done / TOP / "benchmark/shifts.csv")
    assert set(shifts["batch"]) == set(NAMES.values()) and set(shifts["seed"]) == {0}
    assert {"pooled_label", "pooled_confidence", "shifted", "novelty"} <= set(labels)
    learned = json.loads((done / TOP / "seed0/reference/scanvi_fixed/calibration.json").read_text())
    assert learned["batches"] == ["batch0", "batch1", "batch2"]  # all of them, in two folds
    twins = sorted(path.name for path in (done / TOP / "seed0/held_out").iterdir())
    assert twins == ["0", "1"]


def test_the_reference_map_is_the_same_under_every_strategy(done):
    maps = []
    for strategy in ("per_batch", "joint"):
        atlas = anndata.read_h5ad(done / TOP / f"seed0/mapping/fixed/{strategy}/atlas.h5ad")
        reference = atlas[atlas.obs["role"] == "reference"]
        maps.append((reference.obsm["X_umap"], reference.obsm["X_latent"]))
    assert (maps[0][0] == maps[1][0]).all() and (maps[0][1] == maps[1][1]).all()


def test_a_second_run_has_nothing_to_do(done):
    assert "Nothing to be done" in snakemake(done)


def test_nothing_is_left_behind(done):
    left = [p.name for p in (done / TOP).rglob("*") if "partial" in p.name or "failure" in p.name]
    assert left == [] and list((done / TOP).rglob(".checkpoints")) == []


def test_lint_and_report(done, tmp_path):
    assert "good condition" in snakemake(done, "--lint")
    snakemake(done, "--report", str(tmp_path / "report.zip"))
    shutil.unpack_archive(tmp_path / "report.zip", tmp_path / "report")
    pages = "".join(p.read_text(errors="ignore") for p in (tmp_path / "report").rglob("*.*ml"))
    assert "Loss curves" in pages and "UMAP fitted on reference cells" in pages


PARSE = """
import runpy, sys
sys.argv = ["snakemake", *sys.argv[1:], "--cores", "1", "--list-rules"]
try:
    runpy.run_module("snakemake", run_name="__main__")
except SystemExit:
    pass
print("LOADED", *({"torch", "scanpy", "anndata", "numba"} & set(sys.modules)))
"""


def test_the_snakefile_parses_without_heavy_packages(done):
    where = ["-s", str(ROOT / "Snakefile"), "--directory", str(done)]
    command = [sys.executable, "-c", PARSE, *where, "--configfile", str(done / "config.yaml")]
    run = subprocess.run(command, cwd=done, capture_output=True, text=True)
    assert "train_scvi" in run.stdout
    assert run.stdout.splitlines()[-1].strip() == "LOADED", run.stdout[-500:] + run.stderr[-2000:]
