"""Runs on a tiny atlas that are not whole: next month's batch, no truth, no labels, bad input."""

import json
import re
from pathlib import Path

import anndata
import pandas as pd
from tiny import CONFIG, NAMES, SHEET, TOP, VALIDATION, hashes, jobs, new_folder, snakemake, write

from atlasmap.names import slug


def test_next_months_batch_runs_its_own_jobs_alone(tmp_path):
    config = CONFIG | {"variants": ["fixed"]}
    folder = new_folder(tmp_path, config, SHEET[:3])
    targets = [str(TOP / name) for name in ("atlas.h5ad", "labels.csv", "benchmark/history.csv")]
    snakemake(folder, "--", *targets)
    before = hashes(folder)
    write(folder, config, SHEET)
    planned = jobs(snakemake(folder, "-n"))
    assert planned["find_batches"] == 1
    of_reference = {"prepare_reference", "train_scvi", "train_scanvi", "train_held_out"}
    of_reference |= {"calibrate", "complete_reference"}
    assert not of_reference & set(planned)
    targets.append(str(TOP / "data/batches/b.json"))  # as rule all has it
    text = snakemake(folder, "--", *targets)
    run = re.findall(r"^(?:rule|checkpoint|localrule) (\w+):", text, re.MULTILINE)
    assert run.count("prepare_query") == 1 and run.count("map_per_batch") == 1
    assert not of_reference & set(run)
    after = hashes(folder)
    kept = [n for n in before if "/reference" in n or slug(NAMES["query0"]) in n]
    assert len(kept) > 15 and all(before[n] == after[n] for n in kept)
    assert "Nothing to be done" in snakemake(folder, "--", *targets)


def test_without_truth_it_maps_and_scores_what_it_can(tmp_path):
    sheet = [[*row[:5], "" if k else row[5], row[6]] for k, row in enumerate(SHEET)]
    config = CONFIG | {"variants": ["fixed"], "strategies": ["joint"], "calibration": VALIDATION}
    folder = new_folder(tmp_path, config, sheet)
    tables = [f"benchmark/{name}.csv" for name in ("classification", "scib")]
    tables += ["figures/confusion_query.png", "explorer.html"]
    names = "atlas.h5ad", "labels.csv", "seed0/reference/scanvi_fixed/card.md", *tables
    snakemake(folder, *(str(TOP / name) for name in names))
    verdicts = pd.read_csv(folder / TOP / "labels.csv")["verdict"]
    assert set(verdicts) <= {"confident", "ambiguous", "novel"}
    learned = json.loads(
        (folder / TOP / "seed0/reference/scanvi_fixed/calibration.json").read_text()
    )
    assert learned["scheme"] == "validation cells"
    assert learned["views"][0]["cut_offs"]["by_label"] == {}
    scores = pd.read_csv(folder / TOP / "benchmark/classification.csv", keep_default_na=False)
    assert set(scores["split"]) == {"train", "validation"}
    assert len(pd.read_csv(folder / TOP / "labels.csv")) > 0
    scib = pd.read_csv(folder / TOP / "benchmark/scib.csv").set_index("embedding")
    assert scib.loc["scanvi_fixed_joint", "n"] == 500
    assert 0 < scib.loc["scanvi_fixed_joint", "n_labelled"] < 500


