"""Shifted groups: query cells that are unlike their label in the reference, but have its markers.

In a stimulated or diseased query, whole labels shift further than those of any held-out batch. They
are not new cell types: they keep the markers of their label and do not gain those of others.
"""

import numpy as np
import pandas as pd

from atlasmap.labels.profiles import EPS, Seen

LEAST = 5  # fewest cells of a group
N_MARKERS = 20  # genes highest in a label relative to others, and as many lowest
KEPT = 0.75  # smallest value of `keeps` for a shifted group
MOST = 1.2, 2.0  # upper bounds: kept fraction of a gene, mean gained fraction
N_TOP = 10
COLUMNS = ["batch", "label", "n", "n_shifted", "markers_kept", "top_genes"]


def keeps(seen: Seen, rows: np.ndarray, label: int) -> float:
    """Fraction of its label's markers that a group of cells (indices `rows`) keeps, minus the
    fraction of other labels' markers that it gained.

    A gene's fraction is the position of the group's mean, without the batch's shift, between the
    means of the other labels and of its own label. Returns 0 if there is only one label.
    """
    profiles, measured = seen.profiles, np.flatnonzero(seen.measured)
    if len(profiles.means) == 1:
        return 0.0  # no other label to compare with
    of_group = np.asarray(seen.logs[rows].mean(0)).ravel() - seen.shift
    x, own = of_group[measured], profiles.means[label, measured]
    others = np.delete(profiles.means, label, 0).mean(0)[measured]
    order = np.argsort((own - others) / np.sqrt(profiles.within[measured]), kind="stable")
    up, down = order[-N_MARKERS:], order[:N_MARKERS]
    kept = np.clip((x[up] - others[up]) / (own[up] - others[up] + EPS), 0, MOST[0]).mean()
    won = ((x[down] - own[down]) / (others[down] - own[down] + EPS)).mean()
    return float(kept - np.clip(won, 0, MOST[1]))


def top_genes(seen: Seen, rows: np.ndarray, label: int, genes: np.ndarray) -> list[str]:
    """Names of the N_TOP genes in which a group of cells (indices `rows`) differs most from its
    label in the reference, in standard deviations within labels; the batch's shift is included."""
    profiles = seen.profiles
    moved = np.asarray(seen.logs[rows].mean(0)).ravel() - profiles.means[label]
    size = np.where(seen.measured, np.abs(moved) / np.sqrt(profiles.within), 0)
    return [str(name) for name in genes[np.argsort(-size, kind="stable")[:N_TOP]]]


def shift_table(
    seen: Seen, moved: np.ndarray, names: list[str], genes: np.ndarray, batch: str
) -> pd.DataFrame:
    """Table with one row per label that at least 5 cells of a batch were given: batch, label, n,
    n_shifted (of the cells in the mask `moved`), markers_kept and top_genes."""
    rows = []
    for k in np.unique(seen.codes):
        own = np.flatnonzero(seen.codes == k)
        if len(own) >= LEAST:
            said = {"batch": batch, "label": names[k], "n": len(own)}
            said |= {"n_shifted": int(moved[own].sum()), "markers_kept": keeps(seen, own, k)}
            rows.append(said | {"top_genes": " ".join(top_genes(seen, own, k, genes))})
    return pd.DataFrame(rows, columns=COLUMNS)


def shifted(seen: Seen, novel: np.ndarray) -> np.ndarray:
    """Mask of the `novel` cells (mask) whose group is shifted. A group is the novel cells that were
    given the same label."""
    out = np.zeros(len(novel), bool)
    for label in np.unique(seen.codes):
        rows = np.flatnonzero(novel & (seen.codes == label))
        if len(rows) >= LEAST and keeps(seen, rows, int(label)) >= KEPT:
            out[rows] = True
    return out
