"""The whole workflow on a tiny atlas: run, rerun, remake, what is left out."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import requests
from browser import opened
from tiny import CONFIG, NAMES, ROOT, SHEET, TOP, hashes, jobs, new_folder, snakemake, write

from atlasmap.files import sha256, slug


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run; tests leave it as they found it."""
    folder = new_folder(tmp_path_factory.mktemp("run") / "work")
    folder.joinpath("output.txt").write_text(snakemake(folder))
    return folder


@pytest.fixture
def changed(done, tmp_path):
    """The finished run, whose config, sheet and results may be changed."""
    kept = shutil.copytree(done, tmp_path / "kept")
    yield done
    shutil.rmtree(done)
    kept.rename(done)


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
                       "scib_table", "reliability", "risk_coverage")),
    ]  # fmt: skip
    for model in ("scvi", "scanvi_fixed", "scanvi_linear"):
        for name in ("settings.json", "registry.json", "weights.safetensors", "golden.npz"):
            promised.append(f"seed0/reference/{model}/{name}")
    promised += [f"seed0/reference/scanvi_{v}/calibration.json" for v in ("fixed", "linear")]
    for variant in ("fixed", "linear"):
        for strategy, folders in [("joint", ["all"]), ("per_batch", map(slug, NAMES.values()))]:
            top = f"seed0/mapping/{variant}/{strategy}"
            tables = ("labels.csv", "soft_labels.parquet", "soft_labels_calibrated.parquet")
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
        assert page.locator("figure img").count() == 7
        stages = page.inner_html("#table-stages")
        assert "train-scvi" in stages and "operate" in stages


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
    assert all(isinstance(value, np.ndarray) for value in atlas.uns.values())
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
    assert set(calibrated["split"]) == {"train", "validation", "query"}
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
    assert list(history) == ["seed", "model", "epoch", "split", "metric", "value"]
    assert {"scvi", "scanvi_fixed", "mapping/fixed/joint/all"} <= set(history["model"])


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
    assert list(labels)[:4] == ["cell_id", "batch", "predicted_label", "confidence"]
    soft = pd.read_parquet(done / TOP / "seed0/mapping/fixed/per_batch/soft_labels.parquet")
    assert len(labels) == len(query) == len(soft)
    top = done / TOP / "seed0/mapping/fixed/per_batch"
    calibrated = pd.read_parquet(top / "soft_labels_calibrated.parquet")
    for table in (soft, calibrated):
        assert table.drop(columns="batch").sum(axis=1).between(0.999, 1.001).all()
    trust = pd.read_csv(done / TOP / "benchmark/trust.csv")
    assert set(trust["batch"]) == {*NAMES.values(), "all"}
    assert trust["coverage"].between(0, 1).all() and trust["novel_auroc"].between(0, 1).all()


def test_the_reference_map_is_the_same_under_every_strategy(done):
    maps = []
    for strategy in ("per_batch", "joint"):
        atlas = anndata.read_h5ad(done / TOP / f"seed0/mapping/fixed/{strategy}/atlas.h5ad")
        reference = atlas[atlas.obs["role"] == "reference"]
        maps.append((reference.obsm["X_umap"], reference.obsm["X_latent"]))
    assert (maps[0][0] == maps[1][0]).all() and (maps[0][1] == maps[1][1]).all()


def test_a_second_run_has_nothing_to_do(done):
    assert "Nothing to be done" in snakemake(done)


@pytest.mark.parametrize(
    "change",
    [
        ["--config", "device=any"],
        ["--set-threads", "train_scvi=2"],
        ["--set-resources", "train_scvi:mem_mb=9000"],
        ["--config", "mapping={batches_per_job: 10}"],
        ["--config", "checkpoint_minutes=1"],
        ["--config", "data={memory_gb: 50}"],
        ["--retries", "3"],
    ],
    ids="_".join,
)
def test_where_and_how_jobs_run_triggers_nothing(changed, change):
    assert jobs(snakemake(changed, "-n", *change)) == {}


