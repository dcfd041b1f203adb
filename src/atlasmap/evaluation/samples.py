"""Scores of large data sets: means over several samples of cells, with confidence intervals."""

import numpy as np
import pandas as pd

from atlasmap.models.random import keyed_seed

LEAST = 10  # fewest cells of a stratum in a sample, as rare labels count as much as others
LEVEL = 0.95  # confidence level of the intervals


def stratified(strata: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of a stratified sample of about `n` cells, without replacement.

    `strata`: stratum of each cell. A stratum has cells in proportion to its size, but at least
    LEAST of them, or all that it has.
    """
    codes, sizes = np.unique(strata, return_inverse=True, return_counts=True)[1:]
    wanted = np.maximum(np.rint(sizes * n / len(strata)), np.minimum(sizes, LEAST)).astype(int)
    order = rng.permutation(len(strata))
    order = order[np.argsort(codes[order], kind="stable")]  # by stratum, at random within
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < np.repeat(wanted, sizes)])


def draws(strata: np.ndarray, max_cells: int, n_samples: int) -> list[np.ndarray]:
    """Indices of the cells of each of `n_samples` samples of `max_cells`; one sample with all cells
    if there are no more.

    Samples are always the same, so that embeddings are compared on the same cells.
    """
    if len(strata) <= max_cells:
        return [np.arange(len(strata))]
    seeds = (keyed_seed(0, "sample", k, len(strata)) for k in range(n_samples))
    return [stratified(strata, max_cells, np.random.default_rng(seed)) for seed in seeds]


def combined(tables: list[dict]) -> dict:
    """Mean of each score over samples and, for several samples, its confidence interval
    (`{score}_low`, `{score}_high`: Student's t at LEVEL).

    If a score was skipped in a sample, the reason (a text) is returned instead of the mean.
    """
    from scipy.stats import t

    out, spread = {}, {}
    for name in tables[0]:
        values = [table[name] for table in tables]
        why = next((value for value in values if isinstance(value, str)), None)
        out[name] = np.mean(values).item() if why is None else why
        if len(values) > 1 and why is None:
            half = t.ppf((1 + LEVEL) / 2, len(values) - 1) * pd.Series(values).sem()
            spread |= {f"{name}_low": out[name] - half, f"{name}_high": out[name] + half}
    return out | spread
