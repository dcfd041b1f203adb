"""Commands that score labels and embeddings."""

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.commands.parameters import Table, Unlabeled
from atlasmap.errors import AtlasmapError
from atlasmap.files import written_aside
from atlasmap.labels.compile_cache import keep_jax, keep_numba
from atlasmap.settings import BenchmarkSettings

TRUST_KEYS = ["seed", "variant", "strategy", "batch"]
PARTS = ("summary", "per_class", "confusion", "reliability", "risk_coverage")
OPINIONS = ("classifier", "knn", "random_forest", "logistic", "majority")


@dataclass(frozen=True)
class LabelRun:
    """One mapping to score: its atlas.h5ad, or a reference_latent.h5ad where nothing is mapped; of
    second opinions opinions.parquet, and what they took."""

    seed: int
    variant: str
    strategy: str
    atlas: Path
    seconds: Path | None = None


@dataclass(frozen=True)
class EmbeddingRun:
    """One embedding to score: `cells` reference or atlas, `path` an .h5ad with a latent, or
    the prepared reference for pca."""

    embedding: str
    cells: str
    path: Path


def groups(obs: pd.DataFrame):
    """(batch, split, method, probabilities, level, cells' truth, predicted label, confidence) of
    all there is to score.

    `obs` is an atlas's; reference cells are scored by their label, query cells by their truth.
    """
    reference, query = obs[obs["role"] == "reference"], obs[obs["role"] == "query"]
    columns = {"raw": "confidence", "calibrated": "calibrated_confidence"}
    columns = {name: column for name, column in columns.items() if column in obs}
    parts = [("all", split, "label", part) for split, part in reference.groupby("split")]
    if "truth" in obs:
        of_batch = [("all", query), *query.groupby("batch")]
        parts += [(batch, "query", "truth", part) for batch, part in of_batch]
    for batch, split, key, part in parts:
        for level in ["label", *coarse_levels(obs)]:
            ending = "" if level == "label" else f"_{level}"
            for name, sure in columns.items():
                keys = (f"{key}{ending}", f"predicted_{level}", f"{sure}{ending}")
                yield batch, split, "classifier", name, level, *(part[key] for key in keys)


def coarse_levels(obs: pd.DataFrame) -> list[str]:
    """Levels above the label that an atlas has."""
    named = [key.removeprefix("predicted_") for key in obs if key.startswith("predicted_")]
    return [level for level in named if f"confidence_{level}" in obs]  # others are a user's own


def as_strings(obs: pd.DataFrame) -> pd.DataFrame:
    """Categories as text."""
    return obs.astype(dict.fromkeys(obs.select_dtypes("category").columns, str))


def trust_rows(run: LabelRun, obs: pd.DataFrame, known: set[str], unlabeled: str) -> list[dict]:
    """What became of prediction sets and verdicts, all query cells and by batch."""
    from atlasmap.evaluation.trust import score_trust

    if "verdict" not in obs or "truth" not in obs:
        return []
    query, rows = obs[obs["role"] == "query"], []
    for batch, part in [("all", query), *query.groupby("batch")]:
        found = score_trust(part, known, unlabeled)
        if found is not None:
            key = {"seed": run.seed, "variant": run.variant, "strategy": run.strategy}
            rows.append(key | {"batch": batch} | found)
    return rows


def fitness_rows(run: LabelRun, obs: pd.DataFrame) -> list[dict]:
    """Whether the reference fits, a row a query batch; needs no truth."""
    from atlasmap.labels.verdict import fitness

    if "strangeness" not in obs:
        return []
    key = {"seed": run.seed, "variant": run.variant, "strategy": run.strategy}
    batches = obs[obs["role"] == "query"].groupby("batch")
    return [key | {"batch": batch} | fitness(part) for batch, part in batches]


def observed(path: Path) -> pd.DataFrame:
    """obs of an atlas; that of a reference's latent is given what an atlas adds."""
    from atlasmap.labels.knn import label_table, soft_labels_of

    adata = anndata.read_h5ad(path)
    if "role" in adata.obs:
        return adata.obs
    predicted = label_table(soft_labels_of(adata), adata.obs_names)
    return adata.obs.assign(role="reference").join(predicted)


