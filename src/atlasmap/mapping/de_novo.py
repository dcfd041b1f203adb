"""De novo: reference and query trained jointly, the query unlabelled.

As in the scANVI label-transfer tutorial; there is no reference model.
"""

import anndata
import pandas as pd

from atlasmap.data.depth import GIVEN
from atlasmap.data.registry import unlabeled_in
from atlasmap.mapping.embed import Embedding
from atlasmap.mapping.latent import latent_of, variance_of
from atlasmap.mapping.query import joined, query_latent


def with_query(reference: anndata.AnnData, queries: list[anndata.AnnData]) -> anndata.AnnData:
    """Concatenate prepared reference and query batches: X counts, obs with batch, label, role.

    Query cells are unlabelled; their obs `truth` is dropped.
    """
    whole = anndata.concat(
        [reference, joined(queries)], join="outer", keys=["reference", "query"], label="role",
        uns_merge="first",
    )  # fmt: skip
    whole.var, unlabeled = reference.var.copy(), unlabeled_in(reference)
    whole.obs = whole.obs.drop(columns="truth", errors="ignore")
    named = whole.obs["label"].astype(object).where(whole.obs["role"] == "reference", unlabeled)
    whole.obs["label"] = pd.Categorical(named.astype(str))
    return whole


def apart(latent: anndata.AnnData) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Split the latent of a jointly trained model into the reference's cells and the query's, the
    latter in the format of a mapping."""
    of_reference = (latent.obs["role"] == "reference").to_numpy()
    query = latent[~of_reference]
    soft = query.obsm.get("soft_labels")
    said = Embedding(latent_of(query), variance_of(query), soft)
    keep = [key for key in query.obs if key not in ("label", GIVEN, "role", "split")]
    labels = [str(name) for name in latent.uns.get("soft_label_names", [])]
    return latent[of_reference].copy(), query_latent(query, said, labels, keep)
