"""docs/trust_benchmark.md and .json, of the rows of all tasks."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

ASKED = """## What was asked

| | asked | seen |
|---|---|---|
"""
HERE = Path(__file__).parent
COLUMNS = {
    "auroc": "AUROC of novelty", "found": "left-out found", "new_confident": "left-out confident",
    "known_novel": "known called novel", "worst_label": "worst known label",
    "confident": "share confident", "right_confident": "right among confident",
    "covered": "sets of ambiguous hold the truth", "size": "their size",
    "ece_pooled": "ECE", "ece_raw": "ECE, classifier alone",
    "pooled_right": "pooled label right", "right": "classifier right",
}  # fmt: skip


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a group: means over query batches; sets are pooled."""
    by = rows.groupby("group", sort=False)
    out = by[[key for key in COLUMNS if key in rows and key != "covered"]].mean()
    sums = by[["ambiguous", "covered", "set_sizes"]].sum()
    out["covered"] = sums["covered"] / sums["ambiguous"]
    out["size"] = sums["set_sizes"] / sums["ambiguous"]
    return out[list(COLUMNS)]


def table(values: pd.DataFrame) -> str:
    """As Markdown; a dash where there is no number."""
    head = "| | " + " | ".join(COLUMNS.get(key, key) for key in values) + " |\n"
    head += "|---" * (1 + values.shape[1]) + "|\n"
    lines = []
    for name, row in values.iterrows():
        texts = ("–" if pd.isna(value) else f"{value:.3f}" for value in row)
        lines.append(f"| {name} | {' | '.join(texts)} |\n")
    return head + "".join(lines)


def asked(rows: pd.DataFrame) -> str:
    """What the project asks of itself, and what was seen."""
    plain, close = rows[~rows["sibling"]], rows[rows["sibling"]]
    whole, far = means(rows), means(plain)
    stimulated = rows[(rows["group"] == "IFN-β") & (rows["left_out"] == "")]
    others = ["donor", "pancreas", "lines"]
    pbmc, ifnb = whole.loc["PBMC"], whole.loc["IFN-β"]
    made = rows[rows["group"] == "simulated"]
    worse = rows[rows["ece_pooled"] > rows["ece_raw"]]

    def numbers(values) -> str:
        return " · ".join("–" if np.isnan(value) else f"{value:.3f}" for value in values)

    lines = {
        "PBMC: AUROC, found, left-out confident": (
            "≥ .96 · ≥ .80 · ≤ .13", pbmc[["auroc", "found", "new_confident"]]),
        "PBMC: close relatives confident": (
            "≤ .50", [close[close["group"] == "PBMC"]["new_confident"].mean()]),
        "PBMC: known novel, worst label": ("≤ .03 · ≤ .10", pbmc[["known_novel", "worst_label"]]),
        "PBMC: right among confident, share": (
            "≥ .97 · ≥ .85", pbmc[["right_confident", "confident"]]),
        "IFN-β: AUROC (no close relative), known novel, stimulated monocytes novel": (
            "≥ .94 · ≤ .15 · ≤ .25", [far.loc["IFN-β", "auroc"], ifnb["known_novel"],
                                      stimulated["monocytes_novel"].max()]),
        "IFN-β: right among confident, share": (
            "≥ .97 · ≥ .5", ifnb[["right_confident", "confident"]]),
        "donor, pancreas, lines: AUROC (no close relative)": ("≥ .95", far.loc[others, "auroc"]),
        "donor, pancreas, lines: known novel": ("≤ .06", whole.loc[others, "known_novel"]),
        "donor, pancreas, lines: worst label": ("≤ .25", whole.loc[others, "worst_label"]),
        "sets of ambiguous cells hold the truth (real data, by group)": (
            ".87 to .96", whole["covered"].drop("simulated")),
        "their mean size": ("≤ 2.0", whole["size"].drop("simulated")),
        "ECE, mean of all query batches": ("≤ .03", [rows["ece_pooled"].mean()]),
        f"query batches (of {len(rows)}) whose ECE is above the classifier's": (
            "0", [float(len(worse))]),
        "simulated atlas: AUROC, ECE, coverage of all": (
            "≥ .94 · ≤ .04 · ≥ .89", made[made["task"].str.startswith("simulated_atlas")]
            [["auroc", "ece_pooled", "covered_all"]].mean()),
        "two harder ones (two batches; shifts that differ by label): the same": (
            "–", made[~made["task"].str.startswith("simulated_atlas")]
            [["auroc", "ece_pooled", "covered_all"]].mean()),
    }  # fmt: skip
    return "".join(
        f"| {name} | {want} | {numbers(seen)} |\n" for name, (want, seen) in lines.items()
    )


