"""Do prediction sets cover, is what is called novel new, are confident labels right?"""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from atlasmap.labels.verdict import AMBIGUOUS, CONFIDENT, NOVEL, SEPARATOR


def mean_of(values: np.ndarray) -> float:
    """Their mean; NaN of none."""
    return float(np.mean(values)) if len(values) else np.nan


def at_level(cells: pd.DataFrame, level: str, groups: dict[str, str]) -> pd.DataFrame:
    """What `score_trust` reads of query cells, at a coarser level of labels; `groups`: label →
    what it is there. A cell is as novel as it was, and known whose group the reference has."""
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
    """Of query cells (truth, predicted_label, prediction_set, novelty, verdict); None where no
    cell's true label is in `known`, the reference's.

    coverage and set_size (of all such cells, and of ambiguous ones), known_called_novel and the
    accuracies are of cells whose true label the reference has; new_called_novel of the others,
    novel_auroc of `novelty` for one against the other (NaN where there is but one kind).
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
