"""De novo: no reference model is kept; reference and query are trained on together, the query
unlabelled (as in the scANVI label-transfer tutorial)."""

import anndata
import pandas as pd

from atlasmap.data.depth import GIVEN
from atlasmap.data.registry import unlabeled_in
from atlasmap.mapping.embed import Embedding
from atlasmap.mapping.latent import latent_of, variance_of
from atlasmap.mapping.query import joined, query_latent


def with_query(reference: anndata.AnnData, queries: list[anndata.AnnData]) -> anndata.AnnData:
    """Prepared reference and query batches as one reference: X counts, obs batch, label, role.

    True labels of the query are not taken along.
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
    """Split the latent of a joint model: the reference's cells, and the query's as mappings write
    them."""
    of_reference = (latent.obs["role"] == "reference").to_numpy()
    query = latent[~of_reference]
    soft = query.obsm.get("soft_labels")
    said = Embedding(latent_of(query), variance_of(query), soft)
    keep = [key for key in query.obs if key not in ("label", GIVEN, "role", "split")]
    labels = [str(name) for name in latent.uns.get("soft_label_names", [])]
    return latent[of_reference].copy(), query_latent(query, said, labels, keep)
