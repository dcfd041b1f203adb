"""Scores of the labels of all mappings: the tables about labels in benchmark/."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from atlasmap.data.registry import unlabeled_in
from atlasmap.evaluation.classification import score
from atlasmap.evaluation.trust import at_level, score_trust
from atlasmap.files import read_table
from atlasmap.labels.knn import label_table, soft_labels_of
from atlasmap.labels.verdict import fitness
from atlasmap.mapping.given import read_reference

TRUST_KEYS = ["seed", "variant", "strategy", "batch"]
# Method, kind of probabilities, prefix of the label columns, and confidence column.
WAYS = (
    ("classifier", "raw", "predicted", "confidence"),
    ("classifier", "calibrated", "predicted", "calibrated_confidence"),
    ("pooled", "calibrated", "pooled", "pooled_confidence"),
    ("genes", "raw", "genes", "genes_confidence"),
)
CALIBRATED = ("classifier", "calibrated")
OPINIONS = ("classifier", "genes", "knn", "random_forest", "logistic", "majority")
# Table of a mapping → name of the file that gathers it over mappings.
FILES = {
    "summary": "classification",
    "per_class": "classification_per_class",
    "confusion": "confusion",
    "reliability": "reliability",
    "risk_coverage": "risk_coverage",
    "trust": "trust",
    "fitness": "fitness",
    "shifts": "shifts",
}
PARTS = tuple(FILES)[:5]


@dataclass(frozen=True)
class LabelRun:
    """One mapping to score.

    `atlas`: its atlas.h5ad, or reference_latent.h5ad if nothing is mapped. For second opinions:
    `atlas` is opinions.parquet, and `seconds` the file with the run time of each method.
    """

    seed: int
    variant: str
    strategy: str
    atlas: Path
    seconds: Path | None = None

    @property
    def key(self) -> dict:
        """The columns that identify the rows of this mapping."""
        return {"seed": self.seed, "variant": self.variant, "strategy": self.strategy}


def groups(obs: pd.DataFrame):
    """Yield (batch, split, method, probabilities, level, true labels, predicted labels, confidence)
    for each group of cells to score.

    `obs` is that of an atlas. The true label of reference cells is their label, that of query cells
    their truth.
    """
    reference, query = obs[obs["role"] == "reference"], obs[obs["role"] == "query"]
    parts = [("all", split, "label", part) for split, part in reference.groupby("split")]
    if "truth" in obs:
        of_batch = [("all", query), *query.groupby("batch")]
        parts += [(batch, "query", "truth", part) for batch, part in of_batch]
    for batch, split, key, part in parts:
        for level in ["label", *coarse_levels(obs)]:
            ending = "" if level == "label" else f"_{level}"
            for method, probabilities, label, sure in WAYS:
                # the reference's own cells have only raw labels of the classifier
                own = method == "classifier" and probabilities == "raw"
                if f"{label}_{level}" in obs and sure in obs and (own or split == "query"):
                    keys = (f"{key}{ending}", f"{label}_{level}", f"{sure}{ending}")
                    yield batch, split, method, probabilities, level, *(part[k] for k in keys)


def coarse_levels(obs: pd.DataFrame) -> list[str]:
    """Levels above the labels in an atlas."""
    named = [key.removeprefix("predicted_") for key in obs if key.startswith("predicted_")]
    return [level for level in named if f"confidence_{level}" in obs]  # others are a user's own


def trust_rows(
    obs: pd.DataFrame, unlabeled: str, known: dict[str, set[str]]
) -> Iterator[tuple[str, str, dict]]:
    """Yield (batch, level, scores) of prediction sets and verdicts, for all query cells and per
    batch; `known`: level → labels that the reference has there."""
    reference, query = obs[obs["role"] == "reference"], obs[obs["role"] == "query"]
    for level, labels in known.items():
        cells = query
        if level != "label":
            pairs = reference[["label", f"label_{level}"]].drop_duplicates()
            cells = at_level(query, level, dict(pairs.itertuples(index=False)))
        for batch, part in [("all", cells), *cells.groupby("batch")]:
            if found := score_trust(part, labels, unlabeled):
                yield batch, level, found


def of_batches(
    run: LabelRun, obs: pd.DataFrame, unlabeled: str, known: dict[str, set[str]]
) -> dict[str, list[pd.DataFrame]]:
    """Tables trust (scores of prediction sets and verdicts, for all query cells and per batch, at
    each level), fitness (whether the reference fits; one row per query batch; needs no truth) and
    shifts (one row per batch and label)."""
    query, rows = obs[obs["role"] == "query"], {"trust": [], "fitness": [], "shifts": []}
    beside = run.atlas.with_name("shifts.csv")
    if "verdict" in obs and beside.is_file():
        shifts = read_table(beside)
        rows["shifts"] = [run.key | row for row in shifts.to_dict("records")]
    if "verdict" in obs and "truth" in obs:
        for batch, level, found in trust_rows(obs, unlabeled, known):
            rows["trust"].append(run.key | {"batch": batch, "level": level} | found)
    for batch, part in query.groupby("batch") if "strangeness" in obs else ():
        rows["fitness"].append(run.key | {"batch": batch} | fitness(part))
    return {name: [pd.DataFrame(of, columns=None if of else TRUST_KEYS)]
            for name, of in rows.items()}  # fmt: skip


def observed(path: Path) -> tuple[pd.DataFrame, str]:
    """Read obs of an atlas, with categories as text, and the label of cells without one.

    To obs of a reference's latent, columns of an atlas are added (role, predicted labels).
    """
    adata = read_reference(path)
    obs = adata.obs
    if "role" not in obs:
        predicted = label_table(soft_labels_of(adata), adata.obs_names)
        obs = obs.assign(role="reference").join(predicted)
    texts = dict.fromkeys(obs.select_dtypes("category").columns, str)
    return obs.astype(texts), unlabeled_in(adata)


def score_run(run: LabelRun) -> dict:
    """Score one mapping: table name → list of tables, with rows keyed by seed, variant, strategy,
    batch, split, method, probabilities and level; also `known`, the reference's labels, and
    `unlabeled`."""
    obs, unlabeled = observed(run.atlas)
    reference = obs[obs["role"] == "reference"]
    known = set(reference["label"]) - {unlabeled}
    known_at = {"label": known} | {
        level: set(reference[f"label_{level}"]) - {unlabeled} for level in coarse_levels(obs)
    }
    tables = {name: [] for name in PARTS} | of_batches(run, obs, unlabeled, known_at)
    for batch, split, method, probabilities, level, *of_cells in groups(obs):
        columns = (column.to_numpy() for column in of_cells)
        scored = score(*columns, known_at[level], unlabeled)
        if scored is None:
            continue
        # Except de novo, strategies do not change the labels of the reference's own cells.
        own = split == "query" or run.strategy == "de_novo"
        key = run.key | {"strategy": run.strategy if own else "", "batch": batch, "split": split}
        key |= {"method": method, "probabilities": probabilities, "level": level}
        for name in PARTS:
            # calibration does not change the classifier's labels
            if name not in ("per_class", "confusion") or (method, probabilities) != CALIBRATED:
                part = getattr(scored, name)
                tables[name].append(part.assign(**key)[[*key, *part]])
    return tables | {"known": known, "unlabeled": unlabeled}


def opinion_groups(table: pd.DataFrame):
    """Yield (batch, method, true labels, predicted labels, confidence) of second opinions."""
    for batch, part in [("all", table), *table.groupby("batch")]:
        for method in [name for name in OPINIONS if name in table]:
            yield batch, method, part["truth"], part[method], part[f"{method}_confidence"]


def score_opinions(run: LabelRun, known: set[str], unlabeled: str) -> dict[str, pd.DataFrame]:
    """Score the second opinions on one mapping (its opinions.parquet); empty without truth.

    Tables: `summary` with the columns of classification.csv (without classifier and genes, which
    are in there already); `opinions` (all methods, all batches together); `by_k` (kNN per number of
    neighbours); `timed` (as `opinions`, with the seconds of each method besides the mapping).
    """
    table, key = pd.read_parquet(run.atlas), run.key
    if "truth" not in table:
        return {}
    summary, by_k = [], []
    for batch, method, *of_cells in opinion_groups(table):
        scored = score(*(column.to_numpy() for column in of_cells), known, unlabeled)
        if scored is not None:
            kind = {"split": "query", "method": method, "probabilities": "raw", "level": "label"}
            summary.append(scored.summary.assign(**key, batch=batch, **kind))
    for column in [name for name in table if name.startswith("knn_k")]:
        truth, said = (table[name].to_numpy() for name in ("truth", column))
        scored = score(truth, said, np.ones(len(table)), known, unlabeled)
        if scored is not None:
            changed = (table[column] != table["knn"]).mean()
            scores = scored.summary.iloc[0][["accuracy", "macro_f1"]].to_dict()
            by_k.append(key | {"k": int(column.removeprefix("knn_k")), "changed": changed} | scores)
    if not summary:
        return {}
    whole = pd.concat(summary, ignore_index=True)
    kept = [*key, "method", "n", "accuracy", "macro_f1", "ece"]
    everyone = whole.loc[whole["batch"] == "all", kept]
    seconds = pd.read_csv(run.seconds, index_col="method")["seconds"].round(2)
    return {
        "summary": whole[~whole["method"].isin(("classifier", "genes"))],
        "opinions": everyone,
        "by_k": pd.DataFrame(by_k),
        "timed": everyone.assign(seconds=everyone["method"].map(seconds)),
    }


def together(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables without duplicate rows: scores of the reference's own cells occur with
    every strategy."""
    return pd.concat(parts, ignore_index=True).drop_duplicates()


def score_labels(runs: list[LabelRun], opinions: list[LabelRun]) -> dict[str, pd.DataFrame]:
    """Score all mappings and second opinions: name of the file in benchmark/ → table, and the table
    `timed`."""
    scored = [score_run(run) for run in runs]
    known = set().union(*(tables["known"] for tables in scored))
    others = [score_opinions(run, known, scored[0]["unlabeled"]) for run in opinions]
    others = [tables for tables in others if tables]
    out = {
        file: together([part[name] for part in others] or [pd.DataFrame(columns=TRUST_KEYS)])
        for name, file in {"opinions": "opinions", "by_k": "knn_sensitivity",
                           "timed": "timed"}.items()
    }  # fmt: skip
    for name, file in FILES.items():
        parts = [part for tables in scored for part in tables[name]]
        if name == "summary":
            parts += [tables["summary"][list(parts[0])] for tables in others]
        out[file] = together(parts)
    return out