def score_run(run: LabelRun, unlabeled: str) -> dict[str, list[pd.DataFrame]]:
    """Tables of one mapping, each row keyed by seed, variant, strategy, batch, split, method."""
    from atlasmap.evaluation.classification import score

    obs = as_strings(observed(run.atlas))
    reference = obs[obs["role"] == "reference"]
    known = set(reference["label"]) - {unlabeled}
    at_level = {"label": known} | {
        level: set(reference[f"label_{level}"]) - {unlabeled} for level in coarse_levels(obs)
    }
    tables = {name: [] for name in PARTS}
    tables["known"] = known
    of_trust = {"trust": trust_rows(run, obs, known, unlabeled), "fitness": fitness_rows(run, obs)}
    for name, rows in of_trust.items():
        tables[name] = [pd.DataFrame(rows, columns=None if rows else TRUST_KEYS)]
    for batch, split, method, probabilities, level, *of_cells in groups(obs):
        columns = (column.to_numpy() for column in of_cells)
        scored = score(*columns, at_level[level], unlabeled)
        if scored is None:
            continue
        # The reference's own cells are named alike under every strategy that keeps it.
        own = split == "query" or run.strategy == "de_novo"
        strategy = run.strategy if own else ""
        key = {"seed": run.seed, "variant": run.variant, "strategy": strategy, "batch": batch}
        key |= {"split": split, "method": method, "probabilities": probabilities}
        key |= {"level": level}
        for name in PARTS:
            if probabilities == "raw" or name not in ("per_class", "confusion"):  # of labels alone
                part = getattr(scored, name)
                tables[name].append(part.assign(**key)[[*key, *part]])
    return tables


def opinion_groups(table: pd.DataFrame):
    """(batch, method, truth, label, confidence) of the second opinions on query cells."""
    for batch, part in [("all", table), *table.groupby("batch")]:
        for method in [name for name in OPINIONS if name in table]:
            yield batch, method, part["truth"], part[method], part[f"{method}_confidence"]


def score_opinions(run: LabelRun, known: set[str], unlabeled: str) -> dict[str, pd.DataFrame]:
    """Of one mapping's opinions.parquet: `summary` as classification.csv has it (where the
    classifier is already), `opinions` (of all batches, the classifier too), `by_k` (kNN by number
    of neighbours), `timed` (opinions, and seconds a method took besides the mapping)."""
    from atlasmap.evaluation.classification import score

    table, key = pd.read_parquet(run.atlas), {"seed": run.seed, "variant": run.variant}
    key |= {"strategy": run.strategy}
    if "truth" not in table:
        return {}
    summary, by_k = [], []
    for batch, method, *of_cells in opinion_groups(table):
        scored = score(*(column.to_numpy() for column in of_cells), known, unlabeled)
        if scored is not None:
            kind = {"split": "query", "method": method, "probabilities": "raw", "level": "label"}
            summary.append(scored.summary.assign(**key, batch=batch, **kind))
    for column in [name for name in table if name.startswith("knn_k")]:
        scored = score(
            table["truth"].to_numpy(), table[column].to_numpy(), np.ones(len(table)), known,
            unlabeled,
        )  # fmt: skip
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
        "summary": whole[whole["method"] != "classifier"],
        "opinions": everyone,
        "by_k": pd.DataFrame(by_k),
        "timed": everyone.assign(seconds=everyone["method"].map(seconds)),
    }


def score_labels(
    *, runs: list[LabelRun], out: Path, opinions: list[LabelRun] | None = None,
    timed: Path | None = None, unlabeled: Unlabeled = "Unknown",
) -> None:  # fmt: skip
    """Score predicted labels where the truth is known.

    Example: atlasmap score-labels --runs '{"seed": 0, "variant": "fixed", "strategy": "per_batch",
    "atlas": "atlas.h5ad"}' --out benchmark

    Parameters
    ----------
    runs
        Mappings to score (JSON).
    opinions
        Second opinions to score (JSON), `atlas` being opinions.parquet.
    timed
        opinions.csv and what each method took (.csv): no two runs take the same time, so it is
        apart from results, which are the same bits.
    out
        Folder: classification.csv, classification_per_class.csv, confusion.csv, reliability.csv,
        risk_coverage.csv (accuracy of the surest cells),
        trust.csv (prediction sets and verdicts), fitness.csv (does the reference fit a batch?),
        opinions.csv (the classifier and all others),
        knn_sensitivity.csv (kNN by number of neighbours).
    """
    scored = [score_run(run, unlabeled) for run in runs]
    known = set().union(*(tables["known"] for tables in scored))
    others = [score_opinions(run, known, unlabeled) for run in opinions or []]
    files = {"opinions": out / "opinions.csv", "by_k": out / "knn_sensitivity.csv"}
    for name, file in (files | ({"timed": timed} if timed else {})).items():
        parts = [tables[name] for tables in others if tables]
        write_scores(parts or [pd.DataFrame(columns=TRUST_KEYS)], file)
    for name, file in [
        ("summary", "classification"),
        ("per_class", "classification_per_class"),
        ("confusion", "confusion"),
        ("reliability", "reliability"),
        ("risk_coverage", "risk_coverage"),
        ("trust", "trust"),
        ("fitness", "fitness"),
    ]:
        # The reference's own rows come with every strategy.
        parts = [part for tables in scored for part in tables[name]]
        if name == "summary":
            parts += [tables["summary"][list(parts[0])] for tables in others if tables]
        write_scores(parts, out / f"{file}.csv")


