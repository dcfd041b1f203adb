"""Second opinions on a query's labels: other classifiers on the same latent, genes alone, and the
majority of all."""

import time

import anndata
import numpy as np
import pandas as pd

from atlasmap.labels.knn import SoftLabels, soft_labels_of, votes, weighted_neighbors
from atlasmap.labels.opinions import ON_LATENT, aligned, majority
from atlasmap.labels.verdict import Trust, seen_by
from atlasmap.mapping.latent import latent_of

KS = (5, 10, 20, 50, 100, 200)  # numbers of neighbours at which kNN's sensitivity is tested


def by_genes(
    trust: Trust, query: anndata.AnnData, rows: list[np.ndarray]
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Label probabilities of mapped cells from their genes (cells × labels; NaN for cells without
    counts of informative genes), and the weights of opinions for each batch.

    `rows`: indices of the cells of each batch.
    """
    found = [seen_by(trust, query[at]) for at in rows]
    out = np.empty(np.asarray(query.obsm["soft_labels"]).shape)
    for at, (_, batch) in zip(rows, found, strict=True):
        out[at] = batch.seen.opinion
    return out, [view.opinions for view, _ in found]


def second_opinions(
    reference: np.ndarray, labels: np.ndarray, query: anndata.AnnData, trust: Trust | None,
    n_neighbors: int, seed: int, unlabeled: str,
) -> tuple[pd.DataFrame, dict[str, float]]:  # fmt: skip
    """Table with columns {method} and {method}_confidence for each query cell, and the seconds of
    each method.

    `reference`: cells × latent; `labels`: those of its cells, all known; `query`: mapped cells with
    obsm X_latent and, with a classifier, soft_labels. The genes' opinion needs `trust`. A cell that
    a method cannot label is `unlabeled`, with confidence 0.
    """
    latent, opinions, seconds = latent_of(query), {}, {}
    names = sorted(set(labels))
    if "soft_labels" in query.obsm:
        soft = soft_labels_of(query)
        names, opinions["classifier"] = soft.names, soft.probabilities
    batch = query.obs["batch"].astype(str).to_numpy()
    rows = [np.flatnonzero(batch == name) for name in np.unique(batch)]
    weights: list[dict[str, float]] = [{}] * len(rows)
    if trust:
        start = time.perf_counter()
        opinions["genes"], weights = by_genes(trust, query, rows)
        seconds["genes"] = time.perf_counter() - start
    for name, fit in ON_LATENT.items():
        start = time.perf_counter()
        opinions[name] = aligned(fit(reference, labels, n_neighbors, seed)(latent), names)
        seconds[name] = time.perf_counter() - start
    everyone = np.empty((query.n_obs, len(names)))
    for at, own in zip(rows, weights, strict=True):
        everyone[at] = majority({name: said[at] for name, said in opinions.items()}, own)
    said = {name: SoftLabels(p, names) for name, p in (opinions | {"majority": everyone}).items()}
    table = {name: named(soft, unlabeled) for name, soft in said.items()}
    table |= {f"{name}_confidence": np.nan_to_num(soft.confidence()) for name, soft in said.items()}
    return pd.DataFrame(table), seconds | {"majority": sum(seconds.values())}


def named(soft: SoftLabels, unlabeled: str) -> np.ndarray:
    """Predicted label of each cell; `unlabeled` if its probabilities are NaN."""
    nothing = np.isnan(soft.probabilities).all(1)
    return np.where(nothing, unlabeled, soft.predicted().astype(str))


def knn_by_k(reference: np.ndarray, labels: np.ndarray, query: np.ndarray) -> pd.DataFrame:
    """Label of each query cell by kNN, for each number of neighbours in KS (cells × KS)."""
    ks = [k for k in KS if k <= len(reference)]
    return pd.DataFrame(
        {k: votes(weighted_neighbors(reference, query, k), labels).predicted() for k in ks}
    )
