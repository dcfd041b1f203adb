"""scib-metrics (Luecken et al. 2022) of one embedding.

Metrics, numbers of neighbours and weights are those of scib_metrics.Benchmarker. The value of a
metric that cannot be computed is the text `skipped(reason)`; averages leave it out.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pandas as pd
import scipy.sparse.linalg

log = logging.getLogger("atlasmap")
BIO = ("isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi_knn")
BATCH = ("bras", "ilisi_knn", "kbet_per_label", "graph_connectivity", "pcr_comparison")
NEED_LABELS = {*BIO, "bras", "kbet_per_label", "graph_connectivity"}
AGGREGATES = ("bio_conservation", "batch_correction", "total")


@dataclass(frozen=True)
class Embedded:
    """Cells to score: embedding `x` (cells × dimensions), `unintegrated` (PCA of the same cells,
    cells × components), `batch` and `label` of each cell (label: None if no cell has one)."""

    x: np.ndarray
    unintegrated: np.ndarray
    batch: np.ndarray
    label: np.ndarray | None

    @property
    def strata(self) -> np.ndarray:
        """Each cell's combination of batch and label, as a number."""
        label = np.zeros(len(self.batch), int) if self.label is None else self.label
        return pd.DataFrame({"batch": self.batch, "label": label}).groupby(
            ["batch", "label"], observed=True).ngroup().to_numpy()  # fmt: skip

    def only(self, keep: np.ndarray) -> "Embedded":
        """Return a subset of the cells (mask or indices)."""
        label = None if self.label is None else self.label[keep]
        return Embedded(self.x[keep], self.unintegrated[keep], self.batch[keep], label)


def neighbors(x: np.ndarray, k: int, exact: bool):
    """k nearest neighbours of each cell, the first being the cell itself: `exact`, or approximate
    by NN-descent."""
    from scib_metrics.nearest_neighbors import NeighborsResults, pynndescent
    from sklearn.neighbors import NearestNeighbors

    if not exact:
        return pynndescent(x, n_neighbors=k, random_state=0, n_jobs=1)
    distances, indices = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(x)
    return NeighborsResults(indices=indices, distances=distances)


def metric_functions(cells: Embedded, graph) -> dict[str, Callable]:
    """Metric → function without arguments that computes it; `kmeans` computes NMI and ARI."""
    from scib_metrics import metrics as m

    x, batch, label = cells.x, cells.batch, cells.label

    def near(k):
        return graph.subset_neighbors(min(k, graph.n_neighbors))

    return {
        "isolated_labels": lambda: m.isolated_labels(x, label, batch),
        "kmeans": lambda: m.nmi_ari_cluster_labels_kmeans(x, label),
        "silhouette_label": lambda: m.silhouette_label(x, label),
        "clisi_knn": lambda: m.clisi_knn(near(90), label),
        "bras": lambda: m.bras(x, label, batch),
        "ilisi_knn": lambda: m.ilisi_knn(near(90), batch),
        "kbet_per_label": lambda: m.kbet_per_label(near(50), batch, label),
        "graph_connectivity": lambda: m.graph_connectivity(near(15), label),
        "pcr_comparison": lambda: m.pcr_comparison(cells.unintegrated, x, batch, categorical=True),
    }


def why_not(name: str, cells: Embedded) -> str | None:
    """Why a metric cannot be computed on these cells; None if it can."""
    if name in NEED_LABELS and cells.label is None:
        return "no labels"
    if name in NEED_LABELS and len(set(cells.label)) < 2:
        return "one label only"
    needs_batches = name in (*BATCH, "isolated_labels") and name != "graph_connectivity"
    if needs_batches and len(set(cells.batch)) < 2:
        return "one batch only"
    if name in ("ilisi_knn", "clisi_knn") and len(cells.x) <= 90:
        return f"{len(cells.x)} cells, 91 needed"
    if name == "kbet_per_label" and len(cells.x) <= 50:
        return f"{len(cells.x)} cells, 51 needed"
    return None


