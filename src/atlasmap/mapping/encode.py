"""Conversion of prepared cells to tensors, and the shape of a model for them."""

import anndata
import numpy as np
import torch

from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError, listed
from atlasmap.models.vae import Shape
from atlasmap.training.cells import Cells
from atlasmap.training.streamed import counts_of


def shape_of(registry: Registry, library: tuple | None = None) -> Shape:
    """Return the shape of a model for this registry; `library`: see `Shape`."""
    sizes = len(registry.genes), registry.n_categories, len(registry.continuous)
    return Shape(*sizes, library, len(registry.proteins))


def encode(registry: Registry, adata: anndata.AnnData, device: torch.device) -> Cells:
    """Convert prepared cells to tensors on `device`; without `label` in obs, cells are unlabelled.

    Raises GENES_DIFFER, CATEGORY_UNKNOWN, PROTEINS_DIFFER.
    """
    if list(adata.var_names) != registry.genes:
        raise AtlasmapError(
            "GENES_DIFFER",
            expected=f"the model's {len(registry.genes)} genes in their order",
            found=f"{adata.n_vars} genes: {listed(adata.var_names, 4)}",
            mend="prepare the cells with this reference",
        )

    def there(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, device=device)

    obs = adata.obs
    labels = registry.label_codes(obs)
    may_be = registry.may_be() if (labels >= len(registry.labels)).any() else None
    continuous = obs[registry.continuous].to_numpy(np.float32) if registry.continuous else None
    return Cells(
        counts_of(adata.X, device),
        there(registry.codes(obs)),
        None if continuous is None else there(continuous),
        there(labels),
        np.asarray(adata.obs_names),
        there(registry.protein_counts(adata)) if registry.proteins else None,
        may_be=None if may_be is None else there(may_be),
    )
