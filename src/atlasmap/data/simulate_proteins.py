"""Proteins of the simulated atlas: known background and foreground, missing panels, batch effects.

A protein is a marker of a lineage or of some types, and in each cell either foreground or
background. Counts are negative binomial with mean efficiency × background, for foreground times a
fold change. Efficiency and ambient background are per batch and protein, scaled by a factor per
cell for the background.
"""

import anndata
import numpy as np
import pandas as pd

from atlasmap.settings import SimulateSettings

LINEAGE_MARKERS = 0.6  # fraction of proteins that mark a whole lineage; others mark some types
TYPES_A_MARKER = 3  # types that each other marker marks
FOREGROUND_IN_MARKED, FOREGROUND_ELSEWHERE = 0.95, 0.02  # probability that a cell is foreground
BACKGROUND, BACKGROUND_SD = 6.0, 0.5  # median mean count, log standard deviation over proteins
AMBIENT_SD = 0.3  # of a protein's background between batches (log)
CELL_SD = 0.3  # of the background between cells (log)
FOLD, FOLD_SD = 14.0, 0.5  # foreground over background: median, log standard deviation
TYPE_FOLD_SD = 0.3  # of the fold change between types (log)
EFFICIENCY_SD = 0.2  # of the efficiency between batches and proteins (log)
INVERSE_DISPERSION = 6.0


def marked(types: list[str], n: int, rng: np.random.Generator) -> np.ndarray:
    """Sample the mask of marker proteins (types × proteins); lineages, then types, take turns."""
    lineage = np.array([name.split(".")[0] for name in types])
    lineages, out = np.unique(lineage), np.zeros((len(types), n), bool)
    n_lineage = round(LINEAGE_MARKERS * n)
    for k in range(n):
        if k < n_lineage:
            out[lineage == lineages[k % len(lineages)], k] = True
        else:
            first = (k - n_lineage) % len(types)  # each type in turn, with others at random
            others = rng.choice(len(types), TYPES_A_MARKER - 1, replace=False)
            out[np.unique([first, *others]), k] = True
    return out


def add_proteins(adata: anndata.AnnData, settings: SimulateSettings) -> None:
    """Add `settings.proteins` simulated proteins to obsm, in place.

    protein_expression has the counts (a table). The last `missing_proteins` proteins are zero in
    the first reference batch and the first query batch, as if not measured. True values are in
    protein_counts_true, protein_foreground (bool) and protein_denoised_true (foreground mean or 0).
    """
    rng = np.random.default_rng([settings.seed, 1])  # separate: proteins do not change gene counts
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
