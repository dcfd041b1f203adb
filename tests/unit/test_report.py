"""The report of an atlas: what it says in words, what it points at, and the page in a browser."""

import json
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from browser import opened

from atlasmap.data.contract import left_out
from atlasmap.files import sha256, written_aside
from atlasmap.report.atlas import (
    by_batch,
    figures_of,
    provenance,
    report_page,
    said_in_short,
    tables_of,
)
from atlasmap.report.attention import BATCHES, notices
from atlasmap.report.found import Final, Found
from atlasmap.report.summary import checked_data

FINAL = {"seed": 0, "variant": "fixed", "strategy": "per_batch"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><rect width="300" height="200" fill="{}"/></svg>'  # noqa: E501


def fitness(**changed) -> dict:
    return FINAL | {
        "batch": "a", "n": 100, "reference": "fits", "strangeness": 0.1, "confident": 0.8,
        "ambiguous": 0.15, "novel": 0.05, "shifted": 0.0, "set_size": 1.2,
        "calibrated_confidence": 0.9,
    } | changed  # fmt: skip


def moved(**changed) -> dict:
    return FINAL | {
        "mapping": "a", "n_cells": 100, "n_golden_cells": 64, "n_probe_cells": 200,
        "reference_unchanged": True,
        "displacement_median_in_posterior_sd": 0.5, "n_steps": 400,
    } | changed  # fmt: skip


def trust(**changed) -> dict:
    """100 cells, of which 40 confident and 40 ambiguous."""
    return FINAL | {
        "batch": "a", "level": "label", "n": 100, "confident": 0.4, "ambiguous": 0.4,
        "coverage_ambiguous": 0.9, "accuracy_confident": 0.97,
    } | changed  # fmt: skip


def shift(**changed) -> dict:
    return FINAL | {
        "batch": "a", "label": "B", "n": 100, "n_shifted": 0, "markers_kept": 0.9,
        "top_genes": "ISG15 IFI6",
    } | changed  # fmt: skip


def results(
    folder: Path, tables: dict[str, list[dict]], overlap: float = 1.0, variant: str = "fixed",
    **changed,
) -> Found:  # fmt: skip
    """A result tree with some tables, a figure, a card and an atlas of twenty validation cells;
    `changed` is what the reference learned otherwise of its labels."""
    learned = {"scheme": BATCHES, "coverage": 0.9, "risk": 0.05, "false_novel": 0.05,
               "batch_fit": {"typical": 1, "missing": 2}} | changed  # fmt: skip
    for name in ("data", "benchmark", "figures", "logs", f"seed0/reference/scanvi_{variant}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    query = {"n_cells": 100, "gene_overlap": overlap}
    contract = {
        "configfiles": ["my.yaml"],
        "reference": {"n_cells": 1234, "n_genes": 50, "labels": {"B": 600, "T": 634},
                      "batches": {"r1": 600, "r2": 634}},
        "queries": {"a": query, "b <i>": query},
    }  # fmt: skip
    (folder / "data/contract.json").write_text(json.dumps(contract))
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / f"benchmark/{name}.csv", index=False)
    (folder / "figures/embeddings.svg").write_text(SVG.format("#0072b2"))
    reference = folder / f"seed0/reference/scanvi_{variant}"
    (reference / "card.md").write_text("---\nlicense: x\n---\n# The card\n\n| a | b |\n|---|---|\n")
    (reference / "settings.json").write_text(json.dumps({"versions": {"torch": "2"}}))
    (reference / "calibration.json").write_text(json.dumps(learned))
    log = "10:00:00 atlasmap train-scvi x --out y\n10:00:01 device: cuda (A GPU), 1 threads\n"
    (folder / "logs/train_scvi.log").write_text(log)
    (folder / "logs/train_scvi.tsv").write_text("s\tmax_rss\n12.5\t800\n")
    obs = pd.DataFrame(
        {"role": "reference", "split": "validation", "label": ["B"] * 20 + ["T"] * 20,
         "predicted_label": ["B"] * 40, "calibrated_confidence": 0.9},
        index=[f"c{k}" for k in range(40)],
    )  # fmt: skip
    anndata.AnnData(obs=obs).write_h5ad(folder / "atlas.h5ad")
    config = {"atlas": "my", "seeds": [0, 1]}
    return Found(folder, Final(0, variant, "per_batch"), config)


def told(found: Found) -> dict[str, str]:
    return {notice.where: notice.why for notice in notices(found)}


def test_what_is_well_is_not_pointed_at(tmp_path):
    found = results(tmp_path, {"fitness": [fitness()], "certificates": [moved()]})
    anndata.AnnData(obs=found.obs[["role"]]).write_h5ad(tmp_path / "atlas.h5ad")
    assert notices(Found(tmp_path, found.final)) == []


@pytest.mark.parametrize(
    ("tables", "where", "why"),
    [
        ({"fitness": [fitness(reference="does not fit", strangeness=1.4)]}, "batch a", "does not"),
        ({"fitness": [fitness(novel=0.3)]}, "batch a", "30% of its cells are called novel"),
        ({"fitness": [fitness(novel=0.12, n=300)]}, "batch a", "where 5% would be by chance"),
        ({"fitness": [fitness(ambiguous=0.5)]}, "batch a", "50% of its cells could have several"),
        ({"certificates": [moved(displacement_median_in_posterior_sd=0.01)]}, "mapping a", "400"),
        ({"trust": [trust(coverage_ambiguous=0.7)]}, "batch a", "known label in 70% of its amb"),
        ({"trust": [trust(accuracy_confident=0.8)]}, "batch a", "80% of its confident cells"),
        ({"shifts": [shift(n_shifted=40)]}, "batch a, label B", "40 of 100 cells keep"),
        ({"shifts": [shift(n_shifted=40)]}, "batch a, label B", "ISG15 IFI6"),
        ({"classification": [FINAL | {"strategy": "", "split": "validation", "method": "classifier",
                                      "probabilities": "raw", "level": "label", "batch": "all",
                                      "n": 51, "accuracy": 0.69, "macro_f1": 0.5}]},
         "classifier fixed", "of 51 validation cells"),
        ({"gene_gap": [{"batch": "a", "label": "all", "loss": 0.1}]}, "batch a", "0.100"),
    ],
)  # fmt: skip
def test_what_needs_a_humans_eye_is_named_with_its_reason(tmp_path, tables, where, why):
    assert why in told(results(tmp_path, tables))[where]


def test_few_cells_and_kept_promises_are_not_pointed_at(tmp_path):
    few = [trust(ambiguous=0.1, coverage_ambiguous=0.5, confident=0.1, accuracy_confident=0.5)]
    tables = {"trust": [*few, trust(batch="b")], "shifts": [shift(n_shifted=15), shift()]}
    found = results(tmp_path, tables)
    assert [n for n in notices(found) if n.where.startswith("batch")] == []


def test_what_was_not_learned_of_whole_batches_is_said(tmp_path):
    assert "how far to trust" not in told(results(tmp_path, {}))
    said = told(results(tmp_path, {}, scheme="validation cells", batch_fit=None))
    assert "validation cells" in said["how far to trust"]
    assert "does the reference fit" not in said
    said = told(results(tmp_path, {}, batch_fit=None))
    assert "no farther" in said["does the reference fit"]


def test_what_of_the_data_is_left_out_is_said_wherever_people_look(tmp_path):
    found = results(tmp_path, {})
    facts = {
        "n_unlabelled": 105, "rare_labels_unlabelled": {"HSC": 1, "MK": 4},
        "n_genes_of_datasets": {"a": 765, "b": 700}, "n_genes_shared": 690,
        "unreadable": {"a: obs/x": "it is broken"},
    }  # fmt: skip
    found.contract["reference"] |= facts
    found.contract["queries"]["a"] = found.contract["queries"]["a"] | {
        "genes_spelled_otherwise": {"HLA-DRA": "HLA.DRA"},
        "gene_families_missing": {"HLA": {"of": 5, "missing": ["HLA-DRA"]}},
    }
    lines = [
        "100 reference cells (8.1%) have no label",
        "labels of too few cells to be learned, which no query cell can be called: HSC (1 cell), "
        "MK (4 cells); data.min_cells_per_label",
        "genes: a 765, b 700; shared by all 690",
        "left out of a: obs/x, as it cannot be read: it is broken",
        "query batch a: 1 genes are missing by their spelling alone: HLA-DRA is HLA.DRA there",
        "query batch a: lacks 1 of 5 HLA genes: HLA-DRA",
    ]
    assert left_out(found.contract) == lines
    assert [notice.why for notice in notices(found) if notice.where == "data"] == lines
    assert all(line in checked_data(found.contract) for line in lines)
    found.contract["reference"]["batches"] = {"r1": 1234}
    assert any("one batch: random parts of it" in line for line in left_out(found.contract))


def test_novel_cells_are_pointed_at_with_the_labels_they_are_under(tmp_path):
    found = results(tmp_path, {"fitness": [fitness(novel=0.3), fitness(novel=0.07, batch="b <i>")]})
    kinds = ["confident"] * 50 + ["novel"] * 30 + ["ambiguous"] * 20
    labels = ["B"] * 70 + ["T"] * 30
    obs = pd.DataFrame(
        {"role": "query", "batch": "a", "verdict": kinds, "predicted_label": labels},
        index=[f"c{k}" for k in range(100)],
    )  # fmt: skip
    anndata.AnnData(obs=obs).write_h5ad(tmp_path / "atlas.h5ad")
    calibration = tmp_path / "seed0/reference/scanvi_fixed/calibration.json"
    calibration.write_text(json.dumps({"false_novel": 0.1, "scheme": BATCHES}))
    said = told(Found(tmp_path, found.final))
    assert (
        "(20 of 70 called B, 10 of 30 called T)" in said["batch a"]
        and "10% would" in said["batch a"]
    )
    assert "batch b <i>" not in said
    (verdicts, *_) = tables_of(Found(tmp_path, found.final))
    assert [text for text, _ in verdicts.rows[0]] == ["B", "70", "50", "0", "20"]


def test_without_truth_no_empty_figure_is_shown(tmp_path):
    found = results(tmp_path, {})
    (tmp_path / "figures/confusion_query.svg").write_text(SVG.format("#000000"))
    assert [figure.title for figure in figures_of(found, None)] == ["The map"]
    row = FINAL | {"split": "query", "batch": "all"}
    known = figures_of(results(tmp_path, {"classification": [row]}), None)
    assert "Predicted against known labels, query" in [figure.title for figure in known]


def test_other_mappings_than_the_final_one_are_not_pointed_at(tmp_path):
    other = fitness(novel=0.9, variant="linear")
    assert "batch a" not in told(results(tmp_path, {"fitness": [fitness(), other]}))


def test_missing_genes_and_the_prefix_classifier_are(tmp_path):
    said = told(results(tmp_path, {}, overlap=0.5, variant="prefix"))
    assert "50.0%" in said["batch a"] and "classifier prefix" in said


def test_the_run_is_told_in_numbers_that_are_those_of_its_files(tmp_path):
    row = FINAL | {
        "batch": "all", "split": "query", "method": "classifier", "level": "label",
        "probabilities": "raw", "n": 181, "accuracy": 0.812, "macro_f1": 0.667,
    }  # fmt: skip
    found = results(
        tmp_path,
        {"classification": [row, row | {"variant": "linear", "accuracy": 0.1}],
         "fitness": [fitness(), fitness(batch="b <i>", n=300, confident=0.4)],
         "certificates": [moved(), moved(mapping="b <i>")]},
    )  # fmt: skip
    text = " ".join(said_in_short(found))
    assert "1,234 cells of 2 batches, 50 genes, 2 labels" in text
    assert "200 query cells of 2 batches" in text and "81.2%" in text and "10.0%" not in text
    assert "200 are confident, 60 ambiguous and 20 novel" in text
    assert "after each of 2 mappings" in text and "were not run" in text
    table = by_batch(found)
    assert list(table["confident"]) == [80, 120]
    assert list(table["reference fits"]) == ["yes", "yes"]
    np.testing.assert_allclose(table["moved, posterior s.d."].astype(float), 0.5)


def test_a_run_without_labels_or_queries_has_a_report_too(tmp_path):
    found = results(tmp_path, {})
    contract = json.loads((tmp_path / "data/contract.json").read_text())
    contract["queries"], contract["reference"]["labels"] = {}, "none: labels was set to none"
    (tmp_path / "data/contract.json").write_text(json.dumps(contract))
    (tmp_path / "atlas.h5ad").unlink()
    page = report_page(Found(tmp_path, found.final), None)
    assert "1,234 cells" in page and "no labels" in page and "mapped onto" not in page


def test_what_moved_the_reference_or_kept_none_is_not_certified(tmp_path):
    found = results(tmp_path, {"certificates": [moved(reference_unchanged=False)]})
    assert "did not move" not in " ".join(said_in_short(found))
    anew = Found(tmp_path, Final(0, "fixed", "de_novo"))
    text = " ".join(said_in_short(anew))
    assert "trained together" in text and "did not move" not in text and "No verdicts" in text


def test_audits_are_quoted_where_they_were_run(tmp_path):
    found = results(tmp_path, {})
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/strategies.json").write_text(json.dumps({"recommendation": "Take joint."}))
    assert "Take joint." in said_in_short(found)


def test_provenance_has_seeds_checksums_versions_and_gpu_hours(tmp_path):
    found = results(tmp_path, {})
    with written_aside(tmp_path / found.of_query("b <i>")) as aside:
        aside.write_text("cells")
    rows = provenance(found).set_index("what")["value"]
    assert rows["seeds"] == "0, 1" and rows["version of torch"] == version("torch")
    assert rows["SHA-256, query b <i>"] == sha256(tmp_path / found.of_query("b <i>"))
    assert rows["GPU-hours of all jobs"] == "0.00" and len(rows["SHA-256 of the config"]) == 64
    stage = found.stages.iloc[0]
    assert stage["stage"] == "train-scvi" and stage["gpu_hours"] == 12.5 / 3600


@pytest.fixture
def page_file(tmp_path) -> Path:
    rows = [fitness(batch=name, n=n) for name, n in [("a", 9), ("b <i>", 300)]]
    many = [FINAL | {"embedding": f"e{k}", "total": k / 3 if k else None} for k in range(30)]
    found = results(
        tmp_path / "my <atlas>", {"fitness": rows, "scib": many, "certificates": [moved()]}
    )
    captions = tmp_path / "captions"
    captions.mkdir()
    (captions / "embeddings.rst").write_text("UMAP of ``{{ snakemake.wildcards.atlas }}``.\n")
    file = tmp_path / "report.html"
    file.write_text(report_page(found, captions), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_sorts_and_filters_without_a_network(page_file, width):
    with opened(page_file, width) as (page, _):
        page.wait_for_function("document.body.dataset.ready === 'yes'")
        assert page.inner_text("h1") == "my <atlas>"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('figure img').naturalWidth") == 300
        assert "UMAP of my" in page.inner_text("figcaption")
        page.click("summary:has-text('scib-metrics')")
        rows = page.locator("#table-scib tbody tr")
        assert rows.count() == 30
        page.fill("details:has(#table-scib) input[type=search]", "e17")
        assert rows.count() == 1
        page.fill("details:has(#table-scib) input[type=search]", "")
        for place, name in ((1, "e1\t"), (0, "e29\t")):  # up, none first; then down
            page.click("#table-scib th:has-text('total')")
            page.wait_for_timeout(500)
            assert name in rows.nth(place).inner_text()


def test_the_page_prints_with_all_that_is_folded(page_file, tmp_path):
    with opened(page_file) as (page, _):
        page.pdf(path=tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").stat().st_size > 20_000
        assert page.locator("details:not([open])").count() > 0  # folded again