@contextlib.contextmanager
def same_eigenvectors() -> Iterator[None]:
    """Context manager that fixes the start vector of scipy's eigsh.

    kBET's diffusion map gives none, and scipy then uses an unseeded random one: results of cells
    close to a threshold would change from run to run.
    """
    plain = scipy.sparse.linalg.eigsh

    def seeded(matrix, *args, v0=None, **kwargs):
        if v0 is None:
            v0 = np.random.default_rng(0).uniform(-1, 1, matrix.shape[0])
        return plain(matrix, *args, v0=v0, **kwargs)

    with mock.patch.object(scipy.sparse.linalg, "eigsh", seeded):
        yield


def compute(function: Callable) -> float | str | dict:
    """Value of a metric, or `skipped(reason)` if it fails."""
    try:
        with same_eigenvectors():
            return function()
    except Exception as error:
        return f"skipped({type(error).__name__}: {str(error).splitlines()[0][:80]})"


def aggregate(values: dict[str, float | str]) -> dict[str, float | str]:
    """Aggregate scores: means over the metrics that were computed, and total = 0.6 bio conservation
    + 0.4 batch correction, as in scib."""
    means = []
    for names in (BIO, BATCH):
        numbers = [values[name] for name in names if not isinstance(values[name], str)]
        means.append(float(np.mean(numbers)) if numbers else "skipped(no metric)")
    if any(isinstance(mean, str) for mean in means):
        return dict(zip(AGGREGATES, [*means, "skipped(bio or batch missing)"], strict=True))
    return dict(zip(AGGREGATES, [*means, 0.6 * means[0] + 0.4 * means[1]], strict=True))


def score_embedding(
    cells: Embedded, labelled: np.ndarray, k: int, *, exact: bool, name: str = ""
) -> dict:
    """All metrics and aggregate scores of one embedding: numbers, or `skipped(reason)`.

    Metrics that need labels are computed on the cells in the mask `labelled`, the others on all
    cells. `k`: neighbours per cell.
    """
    of_all = [metric for metric in (*BIO, *BATCH) if metric not in NEED_LABELS]
    if labelled.all() or not labelled.any():
        values = score_metrics(cells, (*BIO, *BATCH), k, exact, name)
    else:
        values = score_metrics(cells, of_all, k, exact, name)
        values |= score_metrics(cells.only(labelled), sorted(NEED_LABELS), k, exact, name)
    values = {metric: values[metric] for metric in (*BIO, *BATCH)}
    return values | aggregate(values)


def score_metrics(cells: Embedded, metrics, k: int, exact: bool, name: str) -> dict:
    """Values of `metrics` for one set of cells, all on the same neighbour graph."""
    graph = neighbors(cells.x, min(k, len(cells.x) - 1), exact)
    functions = metric_functions(cells, graph)
    values: dict[str, float | str] = {}
    for metric in metrics:
        reason = why_not(metric, cells)
        if reason:
            values[metric] = f"skipped({reason})"
        elif metric not in values:
            start = time.monotonic()
            found = compute(functions["kmeans" if metric.startswith("kmeans") else metric])
            if metric.startswith("kmeans"):
                pair = found if isinstance(found, dict) else dict.fromkeys(("nmi", "ari"), found)
                values |= {f"kmeans_{key}": as_value(pair[key]) for key in ("nmi", "ari")}
            else:
                values[metric] = as_value(found)
            log.info("%s: %s in %.1f s", name, metric, time.monotonic() - start)
    return values


def as_value(found) -> float | str:
    """A finite number as float; otherwise `skipped(reason)`."""
    if isinstance(found, str):
        return found
    number = float(found)
    return number if np.isfinite(number) else "skipped(not a number)"


def unintegrated_pca(counts) -> np.ndarray:
    """First 50 principal components of log1p counts per 10,000 (cells × components)."""
    import anndata
    import scanpy

    adata = anndata.AnnData(counts.copy())
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    n = min(50, adata.n_obs - 1, adata.n_vars - 1)
    scanpy.pp.pca(adata, n_comps=n, random_state=0)
    return adata.obsm["X_pca"]
