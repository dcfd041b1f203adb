"""The report of an atlas: one page that opens from disk, made from result files alone."""

import base64
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd

from atlasmap.report.attention import notices
from atlasmap.report.found import Found
from atlasmap.report.pages import number
from atlasmap.vendor import source

HERE = files("atlasmap.report")
FIGURES = {
    "embeddings": "The map",
    "confusion_query": "Predicted against known labels, query",
    "confusion_validation": "Predicted against known labels, validation cells of the reference",
    "reliability": "Confidence against accuracy",
    "risk_coverage": "Accuracy of the surest cells",
    "protein_ridges": "Proteins, before and after denoising",
    "protein_dots": "Proteins by label",
    "scib_table": "Integration",
    "loss_curves": "Training",
}
CAPTIONS = {"confusion_query": "confusion", "confusion_validation": "confusion",
            "protein_ridges": "proteins", "protein_dots": "proteins"}  # fmt: skip
TABLES = {
    "classification": ("Labels, where they are known",
                       "Scores of the classifier and of other ways to name the same cells."),
    "trust": ("Prediction sets and verdicts, where labels are known",
              "Coverage: share of cells whose prediction set holds the known label."),
    "fitness": ("Does the reference fit?", "Told of each batch without any label of it."),
    "opinions": ("Second opinions", "The same cells named by other classifiers."),
    "gene_gap": ("Genes that a query lacks", "Accuracy on reference cells with and without them."),
    "certificates": ("Certificates of surgery", "How far each mapping moved its cells; that none "
                     "moved the reference is what lets it be here."),
    "scib": ("scib-metrics", "Bio conservation and batch correction of each embedding."),
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A picture with what says how to read it."""

    title: str
    caption: str
    image: str


@dataclass(frozen=True)
class Table:
    """A table with what it says."""

    key: str
    title: str
    text: str
    html: str


def said_in_short(found: Found) -> list[str]:
    """The run in plain sentences."""
    contract, final = found.contract, found.final
    reference, queries = contract["reference"], contract["queries"]
    n_query = sum(fact["n_cells"] for fact in queries.values())
    labels = reference.get("labels") or {}
    named = f", {len(labels)} labels" if labels else ""
    out = [
        f"The reference has {reference['n_cells']:,} cells of {len(reference.get('batches', {}))} "
        f"batches, {reference['n_genes']:,} genes{named}."
    ]
    if queries:
        out.append(
            f"{n_query:,} query cells of {len(queries)} batches were mapped onto it: "
            f"variant {final.variant}, strategy {final.strategy.replace('_', ' ')}, "
            f"seed {final.seed}."
        )
    scores = found.of_final("classification")
    if len(scores):
        scores = scores[(scores["batch"] == "all") & (scores["split"] == "query")
                        & (scores["level"] == "label")]  # fmt: skip
        raw = scores[(scores["method"] == "classifier") & (scores["probabilities"] == "raw")]
        for row in raw.to_dict("records"):
            out.append(
                f"Of {row['n']:,.0f} query cells whose label is known {row['accuracy']:.1%} are "
                f"named right (macro-F1 {number(row['macro_f1'])})."
            )
    verdicts = found.of_final("fitness")
    if len(verdicts):
        shares = [(verdicts[kind] * verdicts["n"]).sum() / verdicts["n"].sum()
                  for kind in ("confident", "ambiguous", "novel")]  # fmt: skip
        out.append("Of all query cells {:.0%} are confident, {:.0%} ambiguous and {:.0%} novel."
                   .format(*shares))  # fmt: skip
    moved = found.table("certificates")
    if len(moved):
        out.append(
            f"The reference did not move: after each of {len(moved)} mappings its weights, and "
            f"latent and labels of {int(moved['n_golden_cells'].min())} golden cells and "
            f"{int(moved['n_probe_cells'].min())} of its own, are those of before, bit for bit."
        )
    return out


def by_batch(found: Found) -> pd.DataFrame:
    """A row a query batch: what became of it."""
    queries = found.contract["queries"]
    table = pd.DataFrame(
        {"batch": list(queries), "cells": [fact["n_cells"] for fact in queries.values()],
         "genes found": [f"{fact.get('gene_overlap', 1):.1%}" for fact in queries.values()]}
    )  # fmt: skip
    fitness = found.of_final("fitness")
    if len(fitness):
        names = ["confident", "ambiguous", "novel"]
        shown = fitness.set_index("batch")[[*names, "reference", "strangeness"]]
        shown[names] = shown[names].map("{:.0%}".format)
        table = table.join(shown.rename(columns={"reference": "reference fits"}), on="batch")
        table["reference fits"] = table["reference fits"].replace(
            {"fits": "yes", "does not fit": "no"}
        )
    moved = found.certificates
    if len(moved):
        by_mapping = moved.set_index("mapping")["displacement_median_in_posterior_sd"]
        if set(by_mapping.index) >= set(table["batch"]):
            table["moved, posterior s.d."] = table["batch"].map(by_mapping)
    return table


def shown(frame: pd.DataFrame, identity: str) -> str:
    """A table that sorts and filters."""
    frame = frame.rename(columns=lambda name: str(name).replace("_", " "))
    return frame.to_html(
        index=False, na_rep="–", float_format=number, border=0, table_id=identity,
        classes="sorts", escape=True,
    )  # fmt: skip


def as_fragment(text: str) -> str:
    """reStructuredText as HTML."""
    from docutils.core import publish_parts

    how = {"report_level": 5, "raw_enabled": False, "file_insertion_enabled": False}
    return publish_parts(text, writer="html5", settings_overrides=how)["body"]


def figures_of(found: Found, captions: Path | None) -> list[Figure]:
    """Pictures that there are, in the order in which they are read."""
    from jinja2 import Environment

    out = []
    for name, title in FIGURES.items():
        path = found.folder / "figures" / f"{name}.svg"
        if not path.is_file():
            continue
        caption = captions / f"{CAPTIONS.get(name, name)}.rst" if captions else None
        text = caption.read_text(encoding="utf-8") if caption and caption.is_file() else ""
        split = name.partition("_")[2]
        wildcards = {"atlas": found.folder.name, "split": split, "seed": found.final.seed}
        text = Environment().from_string(text).render(snakemake={"wildcards": wildcards})
        image = base64.b64encode(path.read_bytes()).decode()
        out.append(Figure(title, as_fragment(text), f"data:image/svg+xml;base64,{image}"))
    return out


def tables_of(found: Found) -> list[Table]:
    """Benchmark tables that there are."""
    out = []
    for name, (title, text) in TABLES.items():
        table = found.table(name)
        if len(table):
            out.append(Table(name, title, text, shown(table, f"table-{name}")))
    return out


def card_of(found: Found) -> str:
    """The model card without its front matter, as HTML."""
    from markdown_it import MarkdownIt

    if not found.card:
        return ""
    text = found.card.read_text(encoding="utf-8")
    if text.startswith("---\n"):
        text = text.split("\n---\n", 1)[1]
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def provenance(found: Found) -> pd.DataFrame:
    """What it was made of and with."""
    about, stages = found.about_model, found.stages()
    used_gpu = str(about.get("device", "cpu")).startswith("cuda")
    trains = stages["stage"].str.contains("train|operate|map-held-out")
    hours = stages.loc[trains, "seconds"].sum() / 3600
    rows = {
        **{f"version of {name}": said for name, said in about.get("versions", {}).items()},
        "seed": found.final.seed,
        "fingerprint of the reference's cells": about.get("data", {}).get("sha256", "–"),
        "weights of the reference": found.checksums.get(weights_name(found), "–"),
        "atlas.h5ad": found.checksums.get("atlas.h5ad", "–"),
        "seconds of all jobs": f"{stages['seconds'].sum():,.0f}",
        "GPU-hours": f"{hours:.2f}" if used_gpu else "none (trained on a CPU)",
    }
    return pd.DataFrame(rows.items(), columns=["what", "value"]).astype(str)


def weights_name(found: Found) -> str:
    """weights.safetensors beside the card."""
    if not found.card:
        return ""
    return str(found.card.with_name("weights.safetensors").relative_to(found.folder))


def commands(found: Found) -> list[str]:
    """To make it again, and to check that nothing was altered."""
    config = found.contract.get("configfiles", [])
    words = ["snakemake", "--cores", "all", *(["--configfile", *config] if config else [])]
    return [shlex.join(words), shlex.join(["atlasmap", "check-results", str(found.folder)])]


def report_page(found: Found, configs: list[Path], captions: Path | None) -> str:
    """The report as HTML; `captions`: a folder of {figure}.rst."""
    from jinja2 import Environment

    template, css = (
        HERE.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css")
    )
    return Environment(autoescape=True, trim_blocks=True).from_string(template).render(
        title=found.folder.name, summary=said_in_short(found), notices=notices(found),
        batches=shown(by_batch(found), "table-batches") if found.contract["queries"] else "",
        figures=figures_of(found, captions), tables=tables_of(found), card=card_of(found),
        provenance=shown(provenance(found), "table-provenance"),
        stages=shown(found.stages(), "table-stages"), commands=commands(found),
        configs={path.name: path.read_text(encoding="utf-8") for path in configs},
        css=source("tables.css") + css, vendor=source("tables.js"),
    )  # fmt: skip
