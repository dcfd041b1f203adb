"""Pages of the report: what numbers look like, and that names are text, never markup."""

import json

import numpy as np
import pandas as pd
import pytest

from atlasmap.commands.results import gather
from atlasmap.report.audits import MOST_LABELS, reference_page, strategies_page
from atlasmap.report.pages import as_html, number, table

NASTY = "<script>a|b*c*`d`[e](f)"


@pytest.mark.parametrize(
    "value, said",
    [(0, "0.00"), (1, "1.00"), (0.5, "0.50"), (0.0314, "0.031"), (-2e-5, "-2.0e-05"),
     (np.nan, "–"), (1234.5, "1234.50")],
)  # fmt: skip
def test_numbers_show_two_digits_that_count(value, said):
    assert number(value) == said


def test_names_are_text():
    frame = pd.DataFrame({"batch": [NASTY, "plain"], "n": [1.0, 2.0], "share": [0.5, 1.0]})
    page = as_html(table(frame, {"n": "cells"}))
    assert "<script>" not in page and "<em>" not in page and "<code>" not in page
    assert "&lt;script&gt;a|b*c*`d`[e](f)" in page and page.count("<td") == 6
    assert "<script>" not in as_html("<script>alert(1)</script>")
    assert ">1<" in page and ">0.50<" in page


def test_certificates_have_a_page(tmp_path):
    said = {
        "seed": 0, "strategy": "per_batch",
        "reference": {"unchanged": True, "n_golden_cells": 8, "n_probe_cells": 100},
        "query": {"n_cells": 50, "displacement": {"median": 0.123}},
        "training": {"n_epochs": 3, "n_steps": 7, "n_trainable": 64, "stopped": "max_epochs"},
    }  # fmt: skip
    paths = []
    for batch in ("a", "b"):
        folder = tmp_path / "mapping/fixed/per_batch" / batch
        folder.mkdir(parents=True)
        paths.append(folder / "certificate.json")
        paths[-1].write_text(json.dumps(said))
        about = {"kind": "delta", "seed": 0, "variant": "fixed", "strategy": "per_batch"}
        (folder / "settings.json").write_text(json.dumps(about))
    history = tmp_path / "scvi/history.csv"
    history.parent.mkdir()
    history.write_text("epoch,split,metric,value\n0,train,loss,1\n")
    (history.parent / "settings.json").write_text('{"kind": "scvi", "seed": 0}')
    gather(history, certificates=paths, out=tmp_path)
    page = (tmp_path / "certificates.html").read_text()
    assert "Of 2 mappings none moved" in page and "100 of its cells" in page and ">0.12<" in page
    table = pd.read_csv(tmp_path / "certificates.csv")
    assert list(table["mapping"]) == ["a", "b"] and set(table["variant"]) == {"fixed"}


def test_a_page_of_many_labels_shows_those_that_change_most():
    keys = {"n": 9, "latent_median": 0.1, "latent_max": 0.2, "median_in_posterior_sd": 0.1}
    by_batch = pd.DataFrame(
        [{"comparison": "joint", "batch": batch, "flips": 0.5} | keys for batch in ("all", "b1")]
    )
    by_label = pd.DataFrame(
        [{"comparison": "joint", "label": f"T{k}.", "flips": k / 60} | keys for k in range(60)]
    )
    page = strategies_page(by_batch, by_label, "Use per_batch.")
    shown = [f"T{k}." for k in range(60) if f"T{k}. " in page]
    assert shown == [f"T{k}." for k in range(60 - MOST_LABELS, 60)]
    assert "Use per_batch." in page and "as people run it" in page and "25 of 60" in page


def test_a_page_of_the_reference_shows_labels_that_suffer_most():
    rows = [
        {"query": query, "training": training, "split": "validation", "label": label, "n": 10.0,
         "accuracy": 0.2 if (training, label) == ("de_novo", "B") else 0.9,
         "macro_f1": 0.8, "ece": 0.1}
        for query, training in (("", "reference"), ("q", "surgery"), ("q", "de_novo"))
        for label in ("all", "A", "B")
    ]  # fmt: skip
    facts = {"n_reference": 90, "n_query": 10, "labelled_share": 0.9, "n_samples_per_label": None}
    page = reference_page(pd.DataFrame(rows), {"q": facts, "": facts}, "It does not.")
    lines = [line for line in page.splitlines() if line.startswith(("| A", "| B"))]
    assert [line[2] for line in lines] == ["B", "A"] and "0.20" in lines[0]
    assert "It does not." in page and "| none " in page and "| all " in page