def beside(rows: pd.DataFrame, peer: Path) -> str:
    """Both on the same query batches, where scvi-tools was run on them (tests/trust/peer.py)."""
    if not peer.is_file():
        return ""
    theirs = pd.DataFrame(json.loads(peer.read_text(encoding="utf-8")))
    keys = ["task", "batch"]
    own = rows[rows.set_index(keys).index.isin(theirs.set_index(keys).index)].copy()
    own = own.assign(ece=own["ece_pooled"], right=own["pooled_right"])
    keys = ["right", "confident", "right_confident", "ece", "auroc", "new_confident"]
    out = []
    for name, part in {"atlasmap": own, "scvi-tools": theirs}.items():
        found = part.groupby("group", sort=False)[keys].mean()
        out.append(found.rename(index=lambda group, name=name: f"{group}, {name}"))
    both = pd.concat(out)
    order = [f"{group}, {name}" for group in theirs["group"].unique()
             for name in ("atlasmap", "scvi-tools")]  # fmt: skip
    head = """
## Beside scvi-tools

The same cells, settings and epochs, one seed. Its label is the most probable one, confident from a
probability of 0.9 on, and novelty is one minus it. All labels given; of PBMC, onto 3' v1 and 3' v2,
also with labels left out.

"""
    return head + table(both.loc[order].rename(columns={"right": "label right", "ece": "ECE"}))


def safe_labels(rows: list[dict]) -> str:
    """How many cells have their safe label at which level, and how many of these are wrong."""
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        for level, counts in row["safe"].items():
            sums[level] = sums.get(level, np.zeros(4, int)) + counts
    everyone = sum(counts[0] for counts in sums.values())
    head = "level", "share of cells", "wrong, of cells of known labels", "wrong, of all cells"
    page = (
        "\n## The deepest safe label\n\nAll query batches of all tasks. The risk asked for is .05; "
        "thresholds come from the references' own held-out batches. At the top level no threshold "
        "could use the risk up: with every cell named there that has no safe label and is not "
        "novel, .019 would be wrong.\n\n"
        f"| {' | '.join(head)} |\n|---|---|---|---|\n"
    )
    for level in sorted(sums, key=lambda level: ("label none".find(level), level)):
        n, wrong, known, known_wrong = sums[level]
        said = ("–", "–") if level == "none" else (f"{known_wrong / known:.3f}", f"{wrong / n:.3f}")
        page += f"| {level} | {n / everyone:.3f} | {said[0]} | {said[1]} |\n"
    return page


def opinions(rows: pd.DataFrame) -> str:
    """Macro-F1 of each opinion, and of all of them together."""
    keys = [key for key in rows if key.startswith("f1 ")]
    real = rows[rows["group"] != "simulated"]
    found = rows.groupby("group", sort=False)[keys].mean()
    found.loc["all real query batches"] = real[keys].mean()
    text = (HERE / "opinions.md").read_text(encoding="utf-8")
    return text + table(found.rename(columns=lambda key: key.removeprefix("f1 ")))


def write(rows: list[dict], folder: Path) -> None:
    """Both files."""
    text = json.dumps(rows, indent=1, ensure_ascii=False, default=float).replace("NaN", "null")
    (folder / "trust_benchmark.json").write_text(text + "\n", encoding="utf-8")
    found = pd.DataFrame(rows)
    page = (HERE / "head.md").read_text(encoding="utf-8")
    page += ASKED + asked(found) + "\n## Means over query batches\n\n" + table(means(found))
    page += "\nOf them without a close relative in the reference:\n\n"
    keys = ["auroc", "found", "new_confident"]
    page += table(means(found[~found["sibling"]])[keys])
    page += "\nWith one:\n\n" + table(means(found[found["sibling"]])[keys])
    page += safe_labels(rows) + opinions(found) + beside(found, folder / "trust_peer.json")
    chosen = found.groupby(["group", "score"], sort=False).size().unstack(fill_value=0)
    page += "\n## Which score of novelty the references chose\n\nTimes, of all query batches.\n\n"
    page += "| | " + " | ".join(chosen) + " |\n" + "|---" * (1 + chosen.shape[1]) + "|\n"
    for name, row in chosen.iterrows():
        page += f"| {name} | {' | '.join(map(str, row))} |\n"
    page += (HERE / "tried.md").read_text(encoding="utf-8")
    (folder / "trust_benchmark.md").write_text(page, encoding="utf-8")
