"""Scores of verdicts: coverage of prediction sets, detection of novel cells, accuracy of confident
labels."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from atlasmap.labels.verdict import AMBIGUOUS, CONFIDENT, NOVEL, SEPARATOR


def mean_of(values: np.ndarray) -> float:
    """Mean of values; NaN if there are none."""
    return float(np.mean(values)) if len(values) else np.nan


def at_level(cells: pd.DataFrame, level: str, groups: dict[str, str]) -> pd.DataFrame:
    """Replace the columns that `score_trust` reads by those at a coarser level of labels.

    `groups`: label → group at that level. Novelty and verdicts stay as they are.
    """
    sets = [
        list(dict.fromkeys(groups.get(name, name) for name in said.split(SEPARATOR)))
        for said in cells["prediction_set"]
    ]
    return cells.assign(
        truth=cells[f"truth_{level}"],
        predicted_label=cells[f"predicted_{level}"],
        prediction_set=[SEPARATOR.join(said) for said in sets],
        prediction_set_size=[len(said) for said in sets],
    )


def score_trust(cells: pd.DataFrame, known: set[str], unlabeled: str) -> dict | None:
    """Score prediction sets and verdicts of query cells; None if no true label is in `known`, the
    reference's labels.

    `cells` has columns truth, predicted_label, prediction_set, prediction_set_size, novelty and
    verdict. Scores are of the cells whose true label the reference has, except new_called_novel (of
    the cells whose label it lacks) and novel_auroc (AUROC of `novelty` between the two kinds; NaN
    if there are no cells of the second kind).
    """
    cells = cells[cells["truth"] != unlabeled]
    is_known = cells["truth"].isin(known).to_numpy()
    if not is_known.any():
        return None
    old, new = cells[is_known], cells[~is_known]
    right = (old["truth"] == old["predicted_label"]).to_numpy()
    said = zip(old["truth"], old["prediction_set"], strict=True)
    covered = np.array([truth in named.split(SEPARATOR) for truth, named in said])
    size, verdict = old["prediction_set_size"].to_numpy(), old["verdict"].to_numpy()
    unsure = verdict == AMBIGUOUS
    auroc = roc_auc_score(~is_known, cells["novelty"]) if len(new) else np.nan
    return {
        "n": len(old),
        "n_not_in_reference": len(new),
        "coverage": mean_of(covered),
        "set_size": mean_of(size),
        "coverage_ambiguous": mean_of(covered[unsure]),
        "set_size_ambiguous": mean_of(size[unsure]),
        "novel_auroc": float(auroc),
        "known_called_novel": mean_of(verdict == NOVEL),
        "new_called_novel": mean_of(new["verdict"] == NOVEL),
        "confident": mean_of(verdict == CONFIDENT),
        "ambiguous": mean_of(unsure),
        "accuracy_confident": mean_of(right[verdict == CONFIDENT]),
        "accuracy_ambiguous": mean_of(right[unsure]),
    }
