"""Initial values of totalVI's prior of protein background, from mixtures fitted to single cells.

As in scvi-tools: for some cells of each batch, a mixture of two normals is fitted to the log counts
of the cell's proteins. The lower component is background; it is averaged over the cells.
"""

import warnings

import anndata
import numpy as np
import torch

from atlasmap.data.registry import PROTEINS
from atlasmap.models.random import keyed_seed
from atlasmap.settings import TotalviSettings

N_CELLS = 100  # per batch, sampled with replacement
FEWEST = 5  # minimum number of proteins in a batch for a mixture
EMPIRICAL_FROM = 11  # proteins from which the empirical prior is the default
PLAIN, UNKNOWN = (3.0, 1.0), (0.0, 0.05)  # mean and standard deviation of log background


def background_prior(
    adata: anndata.AnnData, batches: list[str], settings: TotalviSettings, seed: int
) -> dict[str, torch.Tensor]:
    """Return initial rows (batches × proteins) of totalVI's tables background_prior_mean and
    background_prior_log_sd, for `batches` of prepared cells."""
    counts = np.asarray(adata.obsm[PROTEINS], np.float64)
    n_proteins, empirical = counts.shape[1], settings.empirical_protein_background_prior
    if empirical is None:
        empirical = n_proteins >= EMPIRICAL_FROM
    of_cell = adata.obs["batch"].astype(str).to_numpy()
    moments = [
        lower_component(counts[of_cell == batch], keyed_seed(seed, "background", batch))
        if empirical
        else PLAIN
        for batch in batches
    ]
    rows = torch.tensor(moments).float()[:, :, None].repeat(1, 1, n_proteins)
    return {"background_prior_mean": rows[:, 0], "background_prior_log_sd": rows[:, 1].log()}


def lower_component(counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of log background, averaged over sampled cells of one batch.

    `counts` are cells × proteins, NaN where not measured. The standard deviation is that of the
    mean over the cells.
    """
    # Imported here: sklearn takes a sixth of the memory that training needs.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    measured = counts[:, ~np.isnan(counts).any(0)]
    if measured.shape[1] < FEWEST:
        return UNKNOWN
    rng = np.random.default_rng(seed)
    mixture = GaussianMixture(n_components=2, random_state=np.random.RandomState(seed % 2**32))
    found = []
    for cell in measured[rng.choice(len(measured), N_CELLS)]:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                mixture.fit(np.log1p(cell)[:, None])
            except ConvergenceWarning:  # all counts equal
                found.append(UNKNOWN)
                continue
        low = mixture.means_.ravel().argmin()
        found.append((mixture.means_[low, 0], mixture.covariances_[low, 0, 0] ** 0.5))
    mean, sd = np.array(found).T
    return float(mean.mean()), float(np.sqrt(np.square(sd).sum()) / N_CELLS)
