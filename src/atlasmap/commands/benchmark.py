"""Commands that score labels and embeddings."""

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.errors import AtlasmapError
from atlasmap.files import written_aside
from atlasmap.settings import BenchmarkSettings

TRUST_KEYS = ["seed", "variant", "strategy", "batch"]


@dataclass(frozen=True)
class LabelRun:
    """One mapping to score: its atlas.h5ad, or a reference_latent.h5ad where nothing is mapped."""

    seed: int
    variant: str
    strategy: str
    atlas: Path


@dataclass(frozen=True)
class EmbeddingRun:
    """One embedding to score: `cells` reference or atlas, `path` an .h5ad with a latent, or
    the prepared reference for pca."""

    embedding: str
    cells: str
    path: Path


def groups(obs: pd.DataFrame):
    """(batch, split, method, probabilities, cells' truth, predicted label, confidence) of all there
    is to score.

    `obs` is an atlas's; reference cells are scored by their label, query cells by their truth.
    """
    obs = obs.assign(knn_sure=1 - obs["knn_uncertainty"])
    reference, query = obs[obs["role"] == "reference"], obs[obs["role"] == "query"]
    columns = {"raw": "confidence", "calibrated": "calibrated_confidence"}
    columns = {name: column for name, column in columns.items() if column in obs}
    for split, part in reference.groupby("split"):
        for name, sure in columns.items():
            said = (part[key] for key in ("label", "predicted_label", sure))
            yield "all", split, "classifier", name, *said
    if "truth" not in obs:
        return
    for batch, part in [("all", query), *query.groupby("batch")]:
        for name, sure in columns.items():
            said = (part[key] for key in ("truth", "predicted_label", sure))
            yield batch, "query", "classifier", name, *said
        yield batch, "query", "knn", "raw", part["truth"], part["knn_label"], part["knn_sure"]


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


def observed(path: Path) -> pd.DataFrame:
    """obs of an atlas; that of a reference's latent is given what an atlas adds."""
    from atlasmap.transfer import label_table, soft_labels_of

    adata = anndata.read_h5ad(path)
    if "role" in adata.obs:
        return adata.obs
    predicted = label_table(soft_labels_of(adata), adata.obs_names)
    return adata.obs.assign(role="reference", knn_uncertainty=np.nan).join(predicted)


def score_run(run: LabelRun, unlabeled: str) -> dict[str, list[pd.DataFrame]]:
    """Tables of one mapping, each row keyed by seed, variant, strategy, batch, split, method."""
    from atlasmap.evaluation.classification import score

    obs = as_strings(observed(run.atlas))
    known = set(obs.loc[obs["role"] == "reference", "label"]) - {unlabeled}
    tables = {name: [] for name in ("summary", "per_class", "confusion", "reliability", "trust")}
    trust = trust_rows(run, obs, known, unlabeled)
    tables["trust"].append(pd.DataFrame(trust, columns=None if trust else TRUST_KEYS))
    for batch, split, method, probabilities, *of_cells in groups(obs):
        scored = score(*(column.to_numpy() for column in of_cells), known, unlabeled)
        if scored is None:
            continue
        strategy = run.strategy if split == "query" else ""
        key = {"seed": run.seed, "variant": run.variant, "strategy": strategy, "batch": batch}
        key |= {"split": split, "method": method, "probabilities": probabilities}
        key |= {"level": "label"}
        for name in ("summary", "per_class", "confusion", "reliability"):
            if probabilities == "raw" or name in ("summary", "reliability"):  # the labels are one
                part = getattr(scored, name)
                tables[name].append(part.assign(**key)[[*key, *part]])
    return tables


def score_labels(*, runs: list[LabelRun], out: Path, unlabeled: str = "Unknown") -> None:
    """Score predicted labels where the truth is known.

    Parameters
    ----------
    runs
        Mappings to score (JSON).
    out
        Folder: classification.csv, classification_per_class.csv, confusion.csv, reliability.csv,
        trust.csv (prediction sets and verdicts).
    unlabeled
        What cells without a label are called.
    """
    scored = [score_run(run, unlabeled) for run in runs]
    for name, file in [
        ("summary", "classification"),
        ("per_class", "classification_per_class"),
        ("confusion", "confusion"),
        ("reliability", "reliability"),
        ("trust", "trust"),
    ]:
        # The reference's own rows come with every strategy.
        whole = pd.concat([part for tables in scored for part in tables[name]], ignore_index=True)
        with written_aside(out / f"{file}.csv") as aside:
            whole.drop_duplicates().to_csv(aside, index=False)


def score_embeddings(
    *,
    runs: list[EmbeddingRun],
    counts: list[Path],
    out: Path,
    seed: int = 0,
    unlabeled: str = "Unknown",
    benchmark: BenchmarkSettings = BenchmarkSettings(),
) -> None:
    """scib-metrics of embeddings of one seed.

    Parameters
    ----------
    runs
        Embeddings to score (JSON).
    counts
        Prepared reference and query batches, for the unintegrated PCA.
    out
        Table (.csv).
    seed
        Seed the embeddings were trained with.
    unlabeled
        What cells without a label are called.
    benchmark
        Settings.
    """
    import scib_metrics

    from atlasmap.evaluation.scib import score_embedding, use_compile_cache

    use_compile_cache()
    rows, pca = [], PcaByCells(counts)
    for run in runs:
        cells, labelled = pca.embedded(run, unlabeled)
        exact = len(cells.x) <= benchmark.split_above
        values = score_embedding(
            cells, labelled, benchmark.n_neighbors, exact=exact, name=run.embedding
        )
        key = {"seed": seed, "embedding": run.embedding, "cells": run.cells, "n": len(cells.x)}
        about = {"n_labelled": int(labelled.sum()), "scib_metrics": scib_metrics.__version__}
        rows.append(key | values | about)
    with written_aside(out) as aside:
        pd.DataFrame(rows).to_csv(aside, index=False)


class PcaByCells:
    """The unintegrated PCA of reference cells, and of all cells, each computed once."""

    def __init__(self, counts: list[Path]):
        self.paths, self.known = counts, {}

    def of(self, cells: str) -> tuple[np.ndarray, np.ndarray]:
        """Components (cells × components) and the batch of each cell, in the files' order."""
        from atlasmap.evaluation.scib import unintegrated_pca
        from atlasmap.mapping import joined

        if cells not in self.known:
            paths = self.paths[:1] if cells == "reference" else self.paths
            whole = joined([anndata.read_h5ad(path) for path in paths])
            batch = whole.obs["batch"].astype(str).to_numpy()
            self.known[cells] = unintegrated_pca(whole.X), batch
        return self.known[cells]

    def embedded(self, run: EmbeddingRun, unlabeled: str):
        """The cells of a run, and a mask of those whose label is known."""
        from atlasmap.evaluation.scib import Embedded
        from atlasmap.minified import latent_of

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