def test_where_logs_are_triggers_nothing(changed, tmp_path):
    for name in ("Snakefile", "workflow", "config", "envs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    rules = [p for p in (tmp_path / "workflow/rules").iterdir() if "/logs/" in p.read_text()]
    for path in rules:
        path.write_text(path.read_text().replace("/logs/", "/elsewhere/"))
    assert len(rules) > 4
    assert jobs(snakemake(changed, "-n", "-s", str(tmp_path / "Snakefile"))) == {}


def test_a_forecast_is_what_jobs_ask_for_and_triggers_nothing(changed):
    assert "forecast: none; snakemake check" in snakemake(changed, "-n")
    told = {"train_scvi": {"mem_mb": 1234, "runtime": 56}}
    said = {"resources": told, "hours": 2.5, "gpu_hours": 1.25, "device": "cpu"}
    plan = changed / TOP / "forecast.json"
    plan.write_text(json.dumps(said))
    text = snakemake(changed, "-n")
    assert jobs(text) == {} and text.count("forecast: 2.50 h of jobs, 1.25 h of them") == 1
    text = snakemake(changed, "-n", "--forcerun", "train_scvi")
    plan.unlink()
    assert re.search(r"\bmem_mb=1234\b", text) and re.search(r"\bruntime=56\b", text)


def test_nothing_is_left_behind(done):
    left = [p.name for p in (done / TOP).rglob("*") if "partial" in p.name or "failure" in p.name]
    assert left == [] and list((done / TOP).rglob(".checkpoints")) == []


def test_what_concerns_queries_alone_retrains_nothing(changed):
    write(changed, CONFIG | {"data": {"n_top_genes": None, "min_gene_overlap": 0.7}}, SHEET)
    planned = jobs(snakemake(changed, "-n"))
    assert planned["prepare_query"] == 2
    assert not {"prepare_reference", "find_batches", "train_scvi", "train_scanvi"} & set(planned)


def test_a_final_file_is_remade_alone(changed):
    (changed / TOP / "labels.csv").unlink()
    assert jobs(snakemake(changed, "-n")) == {"publish": 1, "write_report": 1}


def test_an_intermediate_that_is_named_is_remade(changed):
    weights = TOP / "seed0/reference/scanvi_linear/weights.safetensors"
    before = sha256(changed / weights)
    (changed / weights).unlink()
    assert jobs(snakemake(changed, "-n", str(weights))) == {"train_scanvi": 1}
    snakemake(changed, str(weights))
    assert sha256(changed / weights) == before


def test_de_novo_alone_certifies_nothing_and_frozen_alone_is_calibrated_frozen(changed):
    write(changed, CONFIG | {"strategies": ["de_novo"]}, SHEET)
    planned = jobs(snakemake(changed, "-n"))
    assert planned["assemble_de_novo"] == 2 and "gather_certificates" not in planned
    write(changed, CONFIG | {"strategies": ["frozen"]}, SHEET)
    text = snakemake(changed, "-np")
    assert text.count("--strategy frozen") > text.count("operate") > 0
    assert re.search(r"map-held-out .* --strategy frozen", text)


def test_large_atlases_are_scored_one_embedding_a_job(changed):
    write(changed, CONFIG | {"benchmark": {"split_above": 499}}, SHEET)
    assert jobs(snakemake(changed, "-n"))["score_embeddings"] == 8
    write(changed, CONFIG | {"benchmark": {"split_above": 500}}, SHEET)
    assert jobs(snakemake(changed, "-n"))["score_embeddings"] == 1


def test_one_variants_setting_retrains_that_variant_alone(changed):
    write(changed, CONFIG | {"scanvi_linear": {"train": {"max_epochs": 5}}}, SHEET)
    planned = jobs(snakemake(changed, "-n"))
    assert planned["train_scanvi"] == 1 and "train_scvi" not in planned
    assert planned["map_joint"] == 1 and planned["map_per_batch"] == 2


def test_a_trained_reference_is_mapped_onto(done, tmp_path):
    bundle = done / TOP / "seed0/reference/scanvi_fixed"
    idle = ("scvi", "scanvi", "variants")
    config = {key: value for key, value in CONFIG.items() if key not in idle}
    config |= {"reference": {"bundle": str(bundle)}}
    folder = new_folder(tmp_path, config, [SHEET[0], *SHEET[2:]])
    text = snakemake(folder)
    run = set(re.findall(r"^(?:rule|checkpoint|localrule) (\w+):", text, re.MULTILINE))
    assert {"take_reference", "map_per_batch", "map_joint", "publish"} <= run
    assert not {"train_scvi", "train_scanvi", "prepare_reference", "score_embeddings"} & run
    for strategy in ("per_batch", "joint"):
        for name in ("labels.csv", "soft_labels.parquet", "soft_labels_calibrated.parquet"):
            part = TOP / f"seed0/mapping/fixed/{strategy}/{name}"
            assert sha256(folder / part) == sha256(done / part), part
    contract = json.loads((folder / TOP / "data/contract.json").read_text())["reference"]
    assert "scib-metrics" in contract["left_out"] and contract["classifier"] == "fixed"
    assert jobs(snakemake(folder, "-n")) == {}
    # what scvi-tools saved, and seeds that vary the mapping alone
    tool = str(Path(sys.executable).parent / "atlasmap")
    out = folder / "saved"
    subprocess.run([tool, "export-scvi", str(bundle), "--out", str(out)], check=True)
    more = {"atlas": "other", "reference": {"scvi_tools": "saved"}, "variants": ["fixed"]}
    write(folder, config | more | {"seeds": [0, 1], "strategies": ["joint"]}, [SHEET[0], SHEET[2]])
    snakemake(folder)
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
        ({"labels": "none"}, "CONFIG_REFERENCE"),
        ({"scvi": {"n_latent": 7}}, "CONFIG_REFERENCE"),
        ({"reference": {"bundle": "no"}}, "BUNDLE_MISSING"),
        ({"reference": {"bundle": "a", "scvi_tools": "b"}}, "CONFIG_REFERENCE"),
        ({"reference": {"scvi_tools": "b"}}, "CONFIG_REFERENCE"),
        ({"unlabeled_category": "none"}, "REFERENCE_DIFFERS"),
        ({"categorical_covariates": ["cell_type"]}, "REFERENCE_DIFFERS"),
        ({"label_levels": ["fine"]}, "REFERENCE_DIFFERS"),
        (
            {"reference": {"scvi_tools": "http://x/model.pt"}, "variants": ["fixed"]},
            "CONFIG_REFERENCE",
        ),
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
    """In less memory than libraries take: the same data, shuffled by blocks, to the end."""
    small = {"data": {"n_top_genes": None, "memory_gb": 0.1}, "variants": ["fixed"]}
    folder = new_folder(tmp_path / "work", CONFIG | small | {"strategies": ["joint"]})
    snakemake(folder)
    for facts in ("reference.json", "contract.json"):
        one, other = (
            json.loads((top / TOP / "data" / facts).read_text()) for top in (done, folder)
        )
        assert one.pop("configfiles", 0) != other.pop("configfiles", 1) and one == other
    seed = folder / TOP / "seed0"
    for trained in ("reference/scanvi_fixed", "held_out/scanvi_fixed", "mapping/fixed/joint/all"):
        assert json.loads((seed / trained / "settings.json").read_text())["training"]["streamed"]
    assert not list(folder.rglob(".joined*"))


def test_two_runs_are_bit_identical(done, tmp_path):
    again = new_folder(tmp_path / "again")
    snakemake(again)
    first, second = hashes(done), hashes(again)
    first.pop(str(TOP / "data/contract.json"))  # names the config file
    second.pop(str(TOP / "data/contract.json"))
    assert [n for n in first if first[n] != second.get(n)] == [] and first.keys() == second.keys()


def test_mapping_without_snakemake_gives_the_same_labels(done, tmp_path):
    reference = done / TOP / "seed0/reference/scanvi_fixed"
    command = [
        str(Path(sys.executable).parent / "atlasmap"), "map", "--reference", str(reference),
        "--query", str(done / "atlas.h5ad"), "--out", str(tmp_path), "--batch_key", "batch",
        "--obs_filter", "role == 'query'", "--surgery.max_epochs", "3", "--device", "cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = (
        pd.read_csv(path, index_col="cell_id").sort_index()
        for path in (tmp_path / "labels.csv", done / TOP / "labels.csv")
    )
    assert ours.equals(theirs)
    maps = [anndata.read_h5ad(f / "atlas.h5ad").obsm["X_umap"] for f in (tmp_path, done / TOP)]
    assert (maps[0] == maps[1]).all()


def test_check_results_names_what_is_missing_or_altered(changed):
    command = [str(Path(sys.executable).parent / "atlasmap"), "check-results", str(TOP)]

    def check():
        return subprocess.run(command, cwd=changed, capture_output=True, text=True)

    assert check().returncode == 0 and " 0 missing or altered" in check().stdout
    shutil.rmtree(changed / TOP / "figures")
    table = changed / TOP / "benchmark/scib.csv"
    table.write_text(table.read_text().replace("0.", "1.", 1))
    run = check()
    assert run.returncode == 1
    assert "missing  results/tiny/figures/embeddings.png" in run.stdout
    assert "altered  results/tiny/benchmark/scib.csv" in run.stdout
    commands = re.findall(r"^ +snakemake (.*)$", run.stdout, re.MULTILINE)
    assert len(commands) == 14 + 1
    for line in commands[:1] + commands[-1:]:
        snakemake(changed, *[w for w in line.split() if w == "--force" or w.startswith("results/")])
    assert check().stdout.count("missing  ") == 12
    snakemake(changed)
    assert check().returncode == 0


def test_audits_and_the_other_strategies(changed):
    config = CONFIG | {"strategies": ["per_batch", "frozen", "de_novo"], "label_tree": "tree.csv"}
    types = anndata.read_h5ad(changed / "atlas.h5ad").obs["cell_type"].unique()
    tree = "".join(f"{name},{name.split('.')[0]}\n" for name in types)  # L3.1 is of lineage L3
    (changed / "tree.csv").write_text("child,parent\n" + tree)
    write(changed, config, SHEET)
    text = snakemake(changed, "--", "all", "audits")
    run = re.findall(r"^(?:rule|checkpoint|localrule) (\w+):", text, re.MULTILINE)
    assert not {"train_scvi", "train_scanvi", "calibrate"} & set(run)
    assert run.count("train_de_novo_scvi") == 3  # all, and each batch for the audit
    for strategy in ("frozen", "de_novo"):
        labels = pd.read_csv(changed / TOP / f"seed0/mapping/fixed/{strategy}/labels.csv")
        assert (
            len(labels) == (anndata.read_h5ad(changed / "atlas.h5ad").obs["role"] == "query").sum()
        )
    scores = pd.read_csv(changed / TOP / "benchmark/classification.csv", keep_default_na=False)
    everyone = scores[(scores["batch"] == "all") & (scores["split"] == "query")]
    by_level = everyone[everyone["method"] == "classifier"].groupby("level")["accuracy"].min()
    assert set(by_level.index) == {"label", "level0"} and by_level["level0"] >= by_level["label"]
    own = scores[(scores["split"] == "validation") & (scores["level"] == "level0")]
    assert set(own["probabilities"]) == {"raw", "calibrated"} and set(own["batch"]) == {"all"}
    contract = json.loads((changed / TOP / "data/contract.json").read_text())
    assert contract["reference"]["label_tree"]["levels"] == {"level0": 2}
    certificates = pd.read_csv(changed / TOP / "benchmark/certificates.csv")
    assert certificates["reference_unchanged"].all()
    frozen = certificates[certificates["strategy"] == "frozen"]
    assert len(frozen) == 4 and (frozen["displacement_max"] == 0).all()
    assert (certificates["n_probe_cells"] > 100).all()
    audit = pd.read_csv(changed / TOP / "audit/strategies.csv").set_index(["comparison", "batch"])
    assert audit.loc[("matched", "all"), "latent_max"] < 1e-5
    table = pd.read_csv(changed / TOP / "audit/reference.csv", keep_default_na=False)
    everyone = table[(table["label"] == "all") & (table["split"] == "validation")]
    of_surgery = everyone[everyone["training"] == "surgery"]["accuracy"]
    own = everyone[everyone["training"] == "reference"]["accuracy"].iloc[0]
    assert len(of_surgery) == 2 and (of_surgery == own).all()
    assert set(everyone["training"]) == {"reference", "surgery", "de_novo"}


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