def write_scores(parts: list[pd.DataFrame], path: Path) -> None:
    """Tables as one, each row once."""
    with written_aside(path) as aside:
        pd.concat(parts, ignore_index=True).drop_duplicates().to_csv(aside, index=False)


def score_embeddings(
    *,
    runs: list[EmbeddingRun],
    counts: list[Path],
    out: Table,
    seed: int = 0,
    unlabeled: Unlabeled = "Unknown",
    benchmark: BenchmarkSettings = BenchmarkSettings(),
) -> None:
    """scib-metrics of embeddings of one seed.

    Example: atlasmap score-embeddings --runs '{"embedding": "fixed", "cells": "atlas", "path":
    "atlas.h5ad"}' --counts reference.h5ad --counts donor1.h5ad --out scib.csv

    Parameters
    ----------
    runs
        Embeddings to score (JSON).
    counts
        Prepared reference and query batches, for the unintegrated PCA.
    seed
        Seed the embeddings were trained with.
    """
    import scib_metrics

    from atlasmap.evaluation.samples import combined, draws
    from atlasmap.evaluation.scib import score_embedding

    keep_jax()
    keep_numba("pynndescent")
    rows, pca = [], PcaByCells(counts)
    for run in runs:
        cells, labelled = pca.embedded(run, unlabeled)
        samples = draws(cells.strata, benchmark.max_cells, benchmark.n_samples)
        exact = len(samples[0]) <= benchmark.split_above
        values = [
            score_embedding(
                cells.only(at), labelled[at], benchmark.n_neighbors, exact=exact, name=run.embedding
            )
            for at in samples
        ]
        key = {"seed": seed, "embedding": run.embedding, "cells": run.cells, "n": len(cells.x)}
        about = {"n_labelled": int(labelled.sum()), "scib_metrics": scib_metrics.__version__}
        of_samples = {"n_scored": len(samples[0]), "n_samples": len(samples)}
        rows.append(key | combined(values) | about | of_samples)
    with written_aside(out) as aside:
        pd.DataFrame(rows).to_csv(aside, index=False)


class PcaByCells:
    """The unintegrated PCA of reference cells, and of all cells, each computed once."""

    def __init__(self, counts: list[Path]):
        self.paths, self.known = counts, {}

    def of(self, cells: str) -> tuple[np.ndarray, np.ndarray]:
        """Components (cells × components) and the batch of each cell, in the files' order."""
        from atlasmap.evaluation.scib import unintegrated_pca
        from atlasmap.mapping.query import joined

        if cells not in self.known:
            paths = self.paths[:1] if cells == "reference" else self.paths
            whole = joined([anndata.read_h5ad(path) for path in paths])
            batch = whole.obs["batch"].astype(str).to_numpy()
            self.known[cells] = unintegrated_pca(whole.X), batch
        return self.known[cells]

    def embedded(self, run: EmbeddingRun, unlabeled: str):
        """The cells of a run, and a mask of those whose label is known."""
        from atlasmap.evaluation.scib import Embedded
        from atlasmap.mapping.latent import latent_of

        adata = anndata.read_h5ad(run.path)
        batch = adata.obs["batch"].astype(str).to_numpy()
        pca, of_batch = self.of(run.cells)
        if not np.array_equal(batch, of_batch):
            raise AtlasmapError(
                "CELLS_DIFFER",
                expected=f"the cells of {run.path} in the order of the prepared files",
                found=f"{len(batch)} cells against {len(of_batch)}, or another order",
                mend="remake it: snakemake --forcerun assemble",
            )
        x = pca if run.embedding == "pca" else latent_of(adata)
        key = "truth" if "truth" in adata.obs else "label"
        label = adata.obs[key].astype(str).to_numpy()
        labelled = label != unlabeled
        return Embedded(x, pca, batch, label if labelled.any() else None), labelled
