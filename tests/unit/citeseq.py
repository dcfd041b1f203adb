"""Prepared CITE-seq cells of three types, and settings small enough for tests."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS
from atlasmap.settings import HeadTrainSettings, TotalviSettings, TotalviTrainSettings

SETTINGS = TotalviSettings(
    n_hidden=32, n_latent=5, train=TotalviTrainSettings(max_epochs=100, batch_size=64),
    classifier=HeadTrainSettings(max_epochs=30),
)  # fmt: skip
N_GENES, N_PROTEINS, LABELS = 60, 12, ("a", "b", "c")


def citeseq(batches: dict[str, int], seed: int = 0, lacking: dict[str, list[int]] | None = None):
    """Prepared cells of three types; a protein of `lacking` was not measured in that batch."""
    rng = np.random.default_rng(seed)
    of_type = np.random.default_rng(7)  # types are the same whatever the cells
    rates = of_type.gamma(0.5, 4.0, (3, N_GENES))
    has = of_type.random((3, N_PROTEINS)) < 0.4
    parts = []
    for name, n in batches.items():
        kind = rng.integers(0, 3, n)
        shift = rng.normal(0, 0.2, N_GENES)
        counts = rng.poisson(rates[kind] * np.exp(shift) + 0.05)
        mean = np.where(has[kind], 120.0, 6.0) * rng.lognormal(0, 0.2, N_PROTEINS)
        proteins = rng.negative_binomial(5, 5 / (5 + mean)).astype(np.float32)
        proteins[:, (lacking or {}).get(name, [])] = np.nan
        obs = pd.DataFrame(
            {"batch": name, "label": np.array(LABELS)[kind], "dataset": "d"},
            index=[f"{name}_{k}" for k in range(n)],
        )
        part = anndata.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs)
        part.obsm[PROTEINS] = proteins
        parts.append(part)
    out = anndata.concat(parts)
    out.var_names = [f"g{k}" for k in range(N_GENES)]
    out.uns[PROTEIN_NAMES] = [f"p{k}" for k in range(N_PROTEINS)]
    return out
