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
    """scib-metrics of embeddings of one seed.

    Example: atlasmap score-embeddings --runs '{"embedding": "scanvi_fixed_joint", "cells": "atlas",
    "path": "atlas.h5ad"}' --counts reference.h5ad --counts donor1.h5ad --out scib.csv

    Parameters
    ----------
    runs
        Embeddings to score (JSON).
    counts
        Prepared reference and query batches, for the unintegrated PCA.
    seed
        Seed the embeddings were trained with.
    """
    from atlasmap.evaluation import embedding_scores

    write_table(out, embedding_scores.score_embeddings(runs, counts, seed, benchmark))
