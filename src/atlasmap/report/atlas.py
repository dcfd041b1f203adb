"""The report of an atlas: one self-contained HTML page, made from result files only."""

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pandas as pd
import yaml

from atlasmap.report.attention import notices
from atlasmap.report.columns import EXPLAINED
from atlasmap.report.found import VERDICTS, Found
from atlasmap.report.pages import number
from atlasmap.vendor import source

HERE = files("atlasmap.report")
PACKAGES = (
    "atlasmap",
    "torch",
    "anndata",
    "scanpy",
    "scib-metrics",
    "numpy",
    "pandas",
    "snakemake",
)
FIGURES = {
    "embeddings": "The map",
    "confusion_query": "Predicted against known labels, query",
    "confusion_validation": "Predicted against known labels, validation cells of the reference",
    "reliability": "Confidence against accuracy",
    "risk_coverage": "Accuracy of the surest cells",
    "shifts": "Labels that moved",
    "protein_ridges": "Proteins, before and after denoising",
    "protein_dots": "Proteins by label",
    "scib_table": "Integration",
    "loss_curves": "Training",
}
CAPTIONS = {"confusion_query": "confusion", "confusion_validation": "confusion",
            "protein_ridges": "proteins", "protein_dots": "proteins"}  # fmt: skip
# Large tables: only rows with this value in this column are shown; the files have all rows.
WHOLE = {"classification": ("batch", "all"), "gene_gap": ("label", "all")}
TABLES = {
    "classification": ("Labels, where they are known",
                       "Scores of the classifier and of other ways to name the same cells."),
    "trust": ("Prediction sets and verdicts, where labels are known",
              "Coverage: share of cells whose prediction set holds the known label; it was asked "
              "of ambiguous ones."),
    "shifts": ("Labels of query batches that moved",
               "Cells that keep the label's markers, yet differ from it more than held-out batches "
               "do, and the genes in which all cells called so differ most."),
    "fitness": ("Does the reference fit?", "Told of each batch without any label of it."),
    "opinions": ("Second opinions", "The same cells named by other classifiers."),
    "gene_gap": ("Genes that a query lacks", "Accuracy on reference cells with and without them."),
    "certificates": ("Certificates of surgery", "How far each mapping moved its cells, and that "
                     "none moved the reference."),
    "scib": ("scib-metrics", "Bio conservation and batch correction of each embedding."),
}  # fmt: skip
VERDICTS_OF = ("Query cells by predicted label and verdict",
               "Where novel cells are many under one label, they may be a type of its kind that "
               "the reference lacks. Each cell: labels.csv.")  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure: title, caption (HTML) and image (data URI)."""

    title: str
    caption: str
    image: str


@dataclass(frozen=True)
class Table:
    """A table: `columns` of (name, whether numeric), `rows` of cells (text, key to sort by)."""

    key: str
    title: str
    text: str
    columns: list[tuple[str, bool]]
    rows: list[list[tuple[str, str]]]


def shown(frame: pd.DataFrame, key: str, title: str, text: str = "") -> Table:
    """Convert a data frame to a sortable table; numbers sort by value, missing values as ""."""
    names = [(str(name).replace("_", " "), frame[name].dtype.kind in "fiu") for name in frame]

    def cell(value, is_number: bool) -> tuple[str, str]:
        if not is_number:
            return ("–" if pd.isna(value) else str(value)), ""
        whole = pd.notna(value) and abs(value) >= 100
        said = f"{value:,.0f}" if whole or isinstance(value, int) else number(value)
        return said, "" if pd.isna(value) else repr(float(value))

    rows = [
        [cell(value, is_number) for value, (_, is_number) in zip(row, names, strict=True)]
        for row in frame.astype(object).itertuples(index=False)
    ]
    return Table(key, title, text, names, rows)


def said_of_labels(found: Found) -> Iterator[str]:
    """Yield sentences on the accuracy of labels and on the verdicts."""
    scores = found.of_final("classification")
    if len(scores):
        kind = (scores["batch"] == "all") & (scores["split"] == "query")
        kind &= (scores["level"] == "label") & (scores["method"] == "classifier")
        for row in scores[kind & (scores["probabilities"] == "raw")].to_dict("records"):
            yield (
                f"Of {row['n']:,.0f} query cells whose label is known {row['accuracy']:.1%} are "
                f"named right (macro-F1 {number(row['macro_f1'])})."
            )
    verdicts = found.of_final("fitness")
    if len(verdicts):
        counts = [round((verdicts[kind] * verdicts["n"]).sum())
                  for kind in VERDICTS]  # fmt: skip
        yield "Of all query cells {:,} are confident, {:,} ambiguous and {:,} novel.".format(
            *counts
        )
    elif found.contract["queries"]:
        yield (
            "No verdicts were given: the reference learned nothing of how far to trust its labels "
            "(it has none, it is trained anew with each query, or calibration is off)."
        )


def said_of_proofs(found: Found) -> Iterator[str]:
    """Yield sentences on the certificates and audits."""
    moved = found.certificates
    if len(moved) and moved["reference_unchanged"].astype(str).eq("True").all():
        yield (
            f"The reference did not move: after each of {len(moved)} mappings its weights, and "
            f"latent and labels of {int(moved['n_golden_cells'].min())} golden cells and "
            f"{int(moved['n_probe_cells'].min())} of its own, are those of before, bit for bit."
        )
    elif found.final.strategy == "de_novo":
        yield "Reference and query were trained together: there is no certificate to give."
    audits = {"strategies": "recommendation", "reference": "answer"}
    said = [found.read(f"audit/{name}.json").get(key, "") for name, key in audits.items()]
    yield from filter(None, said)
    if not any(said):
        yield "Audits (per batch or joint? does the reference change?) were not run."


def said_in_short(found: Found) -> list[str]:
    """Returns a summary of the run, as a list of sentences."""
    contract, final = found.contract, found.final
    reference, queries = contract["reference"], contract["queries"]
    labels, taken = reference.get("labels"), reference.get("taken_over")
    named = f", {len(labels)} labels" if isinstance(labels, dict) else ", no labels"
    batches = len(reference.get("batches", {}))
    out = [
        f"The reference has {reference['n_cells']:,} cells of {batches} batches, "
        f"{reference['n_genes']:,} genes{named}"
        + (", and was trained elsewhere." if taken else ".")
    ]
    if queries:
        n = sum(fact["n_cells"] for fact in queries.values())
        how = "were trained together with it" if final.strategy == "de_novo" else (
            f"were mapped onto it ({final.strategy.replace('_', ' ')})")  # fmt: skip
        final_of = f"{final.variant}, seed {final.seed}"
        out.append(f"{n:,} query cells of {len(queries)} batches {how}: {final_of}.")
    return [*out, *said_of_labels(found), *said_of_proofs(found)]


def by_batch(found: Found) -> pd.DataFrame:
    """Returns one row per query batch: cells, genes, verdicts, fit, and displacement."""
    queries = found.contract["queries"]
    table = pd.DataFrame(
        {"batch": list(queries), "cells": [fact["n_cells"] for fact in queries.values()],
         "genes found": [fact.get("gene_overlap", 1.0) for fact in queries.values()]}
    )  # fmt: skip
    fitness = found.of_final("fitness")
    if len(fitness):
        kinds = list(VERDICTS)
        of_batch = fitness.set_index("batch")
        cells = of_batch[kinds].mul(of_batch["n"], axis=0).round().astype(int)
        fits = of_batch["reference"].replace({"fits": "yes", "does not fit": "no"})
        cells = cells.assign(**{"reference fits": fits, "strangeness": of_batch["strangeness"]})
        table = table.join(cells, on="batch")
    moved = found.certificates
    if len(moved):
        by_mapping = moved.set_index("mapping")["displacement_median_in_posterior_sd"]
        if set(by_mapping.index) >= set(table["batch"]):
            table["moved, posterior s.d."] = table["batch"].map(by_mapping)
    return table


def as_fragment(text: str) -> str:
    """Convert reStructuredText to an HTML fragment."""
    from docutils.core import publish_parts

    how = {"report_level": 5, "raw_enabled": False, "file_insertion_enabled": False}
    return publish_parts(text, writer="html5", settings_overrides=how)["body"]


def figures_of(found: Found, captions: Path | None) -> list[Figure]:
    """Returns the figures that exist, in the order of FIGURES.

    `captions`: a folder of {figure}.rst, or None for empty captions.
    """
    from jinja2 import Environment

    out = []
    for name, title in FIGURES.items():
        path = found.folder / "figures" / f"{name}.svg"
        if not path.is_file() or (name == "confusion_query" and not found.knows_truth):
            continue
        caption = captions / f"{CAPTIONS.get(name, name)}.rst" if captions else None
        text = caption.read_text(encoding="utf-8") if caption and caption.is_file() else ""
        wildcards = {"atlas": found.folder.name, "seed": found.final.seed}
        text = Environment().from_string(text).render(snakemake={"wildcards": wildcards})
        image = base64.b64encode(path.read_bytes()).decode()
        out.append(Figure(title, as_fragment(text), f"data:image/svg+xml;base64,{image}"))
    return out


def tables_of(found: Found) -> list[Table]:
    """Returns the tables that exist: verdicts by label, and those of benchmark/."""
    verdicts = found.verdicts()
    out = [shown(verdicts, "table-verdicts", *VERDICTS_OF)] if len(verdicts) else []
    for name, (title, text) in TABLES.items():
        table = found.table(name)
        if name in WHOLE and WHOLE[name][0] in table:
            column, value = WHOLE[name]
            table = table[table[column] == value]
        if len(table):
            text = f"{text} All rows: benchmark/{name}.csv."
            out.append(shown(table, f"table-{name}", title, text))
    return out


def card_of(found: Found) -> str:
    """Returns the model card as HTML, without its YAML front matter; "" if there is none."""
    from markdown_it import MarkdownIt

    if not found.card:
        return ""
    text = found.card.read_text(encoding="utf-8")
    if text.startswith("---\n"):
        text = text.split("\n---\n", 1)[1]
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def provenance(found: Found) -> pd.DataFrame:
    """Returns a table (what, value) of inputs, checksums, package versions and compute time."""
    about, sums, stages = found.about_model, found.checksums, found.stages
    taken = found.contract["reference"].get("taken_over")
    files = {"reference": "data/reference.h5ad", "weights": f"{found.model}/weights.safetensors",
             "atlas.h5ad": "atlas.h5ad"}  # fmt: skip
    files |= {f"query {batch}": found.of_query(batch) for batch in found.contract["queries"]}
    text = json.dumps(found.config, sort_keys=True)
    rows = {
        **({"reference taken over from": json.dumps(taken)} if taken else {}),
        "seeds": ", ".join(map(str, found.config.get("seeds", [found.final.seed]))),
        "SHA-256 of the config": hashlib.sha256(text.encode()).hexdigest(),
        "fingerprint of the cells the model was trained on": about.get("data", {}).get("sha256"),
        **{f"SHA-256, {what}": sums[name] for what, name in files.items() if name in sums},
        **{f"version of {name}": version(name) for name in PACKAGES},
        "seconds of all jobs": f"{stages['seconds'].sum():,.0f}",
        "GPU-hours of all jobs": f"{stages['gpu_hours'].sum():.2f}",
    }
    said = [(what, value) for what, value in rows.items() if value]
    return pd.DataFrame(said, columns=["what", "value"])


def from_here(path: Path | str) -> str:
    """Returns a path relative to the working directory; outside it, only the file name.

    Reports are shared, so they must not contain absolute paths.
    """
    near = os.path.relpath(path)
    return Path(path).name if near.startswith("..") else near


def commands(found: Found) -> list[str]:
    """Returns the commands that repeat the run and that check the results for alterations."""
    configs = [from_here(path) for path in found.contract.get("configfiles", [])]
    words = ["snakemake", "--cores", "all", *(["--configfile", *configs] if configs else [])]
    return [shlex.join(words), shlex.join(["atlasmap", "check-results", from_here(found.folder)])]


def report_page(found: Found, captions: Path | None) -> str:
    """Returns the report as HTML; `captions`: a folder of {figure}.rst, or None."""
    from jinja2 import Environment

    template, css = (
        HERE.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css")
    )
    batches = by_batch(found)
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        template
    ).render(
        title=found.folder.name, summary=said_in_short(found), notices=notices(found),
        batches=shown(batches, "table-batches", "Query batches") if len(batches) else None,
        figures=figures_of(found, captions), tables=tables_of(found), card=card_of(found),
        provenance=shown(provenance(found), "table-provenance", "What it was made of and with"),
        stages=shown(found.stages, "table-stages", "Seconds, GPU-hours and memory by stage"),
        commands=commands(found),
        config=yaml.safe_dump(found.config, sort_keys=False, allow_unicode=True),
        explained=EXPLAINED, css=source("tables.css") + css, vendor=source("tables.js"),
    )  # fmt: skip
