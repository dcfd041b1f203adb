"""Proteins of the simulated atlas: known background and foreground, missing panels, batch effects.

A protein is a marker of a lineage or of some types. In a cell it is foreground or not; counts are
negative binomial with a mean of efficiency × background, of which the foreground is a multiple. A
batch has an efficiency and an ambient background a protein, a cell its share of the ambient.
"""

import anndata
import numpy as np
import pandas as pd

from atlasmap.settings import SimulateSettings

LINEAGE_MARKERS = 0.6  # share of proteins that mark a whole lineage; others mark single types
TYPES_A_MARKER = 3  # types that the others mark
FOREGROUND_IN_MARKED, FOREGROUND_ELSEWHERE = 0.95, 0.02  # probability of a cell
BACKGROUND, BACKGROUND_SD = 6.0, 0.5  # median mean count, log standard deviation over proteins
AMBIENT_SD = 0.3  # of a protein's background from batch to batch (log)
CELL_SD = 0.3  # of a cell's share of the ambient (log)
FOLD, FOLD_SD = 14.0, 0.5  # foreground over background: median, log standard deviation
TYPE_FOLD_SD = 0.3  # of that from type to type
EFFICIENCY_SD = 0.2  # of a batch's efficiency for a protein (log)
INVERSE_DISPERSION = 6.0


def marked(types: list[str], n: int, rng: np.random.Generator) -> np.ndarray:
    """Which type has which protein (types × proteins), each type and lineage at least one."""
    lineage = np.array([name.split(".")[0] for name in types])
    lineages, out = np.unique(lineage), np.zeros((len(types), n), bool)
    n_lineage = round(LINEAGE_MARKERS * n)
    for k in range(n):
        if k < n_lineage:
            out[lineage == lineages[k % len(lineages)], k] = True
        else:
            first = (k - n_lineage) % len(types)  # the types in turn, and some more
            others = rng.choice(len(types), TYPES_A_MARKER - 1, replace=False)
            out[np.unique([first, *others]), k] = True
    return out


def add_proteins(adata: anndata.AnnData, settings: SimulateSettings) -> None:
    """Give simulated cells `settings.proteins` proteins, in place.

    obsm protein_expression (a table; only zeros where a batch lacks a protein: the last
    `missing_proteins` in the first reference batch and the first query batch), and the truth:
    protein_counts_true, protein_foreground (bool), protein_denoised_true (foreground mean or 0).
    """
    rng = np.random.default_rng([settings.seed, 1])  # genes are the same with and without
    n, names = settings.proteins, [f"P{k:02d}" for k in range(settings.proteins)]
    types, of_cell = np.unique(adata.obs["cell_type"], return_inverse=True)
    batches, in_batch = np.unique(adata.obs["batch"], return_inverse=True)
    has = marked(list(types), n, rng)
    background = BACKGROUND * rng.lognormal(0, BACKGROUND_SD, n)
    fold = 1 + FOLD * rng.lognormal(0, FOLD_SD, n) * rng.lognormal(0, TYPE_FOLD_SD, (len(types), n))
    ambient = rng.lognormal(0, AMBIENT_SD, (len(batches), n))
    efficiency = rng.lognormal(0, EFFICIENCY_SD, (len(batches), n))
    probability = np.where(has, FOREGROUND_IN_MARKED, FOREGROUND_ELSEWHERE)[of_cell]
    foreground = rng.random(probability.shape) < probability
    low = background * ambient[in_batch] * rng.lognormal(0, CELL_SD, (adata.n_obs, 1))
    mean = np.where(foreground, low * fold[of_cell], low)
    seen = mean * efficiency[in_batch]
    counts = rng.poisson(seen * rng.gamma(INVERSE_DISPERSION, 1 / INVERSE_DISPERSION, seen.shape))
    tables = {
        "protein_counts_true": counts.astype(np.float32),
        "protein_foreground": foreground,
        "protein_denoised_true": np.where(foreground, mean, 0.0).astype(np.float32),
    }
    lacking = [name for name in ("batch0", "query0") if name in batches]
    absent = adata.obs["batch"].isin(lacking).to_numpy()
    given = tables["protein_counts_true"].copy()
    if settings.missing_proteins:
        given[absent, -settings.missing_proteins :] = 0
    for key, values in {"protein_expression": given, **tables}.items():
        adata.obsm[key] = pd.DataFrame(values, adata.obs_names, names)
