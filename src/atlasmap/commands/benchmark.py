"""Commands that score labels and embeddings."""

from pathlib import Path

from atlasmap.commands.parameters import Table
from atlasmap.evaluation.embedding_scores import EmbeddingRun
from atlasmap.evaluation.label_scores import LabelRun
from atlasmap.files import write_table
from atlasmap.settings import BenchmarkSettings


def score_labels(
    *, runs: list[LabelRun], out: Path, opinions: list[LabelRun] | None = None,
    timed: Path | None = None,
) -> None:  # fmt: skip
    """Score predicted labels of cells whose true label is known.

    Example: atlasmap score-labels --runs '{"seed": 0, "variant": "fixed", "strategy": "per_batch",
    "atlas": "atlas.h5ad"}' --out benchmark

    Parameters
    ----------
    runs
        Mappings to score (JSON).
    opinions
        Second opinions to score (JSON), with opinions.parquet as `atlas`.
    timed
        Table (.csv): opinions.csv with the seconds of each method. Kept apart from `out`, because
        seconds differ between runs and results do not.
    out
        Output folder: classification.csv, classification_per_class.csv, confusion.csv,
        reliability.csv, risk_coverage.csv (accuracy of the most confident cells), trust.csv
        (prediction sets and verdicts), fitness.csv (whether the reference fits each batch),
        opinions.csv (the classifier and all second opinions), knn_sensitivity.csv (kNN by number
        of neighbours).
    """
    from atlasmap.evaluation import label_scores

    tables = label_scores.score_labels(runs, opinions or [])
    of_time = tables.pop("timed")
    for name, table in tables.items():
        write_table(out / f"{name}.csv", table)
    if timed:
        write_table(timed, of_time)


def score_embeddings(
    *,
    runs: list[EmbeddingRun],
    counts: list[Path],
    out: Table,
    seed: int = 0,
    benchmark: BenchmarkSettings = BenchmarkSettings(),
) -> None:
    """Score embeddings of one seed with scib-metrics.

    Example: atlasmap score-embeddings --runs '{"embedding": "scanvi_fixed_joint", "cells": "atlas",
    "path": "atlas.h5ad"}' --counts reference.h5ad --counts donor1.h5ad --out scib.csv

    Parameters
    ----------
    runs
        Embeddings to score (JSON): `embedding` is a name (pca: the unintegrated PCA of the counts),
        `cells` is reference or atlas, `path` an .h5ad with the latent.
    counts
        Prepared reference, then prepared query batches (.h5ad), for the unintegrated PCA.
    seed
        Seed with which the embeddings were trained.
    """
    from atlasmap.evaluation import embedding_scores

    write_table(out, embedding_scores.score_embeddings(runs, counts, seed, benchmark))
