"""Simulated atlases of the yardstick: few batches, and shifts that differ by label."""

import anndata
import numpy as np
from scipy import sparse

from atlasmap.data.simulate import simulate
from atlasmap.settings import SimulateSettings

FEW, BY_LABEL = "simulated_few_batches", "simulated_shifts_by_label"
SIZE = {"n_cells": 3000, "n_genes": 1000}
SHIFT = 0.6  # standard deviation of a label's own logarithmic shift, of a tenth of the genes


def atlas(name: str) -> anndata.AnnData:
    """One of them; L3.1 is in its query alone."""
    if name == FEW:
        return simulate(SimulateSettings(**SIZE, n_reference_batches=2, seed=5))
    out = simulate(SimulateSettings(**SIZE, n_reference_batches=4, seed=6))
    rng, counts = np.random.default_rng(7), out.X.toarray()
    query = (out.obs["role"] == "query").to_numpy()
    for label in np.unique(out.obs["cell_type"]):
        moved = np.exp(rng.normal(0, SHIFT, out.n_vars) * (rng.random(out.n_vars) < 0.1))
        own = query & (out.obs["cell_type"] == label).to_numpy()
        counts[own] = rng.poisson(counts[own] * moved)
    out.X = sparse.csr_matrix(counts.astype(np.float32))
    return out
