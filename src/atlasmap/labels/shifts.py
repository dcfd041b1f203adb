"""Groups of cells that moved: unlike their label in the reference, yet with its markers.

Of a stimulated or sick query whole labels move further than any batch did. They are no new types:
they keep the genes that tell their label from others, and win no other label's.
"""

import numpy as np
import pandas as pd

from atlasmap.labels.profiles import EPS, Seen

LEAST = 5  # cells of a group
N_MARKERS = 20  # genes that a label has more of than others, and less
KEPT = 0.75  # of the distance between others' and the label's own, less what is won of others'
MOST = 1.2, 2.0  # that a gene may count of either
N_TOP = 10
COLUMNS = ["batch", "label", "n", "n_shifted", "markers_kept", "top_genes"]


def keeps(seen: Seen, rows: np.ndarray, label: int) -> float:
    """The fraction of its label's markers that a group of cells (places) keeps, less the fraction
    of others' that it won."""
    profiles, measured = seen.profiles, np.flatnonzero(seen.measured)
    if len(profiles.means) == 1:
        return 0.0  # there is nothing to tell it from
    of_group = np.asarray(seen.logs[rows].mean(0)).ravel() - seen.shift
    x, own = of_group[measured], profiles.means[label, measured]
    others = np.delete(profiles.means, label, 0).mean(0)[measured]
    order = np.argsort((own - others) / np.sqrt(profiles.within[measured]), kind="stable")
    up, down = order[-N_MARKERS:], order[:N_MARKERS]
    kept = np.clip((x[up] - others[up]) / (own[up] - others[up] + EPS), 0, MOST[0]).mean()
    won = ((x[down] - own[down]) / (others[down] - own[down] + EPS)).mean()
    return float(kept - np.clip(won, 0, MOST[1]))


def top_genes(seen: Seen, rows: np.ndarray, label: int, genes: np.ndarray) -> list[str]:
    """Genes that a group of cells (places) differs in most from its label in the reference, in
    standard deviations within labels; with what the whole batch has in common."""
    profiles = seen.profiles
    moved = np.asarray(seen.logs[rows].mean(0)).ravel() - profiles.means[label]
    size = np.where(seen.measured, np.abs(moved) / np.sqrt(profiles.within), 0)
    return [str(name) for name in genes[np.argsort(-size, kind="stable")[:N_TOP]]]


def shift_table(
    seen: Seen, moved: np.ndarray, names: list[str], genes: np.ndarray, batch: str
) -> pd.DataFrame:
    """A row a label that at least 5 cells of a batch were given: batch, label, n, n_shifted
    (`moved`: mask), markers_kept and top_genes."""
    rows = []
    for k in np.unique(seen.codes):
        own = np.flatnonzero(seen.codes == k)
        if len(own) >= LEAST:
            said = {"batch": batch, "label": names[k], "n": len(own)}
            said |= {"n_shifted": int(moved[own].sum()), "markers_kept": keeps(seen, own, k)}
            rows.append(said | {"top_genes": " ".join(top_genes(seen, own, k, genes))})
    return pd.DataFrame(rows, columns=COLUMNS)


def shifted(seen: Seen, novel: np.ndarray) -> np.ndarray:
    """Which of the `novel` cells (mask) are of a group that moved (mask)."""
    out = np.zeros(len(novel), bool)
    for label in np.unique(seen.codes):
        rows = np.flatnonzero(novel & (seen.codes == label))
        if len(rows) >= LEAST and keeps(seen, rows, int(label)) >= KEPT:
            out[rows] = True
    return out