def test_without_labels_it_maps_and_says_what_is_left_out(tmp_path):
    config = CONFIG | {"labels": "none", "strategies": ["per_batch"]}
    config |= {"mapping": {"batches_per_job": 10}}
    sheet = [SHEET[0], *([*row[:4], "", "", row[6]] for row in SHEET[1:])]
    folder = new_folder(tmp_path, config, sheet)
    snakemake(folder)
    markers = list((folder / TOP).glob("seed0/mapping/scvi/per_batch/.mapped/*.json"))
    assert [json.loads(path.read_text()) for path in markers] == [sorted(map(slug, NAMES.values()))]
    # what was packed stays so, whatever the number is now
    assert jobs(snakemake(folder, "-n", "--config", "mapping={batches_per_job: 1}")) == {}
    atlas = anndata.read_h5ad(folder / TOP / "atlas.h5ad")
    assert "X_umap" in atlas.obsm and "predicted_label" not in atlas.obs
    assert not (folder / TOP / "labels.csv").exists()
    scib = pd.read_csv(folder / TOP / "benchmark/scib.csv").set_index("embedding")
    assert scib.loc["scvi_per_batch", "kmeans_nmi"] == "skipped(no labels)"
    assert float(scib.loc["scvi_per_batch", "ilisi_knn"]) >= 0
    contract = json.loads((folder / TOP / "data/contract.json").read_text())
    assert "left out" in contract["reference"]["labels"]
    report = (folder / TOP / "report.html").read_text(encoding="utf-8")
    assert "no labels" in report and "did not move" in report and "scvi, seed 0" in report
    assert "Model card" in report and '"key": "label"' in explorer_of(folder)


def explorer_of(folder: Path) -> str:
    return (folder / TOP / "explorer.html").read_text(encoding="utf-8")


def test_how_much_is_benchmarked_is_asked_for(tmp_path):
    def planned(scope: str) -> dict[str, int]:
        folder = new_folder(tmp_path / scope, CONFIG | {"benchmark": {"scope": scope}})
        return jobs(snakemake(folder, "-n"))

    full, labels, none = map(planned, ("full", "labels", "none"))
    assert full == labels  # the job of scib-metrics is known once data are found
    assert labels.keys() - none.keys() == {"second_opinions"}
    # nor is the query mapped onto scVI, whom opinions alone ask
    assert labels["map_joint"] - none["map_joint"] == 1
    assert sum(none.values()) == sum(full.values()) - 3


def test_a_reference_alone_is_trained_and_scored(tmp_path):
    folder = new_folder(tmp_path, CONFIG | {"variants": ["fixed"]}, SHEET[:2])
    planned = jobs(snakemake(folder, "-n"))
    assert planned["plot_figures"] == 1 and not {"assemble", "map_joint"} & set(planned)
    snakemake(folder, str(TOP / "benchmark/classification.csv"))
    scores = pd.read_csv(folder / TOP / "benchmark/classification.csv", keep_default_na=False)
    assert set(scores["split"]) == {"train", "validation"}
    assert jobs(snakemake(folder, "-n"))["score_embeddings"] == 1


def test_a_bad_config_stops_before_anything_runs(tmp_path):
    folder = new_folder(tmp_path, CONFIG | {"varaints": ["fixed"]})
    assert "did you mean variants?" in snakemake(folder, ok=False)
    assert not (folder / TOP).exists()


def test_braces_in_texts_and_in_the_configs_path_are_no_wildcards(tmp_path):
    folder = new_folder(tmp_path / "{here}", CONFIG | {"unlabeled_category": "{none}"})
    (folder / "atlas.h5ad").rename(tmp_path / "atlas.h5ad")
    write(folder, CONFIG | {"unlabeled_category": "{none}", "data_dir": str(tmp_path)}, SHEET)
    snakemake(folder, "check")
    contract = json.loads((folder / TOP / "data/contract.json").read_text())
    assert contract["configfiles"] == ["config.yaml"]
    assert jobs(snakemake(folder, "-n"))["train_scvi"] == 1
    write(folder, CONFIG | {"data_dir": str(folder)}, SHEET)
    assert "PATH_BRACES" in snakemake(folder, "-n", ok=False)


def test_a_bad_query_stops_before_anything_trains(tmp_path):
    folder = new_folder(tmp_path)
    adata = anndata.read_h5ad(folder / "atlas.h5ad")
    query = (adata.obs["batch"] == NAMES["query0"]).to_numpy()
    adata.X[query] = adata.X[query] * 0.37
    adata.write_h5ad(folder / "atlas.h5ad")
    text = snakemake(folder, ok=False)
    logs = "".join(p.read_text() for p in (folder / TOP / "logs").rglob("*.log"))
    assert "COUNTS_NOT_INTEGER" in logs and "rule train_scvi" not in text
