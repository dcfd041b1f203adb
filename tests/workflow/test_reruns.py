"""What a finished run makes again after a change, and what it leaves alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import pandas as pd
import pytest
from tiny import CONFIG, ROOT, SHEET, TOP, hashes, jobs, snakemake, write

from atlasmap.files import sha256


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
    for name in ("Snakefile", "workflow", "config", "envs", "src", "profiles"):
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
    assert jobs(text) == {} and text.count("forecast: 2.50 h of training and mapping") == 1
    text = snakemake(changed, "-n", "--forcerun", "train_scvi")
    plan.unlink()
    assert re.search(r"\bmem_mb=1234\b", text) and re.search(r"\bruntime=56\b", text)


def test_what_concerns_queries_alone_retrains_nothing(changed):
    write(changed, CONFIG | {"data": {"n_top_genes": None, "min_gene_overlap": 0.7}}, SHEET)
    planned = jobs(snakemake(changed, "-n"))
    assert planned["prepare_query"] == 2
    assert not {"prepare_reference", "find_batches", "train_scvi", "train_scanvi"} & set(planned)


def test_a_final_file_is_remade_with_what_is_made_of_it(changed):
    (changed / TOP / "labels.csv").unlink()
    of_it = {"publish": 1, "write_explorer": 1, "write_report": 1}
    assert jobs(snakemake(changed, "-n")) == of_it


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
    assert planned["assemble_de_novo"] == 2 and planned["gather"] == 1
    assert "--certificates" not in snakemake(changed, "-np")
    write(changed, CONFIG | {"strategies": ["frozen"]}, SHEET)
    text = snakemake(changed, "-np")
    assert text.count("--strategy frozen") > text.count("map-batches") > 0
    assert re.search(r"train-held-out .* --strategy frozen", text)


def test_large_atlases_are_scored_one_embedding_a_job(changed):
    write(changed, CONFIG | {"benchmark": {"split_above": 499}}, SHEET)
    assert jobs(snakemake(changed, "-n"))["score_embeddings"] == 8
    write(changed, CONFIG | {"benchmark": {"split_above": 500}}, SHEET)
    assert "score_embeddings" not in jobs(snakemake(changed, "-n"))  # as it was done


def test_one_variants_setting_retrains_that_variant_alone(changed):
    write(changed, CONFIG | {"scanvi_linear": {"train": {"max_epochs": 5}}}, SHEET)
    planned = jobs(snakemake(changed, "-n"))
    assert planned["train_scanvi"] == 1 and "train_scvi" not in planned
    assert planned["map_joint"] == 1 and planned["map_per_batch"] == 2


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
    assert len(commands) == 16 + 1
    for line in commands[:1] + commands[-1:]:
        snakemake(changed, *[w for w in line.split() if w == "--force" or w.startswith("results/")])
    assert check().stdout.count("missing  ") == 0  # figures are drawn together
    snakemake(changed)
    assert check().returncode == 0


def test_audits_and_the_other_strategies(changed):
    config = CONFIG | {"strategies": ["per_batch", "frozen", "de_novo"], "label_tree": "tree.csv"}
    types = anndata.read_h5ad(changed / "atlas.h5ad").obs["cell_type"].unique()
    tree = "".join(f"{name},{name.split('.')[0]}\n" for name in types)  # L3.1 is of lineage L3
    (changed / "tree.csv").write_text("child,parent\n" + tree)
    write(changed, config, SHEET)
    planned = jobs(snakemake(changed, "-n", "--", "all", "audits"))
    assert planned["plot_figures"] == planned["score_embeddings"] == 1
    labels = (f"seed0/mapping/fixed/{how}/labels.csv" for how in ("frozen", "de_novo"))
    tables = (f"benchmark/{name}.csv" for name in ("classification", "certificates"))
    text = snakemake(changed, "--", "audits", *(str(TOP / name) for name in (*labels, *tables)))
    run = re.findall(r"^(?:rule|checkpoint|localrule) (\w+):", text, re.MULTILINE)
    # no label stands above another: the sheet of labels prepares and trains nothing anew
    assert not {"prepare_reference", "train_scvi", "train_scanvi", "train_held_out"} & set(run)
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
    assert set(own["probabilities"]) == {"raw"} and set(own["batch"]) == {"all"}
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


def test_what_is_deleted_comes_back_with_the_same_bytes(changed):
    """Every table and figure."""
    before = hashes(changed)
    made = [path for path in before if path.split("/")[2] in ("benchmark", "figures")]
    assert len(made) > 30
    for path in made:
        (changed / path).unlink()
    snakemake(changed)
    after = hashes(changed)
    assert [path for path in before if after.get(path) != before[path]] == []


def dropped(folder: Path, keep: str) -> None:
    """Only some cells are left in the file that the whole sheet is of."""
    adata = anndata.read_h5ad(folder / "atlas.h5ad")
    adata[adata.obs.eval(keep).to_numpy()].copy().write_h5ad(folder / "atlas.h5ad")


QUERY = "batch == 'b.2'"
LESS = {
    "a query row": (lambda f: write(f, CONFIG, SHEET[:-1]), "b.2 (100 cells, gone)"),
    "a batch of the file": (lambda f: dropped(f, "batch != 'batch1'"), "batch1 (100 cells, gone)"),
    "cells of the file": (lambda f: dropped(f, f"not ({QUERY} and cell_type == 'L0.0')"), "b.2 ("),
    "cells by a filter": (
        lambda f: write(f, CONFIG, [*SHEET[:-1], [*SHEET[-1][:-1], f"{QUERY} and n > 1"]]), "b.2 ("
    ),
}  # fmt: skip


@pytest.mark.parametrize("less", LESS)
def test_what_loses_cells_is_said_before_anything_is_overwritten(changed, less):
    change, said = LESS[less]
    adata = anndata.read_h5ad(changed / "atlas.h5ad")
    adata.obs["n"] = range(adata.n_obs)
    adata.obs["n"] = adata.obs.groupby("batch", observed=True)["n"].rank()
    adata.write_h5ad(changed / "atlas.h5ad")
    before = hashes(changed)
    change(changed)
    text = snakemake(changed, ok=False)
    assert "CELLS_LOST" in text and said in text and "another name" in text
    assert hashes(changed) == before
    (changed / TOP / "data/contract.json").unlink()  # as the message says
    snakemake(changed, "check")


def test_two_configs_of_one_atlas(changed):
    other = changed / "other.yaml"
    shutil.copy(changed / "config.yaml", other)
    before = hashes(changed)
    text = snakemake(changed, ok=False, config=other)
    assert "ATLAS_TAKEN" in text and "made by config.yaml" in text and hashes(changed) == before
    assert "Nothing to be done" in snakemake(changed)
    (changed / "config.yaml").unlink()  # renamed: no second config
    assert "Nothing to be done" in snakemake(changed, config=other)
