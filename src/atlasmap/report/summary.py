"""The summary printed when a run ends: checked data, accuracies, verdicts, and paths."""

from pathlib import Path

import pandas as pd

from atlasmap.data.contract import left_out
from atlasmap.report.found import VERDICTS, Final, Found

SHOWN = {"report": "report.html", "explorer": "explorer.html", "figures": "figures",
         "atlas": "atlas.h5ad", "labels": "labels.csv"}  # fmt: skip


def summary(folder: Path) -> str:
    """Returns the summary of results/{atlas}: its main tables, and the paths of its results."""
    found, out = Found(folder, Final(0, "", "")), ""  # no final mapping: all are shown
    if found.contract:
        out += checked_data(found.contract)
    scores, fitness = (found.table(name) for name in ("classification", "fitness"))
    if len(scores):
        out += accuracy_table(scores) + "\n"
    if len(fitness):
        out += verdict_table(fitness) + shifted_batches(fitness)
    there = {what: folder / path for what, path in SHOWN.items() if (folder / path).exists()}
    return out + "".join(f"{what + ':':10}{path}\n" for what, path in there.items())


def checked_data(contract: dict) -> str:
    """Returns two lines on reference and query data, and a line per thing that was left out."""
    reference, queries = contract["reference"], contract["queries"]
    labels = reference.get("labels") or {}
    said = (
        f"\nChecked: reference of {reference['n_cells']:,} cells, "
        f"{len(reference.get('batches', {}))} batches, {len(labels) or 'no'} labels, "
        f"{reference['n_genes']:,} genes;\n"
    )
    n, overlap = (
        [fact.get(key, 1.0) for fact in queries.values()] for key in ("n_cells", "gene_overlap")
    )
    besides = "".join(f"  {line}\n" for line in left_out(contract))
    if not queries:
        return f"{said}no query batches\n{besides}"
    share = "all" if min(overlap) == 1 else f"at least {min(overlap):.1%}"
    query = f"{sum(n):,} query cells in {len(queries)} batches, with {share} of these genes\n"
    return said + query + besides


def verdict_table(fitness: pd.DataFrame) -> str:
    """Returns a text table of confident, ambiguous and novel query cells per mapping."""
    if fitness.empty:
        return ""
    keys = ["seed", "variant", "strategy"]
    cells = fitness[keys].assign(n=fitness["n"])
    for verdict in VERDICTS:
        cells[verdict] = (fitness[verdict] * fitness["n"]).round().astype(int)
    shown = cells.groupby(keys, sort=False).sum().reset_index()
    shown = shown.drop(columns="seed") if shown["seed"].nunique() == 1 else shown
    return f"Verdicts on query cells:\n\n{shown.to_string(index=False)}\n\n"


def shifted_batches(fitness: pd.DataFrame) -> str:
    """Returns one line per batch that the reference does not, or perhaps not, fit."""
    if fitness.empty:  # without calibration the table has only its key columns
        return ""
    lines = []
    for batch, rows in fitness.dropna(subset="strangeness").groupby("batch"):
        worst = rows.loc[rows["strangeness"].idxmax()]
        if worst["reference"] != "fits":
            said = (
                f"strangeness {worst['strangeness']:.2f} ({worst['variant']}, {worst['strategy']})"
            )
            lines.append(f"reference {worst['reference']}: batch {batch}, {said}\n")
    return "".join(lines)


def accuracy_table(scores: pd.DataFrame) -> str:
    """Returns a text table of the classifier's scores over all batches (mean ± SD over seeds)."""
    whole = scores[(scores["method"] == "classifier") & (scores["batch"] == "all")]
    whole = whole[whole["level"] == "label"]
    order = pd.Categorical(whole["split"], ["train", "validation", "query"])
    whole, keys = whole.assign(split=order), ["variant", "strategy", "split"]
    table = whole[whole["probabilities"] == "raw"]
    calibrated = whole[whole["probabilities"] == "calibrated"]
    groups = {"accuracy": table, "macro_f1": table, "ece": table}
    if len(calibrated):
        calibrated = calibrated.rename(columns={"ece": "calibrated_ece"})
        groups |= {"calibrated_ece": calibrated}
    shown = table.groupby(keys, observed=True)["n"].first().to_frame()
    for key, part in groups.items():
        by = part.groupby(keys, observed=True)[key]
        mean, spread = by.mean(), by.std()
        text = mean.map("{:.3f}".format)
        shown[key] = text.where(spread.isna(), text + " ± " + spread.map("{:.3f}".format))
    of_query = (whole["split"] == "query").any()
    what = "" if of_query else " (of the reference's own cells: no query label is known)"
    return (
        f"\nPredicted labels against known ones{what}:\n\n"
        f"{shown.fillna('–').reset_index().to_string(index=False)}\n"
    )
