"""The atlas: reference and query in one space, with labels and a map, without counts."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from atlasmap.projection import FittedMap, place
from atlasmap.settings import TransferSettings
from atlasmap.transfer import knn_soft_labels, label_table, soft_labels_of


@dataclass(frozen=True)
class Atlas:
    """`adata`: obs batch, role, label, predicted_label …, obsm X_latent, X_umap. `labels` and
    `soft_labels` (None without labels): query cells, a row each."""

    adata: anndata.AnnData
    labels: pd.DataFrame | None
    soft_labels: pd.DataFrame | None


def query_labels(
    reference: anndata.AnnData, query: anndata.AnnData, unlabeled: str, settings: TransferSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Label table and soft labels of query cells; kNN asks the labelled reference cells."""
    soft = soft_labels_of(query)
    table = label_table(soft, query.obs_names)
    table.insert(0, "batch", query.obs["batch"].astype(str))
    labelled = (reference.obs["label"].astype(str) != unlabeled).to_numpy()
    knn = knn_soft_labels(
        reference.obsm["X_latent"][labelled],
        reference.obs["label"].astype(str).to_numpy()[labelled],
        query.obsm["X_latent"],
        settings.n_neighbors,
    )
    table["knn_label"] = knn.predicted()
    table["knn_uncertainty"] = 1 - knn.confidence()
    table.index.name = "cell_id"
    frame = soft.frame(query.obs_names)
    frame.insert(0, "batch", table["batch"])
    frame.index.name = "cell_id"
    return table, frame


def unique_names(reference: pd.Index, queries: list[anndata.AnnData]) -> list[anndata.AnnData]:
    """Query cells whose names the reference or another batch has too get their batch's name."""
    names = pd.Index(np.concatenate([reference, *(q.obs_names for q in queries)]))
    if names.has_duplicates:
        for query in queries:
            query.obs_names = query.obs["batch"].astype(str) + ":" + query.obs_names.astype(str)
    return queries


def positions(fitted: FittedMap, latent: anndata.AnnData) -> np.ndarray:
    """Where cells are in the map, each batch placed by itself (joint mappings hold several)."""
    out = np.empty((latent.n_obs, 2), np.float32)
    batches = latent.obs["batch"].astype(str).to_numpy()
    for batch in np.unique(batches):
        out[batches == batch] = place(fitted, latent.obsm["X_latent"][batches == batch])
    return out


def assemble(
    reference: anndata.AnnData, queries: list[anndata.AnnData], truth: pd.Series | None,
    fitted: FittedMap, unlabeled: str, settings: TransferSettings,
) -> Atlas:  # fmt: skip
    """Put the reference's latent and the queries' together.

    `truth` (by batch and cell name) is copied into obs for scoring and colouring, nothing else.
    """
    parts, labels, softs = [], [], []
    reference = reference.copy()
    reference.obs["role"] = "reference"
    reference.obsm["X_umap"] = place(fitted, reference.obsm["X_latent"])
    classified = "soft_labels" in reference.obsm
    if truth is not None:
        reference.obs["truth"] = reference.obs["label"].astype(str)
        for query in queries:
            at = pd.MultiIndex.from_arrays([query.obs["batch"].astype(str), query.obs_names])
            query.obs["truth"] = truth.reindex(at).fillna(unlabeled).to_numpy()
    if classified:
        predicted = label_table(soft_labels_of(reference), reference.obs_names)
        reference.obs = reference.obs.join(predicted)
    for query in unique_names(reference.obs_names, queries):
        query.obs["role"], query.obs["label"], query.obs["split"] = "query", unlabeled, "query"
        query.obsm["X_umap"] = positions(fitted, query)
        if classified:
            table, frame = query_labels(reference, query, unlabeled, settings)
            query.obs = query.obs.join(table.drop(columns="batch"))
            labels.append(table)
            softs.append(frame)
        parts.append(query)
    for part in (reference, *parts):
        tidy_obs(part.obs, unlabeled)
        part.obsm = {key: part.obsm[key] for key in ("X_latent", "X_umap")}
    whole = anndata.concat([reference, *parts], join="outer")
    tidy_obs(whole.obs, unlabeled)
    if not classified:
        return Atlas(whole, None, None)
    return Atlas(whole, pd.concat(labels), pd.concat(softs))


def tidy_obs(obs: pd.DataFrame, unlabeled: str) -> None:
    """Text columns as categories without gaps (nulls are what other readers stumble over)."""
    for key in obs:
        if obs[key].dtype.kind not in "fiub":
            obs[key] = pd.Categorical(obs[key].astype(object).fillna(unlabeled).astype(str))
    obs.rename_axis(index="cell_id", inplace=True)
