"""scib-metrics (Luecken et al. 2022) of one embedding, each metric guarded by what it needs.

Metrics, neighbour numbers and weights are those of scib_metrics.Benchmarker. A metric that cannot
be computed is the text `skipped(reason)` and takes no part in an average.
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
    """Cells to score: `x` (cells × dimensions), `unintegrated` (cells × components, PCA of the same
    cells), `batch` and `label` (cells; label None where no cell has one)."""

    x: np.ndarray
    unintegrated: np.ndarray
    batch: np.ndarray
    label: np.ndarray | None

    @property
    def strata(self) -> np.ndarray:
        """Which batch and label each cell has, as a number."""
        label = np.zeros(len(self.batch), int) if self.label is None else self.label
        return pd.DataFrame({"batch": self.batch, "label": label}).groupby(
            ["batch", "label"], observed=True).ngroup().to_numpy()  # fmt: skip

    def only(self, keep: np.ndarray) -> "Embedded":
        """The cells of a mask, or at these places."""
        label = None if self.label is None else self.label[keep]
        return Embedded(self.x[keep], self.unintegrated[keep], self.batch[keep], label)


def neighbors(x: np.ndarray, k: int, exact: bool):
    """k neighbours of each cell, itself the first: exact, or by NN-descent for many cells."""
    from scib_metrics.nearest_neighbors import NeighborsResults, pynndescent
    from sklearn.neighbors import NearestNeighbors

    if not exact:
        return pynndescent(x, n_neighbors=k, random_state=0, n_jobs=1)
    distances, indices = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(x)
    return NeighborsResults(indices=indices, distances=distances)


def metric_functions(cells: Embedded, graph) -> dict[str, Callable]:
    """Each metric as a function of nothing; k-means gives two at once."""
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
    """kBET's diffusion map calls eigsh without a start vector, for which scipy then draws fresh
    entropy: cells at a threshold would fall either way from run to run."""
    plain = scipy.sparse.linalg.eigsh

    def seeded(matrix, *args, v0=None, **kwargs):
        if v0 is None:
            v0 = np.random.default_rng(0).uniform(-1, 1, matrix.shape[0])
        return plain(matrix, *args, v0=v0, **kwargs)

    with mock.patch.object(scipy.sparse.linalg, "eigsh", seeded):
        yield


def compute(function: Callable) -> float | str | dict:
    """The metric, or why it failed."""
    try:
        with same_eigenvectors():
            return function()
    except Exception as error:
        return f"skipped({type(error).__name__}: {str(error).splitlines()[0][:80]})"


def aggregate(values: dict[str, float | str]) -> dict[str, float | str]:
    """Means over what could be computed; total = 0.6 bio + 0.4 batch, as scib weighs them."""
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
    """All metrics and aggregates of one embedding: numbers, or `skipped(reason)`.

    Metrics that need labels are computed on the cells of the mask `labelled`, others on all.
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
    """Some metrics of one set of cells, on one neighbour graph."""
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
    """A finite number, or `skipped(…)`."""
    if isinstance(found, str):
        return found
    number = float(found)
    return number if np.isfinite(number) else "skipped(not a number)"


def unintegrated_pca(counts) -> np.ndarray:
    """50 components of log1p counts scaled to 10,000 a cell (cells × components)."""
    import anndata
    import scanpy

    adata = anndata.AnnData(counts.copy())
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    n = min(50, adata.n_obs - 1, adata.n_vars - 1)
    scanpy.pp.pca(adata, n_comps=n, random_state=0)
    return adata.obsm["X_pca"]
