"""The reference in latent space: posterior, library sizes and metadata, without counts.

It can be shared where counts cannot. Names are those of scvi-tools' minified data, so that both
tools can read it: obsm `scanvi_latent_qzm`, `scanvi_latent_qzv`, obs `observed_lib_size`.
"""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.depth import keep_tree
from atlasmap.data.label_tree import LabelTree
from atlasmap.data.registry import UNLABELED, Registry
from atlasmap.errors import AtlasmapError, listed
from atlasmap.mapping.embed import Embedding

TYPE_KEY = "_scvi_adata_minify_type"
TYPE = "latent_posterior_parameters"
LIBRARY = "observed_lib_size"
MEAN, VARIANCE = "_latent_qzm", "_latent_qzv"


def minified(
    obs: pd.DataFrame, said: Embedding, library: np.ndarray, kind: str, registry: Registry
) -> anndata.AnnData:
    """Build the minified AnnData of a reference from obs, embedding and library sizes (cells).

    `kind` (scvi, scanvi, totalvi) is the prefix of the obsm keys. X is empty (cells × genes); soft
    labels are in obsm, the names of their columns in uns soft_label_names.
    """
    var = pd.DataFrame(index=pd.Index(registry.genes))
    if registry.symbols:
        var["symbol"] = registry.symbols
    out = anndata.AnnData(sparse.csr_matrix((len(obs), len(var)), dtype=np.float32), obs, var)
    out.obs[LIBRARY] = np.asarray(library, np.float32)
    out.obsm[kind + MEAN], out.obsm[kind + VARIANCE] = said.mean, said.var
    out.uns[TYPE_KEY], out.uns[UNLABELED] = TYPE, registry.unlabeled_category
    if registry.label_parents:
        keep_tree(out, LabelTree(registry.label_parents))
    if said.soft_labels is not None:
        out.obsm["soft_labels"] = said.soft_labels
        out.uns["soft_label_names"] = np.array(registry.labels, dtype=object)
    return out


def latent_of(adata: anndata.AnnData) -> np.ndarray:
    """Posterior mean (cells × latent) of a mapped query, an atlas or a minified reference.

    Raises LATENT_MISSING.
    """
    return of_posterior(adata, "X_latent", MEAN)


def variance_of(adata: anndata.AnnData) -> np.ndarray:
    """Posterior variance (cells × latent) of a mapped query, an atlas or a minified reference.

    Raises LATENT_MISSING.
    """
    return of_posterior(adata, "latent_var", VARIANCE)


def of_posterior(adata: anndata.AnnData, name: str, ending: str) -> np.ndarray:
    """Return obsm[name], or the only element with scvi-tools' `ending`; raises LATENT_MISSING."""
    if name in adata.obsm:
        return adata.obsm[name]
    # scvi-tools before 1.2 began the names with an underscore, or with X
    found = [key for key in adata.obsm if key.endswith(ending)]
    if len(found) != 1:
        raise AtlasmapError(
            "LATENT_MISSING",
            expected=f"one latent in obsm: {name}, or a name that ends in {ending}",
            found=f"obsm: {listed(adata.obsm)}",
            mend="give reference_latent.h5ad of a bundle, or data that scvi-tools minified",
        )
    return adata.obsm[found[0]]
