"""Tables of the card: fit of the model to its data, and accuracy of labels."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from atlasmap.bundle import Bundle
from atlasmap.data.counts import as_csr, matrix_at
from atlasmap.data.genes import places
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS, Registry
from atlasmap.errors import AtlasmapError, listed
from atlasmap.evaluation import criticism
from atlasmap.evaluation.classification import score
from atlasmap.labels.knn import soft_labels_of
from atlasmap.mapping.encode import encode
from atlasmap.models.random import keyed_seed
from atlasmap.settings import CardSettings
from atlasmap.training.cells import Cells


@dataclass(frozen=True)
class Tables:
    """Tables of a card; None or empty if their input was not given."""

    variation: pd.DataFrame | None
    expression: dict[str, pd.DataFrame]
    classification: pd.DataFrame | None


def counts_of(
    cells: anndata.AnnData, latent: anndata.AnnData, registry: Registry, layer: str
) -> sparse.csr_matrix:
    """Counts of the latent's cells in the model's gene order; raises CELLS_DIFFER, GENES_DIFFER."""
    at = cells.obs_names.get_indexer(latent.obs_names)
    if (at < 0).any() or cells.obs_names.has_duplicates:
        lost = latent.obs_names[at < 0]
        raise AtlasmapError(
            "CELLS_DIFFER",
            expected=f"the {latent.n_obs} cells of reference_latent.h5ad in the counts, each once",
            found=f"{len(lost)} are not there: {listed(lost, 4)}",
            mend="give the prepared reference of the run that trained this bundle",
        )
    genes = places(cells.var_names, pd.Index(registry.genes))
    if (genes < 0).any():
        raise AtlasmapError(
            "GENES_DIFFER",
            expected=f"the model's {len(registry.genes)} genes in the counts",
            found=f"{int((genes < 0).sum())} are not there",
            mend="give the prepared reference of the run that trained this bundle",
        )
    return as_csr(matrix_at(cells, layer, "the cells")[at][:, genes])


def as_cells(
    counts: sparse.csr_matrix, latent: anndata.AnnData, cells: anndata.AnnData, registry: Registry
) -> Cells:
    """Encode the reference's cells for its model; proteins are taken from `cells`."""
    obs = latent.obs.copy()
    prepared = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=pd.Index(registry.genes)))
    if PROTEINS in cells.obsm:
        at = cells.obs_names.get_indexer(latent.obs_names)
        prepared.obsm[PROTEINS] = cells.obsm[PROTEINS][at]
        prepared.uns[PROTEIN_NAMES] = cells.uns[PROTEIN_NAMES]
    return encode(registry, prepared, torch.device("cpu"))


def chosen_cells(n: int, most: int) -> np.ndarray:
    """Indices of all `n` cells, or of a sample of `most` cells with a fixed seed."""
    if n <= most:
        return np.arange(n)
    rng = np.random.default_rng(keyed_seed(0, "card"))
    return np.sort(rng.choice(n, most, replace=False))


def tables_of(
    bundle: Bundle, latent: anndata.AnnData, cells: anndata.AnnData | None, layer: str,
    settings: CardSettings,
) -> Tables:  # fmt: skip
    """Tables of posterior predictive checks (if `cells` with counts are given) and of the
    classifier's accuracy (if there is a classifier).

    Raises CELLS_DIFFER, GENES_DIFFER.
    """
    registry, split = bundle.registry, latent.obs["split"].astype(str).to_numpy()
    labels = latent.obs["label"].astype(str).to_numpy()
    classification = None
    if "soft_labels" in latent.obsm:
        classification = classified(latent, labels, split, registry.unlabeled_category)
    if cells is None:
        return Tables(None, {}, classification)
    at = chosen_cells(latent.n_obs, settings.max_cells)
    latent, split, labels = latent[at].copy(), split[at], labels[at]
    counts = counts_of(cells, latent, registry, layer)
    encoded = as_cells(counts, latent, cells, registry)
    model = criticism.mean_variation(bundle.model, encoded, settings.n_samples)
    raw = criticism.variation(iter([counts]))
    expression, known = {}, labels != registry.unlabeled_category
    if len(set(labels[known])) > 1:
        chunks = criticism.posterior_predictive(bundle.model, encoded, sample=0)
        drawn = sparse.vstack(list(chunks)).tocsr()
        expression = {
            method: criticism.expression_table(counts[known], drawn[known], labels[known], method)
            for method in criticism.METHODS
        }
    return Tables(criticism.variation_table(model, raw, split), expression, classification)


def classified(
    latent: anndata.AnnData, labels: np.ndarray, split: np.ndarray, unlabeled: str
) -> pd.DataFrame:
    """Table of the classifier's accuracy, macro-F1 and calibration error on training and validation
    cells."""
    soft, rows = soft_labels_of(latent), []
    for part in ("train", "validation"):
        at = split == part
        found = score(
            labels[at], soft.predicted()[at].astype(str), soft.confidence()[at], set(soft.names),
            unlabeled,
        )  # fmt: skip
        if found is not None:
            rows.append({"part": part} | found.summary.iloc[0].to_dict())
    return pd.DataFrame(rows).drop(columns="n_not_in_reference", errors="ignore")
