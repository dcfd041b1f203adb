"""scib-metrics of the embeddings of one seed, all on the same cells: benchmark/scib.csv."""

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.data.registry import unlabeled_in
from atlasmap.errors import AtlasmapError
from atlasmap.evaluation.samples import combined, draws
from atlasmap.evaluation.scib import Embedded, score_embedding, unintegrated_pca
from atlasmap.labels.compile_cache import keep_jax, keep_numba
from atlasmap.mapping.given import read_reference
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.query import joined
from atlasmap.settings import BenchmarkSettings


@dataclass(frozen=True)
class EmbeddingRun:
    """One embedding to score.

    `cells`: reference or atlas; `path`: .h5ad with its latent, or for pca any .h5ad of these cells;
    `model`, `variant` and `strategy` that it comes from.
    """

    embedding: str
    cells: str
    path: Path
    model: str = ""
    variant: str = ""
    strategy: str = ""


def score_embeddings(
    runs: list[EmbeddingRun], counts: list[Path], seed: int, settings: BenchmarkSettings
) -> pd.DataFrame:
    """Table of scores, one row per embedding.

    `counts`: files of the prepared reference and query batches, for the unintegrated PCA. Raises
    CELLS_DIFFER.
    """
    import scib_metrics

    keep_jax()
    keep_numba("pynndescent")
    rows, pca = [], PcaByCells(counts)
    for run in runs:
        cells, labelled = pca.embedded(run)
        samples = draws(cells.strata, settings.max_cells, settings.n_samples)
        exact = len(samples[0]) <= settings.split_above
        values = [
            score_embedding(
                cells.only(at), labelled[at], settings.n_neighbors, exact=exact, name=run.embedding
            )
            for at in samples
        ]
        key = {"seed": seed, "embedding": run.embedding, "cells": run.cells, "n": len(cells.x)}
        about = {"n_labelled": int(labelled.sum()), "scib_metrics": scib_metrics.__version__}
        about |= {name: getattr(run, name) for name in ("model", "variant", "strategy")}
        of_samples = {"n_scored": len(samples[0]), "n_samples": len(samples)}
        rows.append(key | combined(values) | about | of_samples)
    return pd.DataFrame(rows)


class PcaByCells:
    """Unintegrated PCA of the reference cells, and of all cells; each is computed once."""

    def __init__(self, counts: list[Path]):
        self.paths, self.known = counts, {}

    def of(self, cells: str) -> tuple[np.ndarray, np.ndarray]:
        """Principal components (cells × components) and the batch of each cell, in the order of
        the files."""
        if cells not in self.known:
            paths = self.paths[:1] if cells == "reference" else self.paths
            whole = joined([anndata.read_h5ad(path) for path in paths])
            batch = whole.obs["batch"].astype(str).to_numpy()
            self.known[cells] = unintegrated_pca(whole.X), batch
        return self.known[cells]

    def embedded(self, run: EmbeddingRun) -> tuple[Embedded, np.ndarray]:
        """The cells of an embedding, and the mask of those with a known label; raises
        CELLS_DIFFER."""
        adata = read_reference(run.path)
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
        labelled = label != unlabeled_in(adata)
        return Embedded(x, pca, batch, label if labelled.any() else None), labelled
