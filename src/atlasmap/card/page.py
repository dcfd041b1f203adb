"""The card as JSON, and as Markdown with front matter."""

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from atlasmap.card.checks import Tables
from atlasmap.evaluation.criticism import N_TOP_GENES, P_VALUE
from atlasmap.report.pages import pairs, table

COLUMNS = {
    "gene_f1": "Gene F1",
    "lfc_mae": "LFC MAE",
    "lfc_pearson": "LFC Pearson",
    "lfc_spearman": "LFC Spearman",
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
    "n_cells": "N cells",
    "mae": "MAE",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "r2": "R²",
    "macro_f1": "macro-F1",
    "ece": "calibration error",
}


VARIATION = (
    "Standard deviation over mean, of each cell over genes and of each gene over cells: of counts "
    "drawn from the model (mean over draws) against those of the data."
)
EXPRESSION = (
    "Cells of each label against the rest, in one draw and in the data. Gene F1: overlap of the "
    f"{N_TOP_GENES} genes of highest score (or a tenth of all, if fewer). LFC: log-fold changes. "
    "ROC and PR: how far up the draw's signed score puts the genes that change in the data "
    f"(adjusted p < {P_VALUE}, or the top ones); genes that fall count as changed too, so a good "
    "model may stay below 0.5."
)


def as_json(facts: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """The card as JSON, for programs."""

    def records(frame: pd.DataFrame | None) -> list[dict] | None:
        if frame is None:
            return None
        return frame.astype(object).where(frame.notna(), None).to_dict("records")  # JSON has no NaN

    metrics = {
        "variation": records(tables.variation),
        "differential_expression": {k: records(v) for k, v in tables.expression.items()},
        "classification": records(tables.classification),
    }
    return facts | {"metrics": metrics}


def front_matter(facts: dict[str, Any]) -> str:
    """YAML front matter for Hugging Face."""
    tags = [
        "biology", "genomics", "single-cell",
        f"model_cls_name:{facts['model']}",
        f"{facts['tool'].replace('-tools', '')}_version:{facts['version']}",
        f"modality:{facts['modality']}",
        *(f"tissue:{name}" for name in facts["tissue"]),
        f"annotated:{facts['annotated']}",
    ]  # fmt: skip
    head = {"library_name": "atlasmap", "license": facts["license"], "tags": tags}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def sections(facts: dict[str, Any], tables: Tables, folder: Path) -> list[tuple[str, str]]:
    """Title and text of each section."""
    none = "Left out: the counts of the reference were not given."
    variation, expression = none, none
    if tables.variation is not None:
        variation = f"{VARIATION}\n\n{table(tables.variation, COLUMNS)}"
    if tables.expression:
        by = [
            f"By {method}:\n\n{table(frame, COLUMNS)}"
            for method, frame in tables.expression.items()
        ]
        expression = "\n\n".join([EXPRESSION, *by])
    out = [
        (
            "Description",
            facts["description"] or "No description was given (config: card.description).",
        ),
        ("Posterior predictive checks: coefficient of variation", variation),
        ("Differential expression in drawn counts", expression),
        ("Architecture", pairs(facts["architecture"])),
        ("Setup", pairs(facts["setup"])),
        ("Training", pairs(facts["training"])),
        ("Summary statistics", pairs(facts["summary"])),
        ("Data registry", pairs(facts["registry"])),
        ("Fingerprint", pairs(facts["fingerprint"])),
        ("Versions", pairs(facts["versions"])),
        ("Map a query onto it", how_to_map(folder)),
    ]
    if tables.classification is not None:
        out.insert(3, ("Labels: accuracy and calibration", table(tables.classification, COLUMNS)))
    if facts["trust"]:
        out.insert(4, ("How far to trust a label", trusted(facts)))
    return out


def trusted(facts: dict[str, Any]) -> str:
    """Section on the calibration of labels."""
    if not facts["left_out"]:
        return pairs(facts["trust"])
    found = pd.DataFrame(facts["left_out"]).rename(columns={"auroc": "AUROC"})
    return f"""{pairs(facts["trust"])}

Labels left out one at a time of what held-out cells are compared with: the share of their cells
that would be called novel (with its 95 % interval), and how well the score tells them from known
cells.

{table(found, {"n": "cells", "detected": "called novel", "low": "at least", "high": "at most"})}"""


def how_to_map(folder: Path) -> str:
    """Commands that map a query onto the bundle."""
    options = f"--reference {shlex.quote(folder.name)} --query query.h5ad --batch_key donor"
    return f"""```
make env    # in the repository of atlasmap, once
.venv/bin/atlasmap map {options} --out mapped
head mapped/labels.csv
```"""


def title(facts: dict[str, Any]) -> str:
    """Title of the card: model, tool and classifier."""
    classifier = f", classifier: {facts['classifier']}" if facts["classifier"] else ""
    return f"{facts['model']} reference ({facts['tool']} {facts['version']}{classifier})"


def as_markdown(facts: dict[str, Any], tables: Tables, folder: Path) -> str:
    """The card as Markdown with front matter."""
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections(facts, tables, folder))
    return f"{front_matter(facts)}\n# {title(facts)}\n\n{body}\n"
