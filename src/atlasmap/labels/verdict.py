"""A verdict a cell: confident, ambiguous (between which labels), or novel; and one a batch: does
the reference fit it?"""

import anndata
import numpy as np
import pandas as pd

from atlasmap.labels.calibrated import Calibration
from atlasmap.labels.novelty import batch_medians, local_distance
from atlasmap.labels.tree import LabelTree
from atlasmap.models.scanvi import Scanvi

CONFIDENT, AMBIGUOUS, NOVEL = "confident", "ambiguous", "novel"
SEPARATOR = " | "


def set_names(sets: np.ndarray, probabilities: np.ndarray, names: list[str]) -> list[list[str]]:
    """Labels of each cell's set, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [[names[k] for k in row if chosen[k]] for row, chosen in zip(order, sets, strict=True)]


def verdicts(
    model: Scanvi, calibration: Calibration, query: anndata.AnnData, reference: np.ndarray,
    predicted: np.ndarray, tree: LabelTree | None,
) -> tuple[pd.DataFrame, np.ndarray]:  # fmt: skip
    """A row a query cell, and its calibrated probabilities (cells × labels).

    `query`: obs batch (and misfit), obsm X_latent, latent_var, uns soft_label_names; `reference`
    the reference's latent; `predicted` the labels that the classifier gave. Columns:
    calibrated_confidence (of that label), prediction_set, prediction_set_size, common_ancestor
    (with a tree), distance, misfit, novelty (novel above 1), strangeness (of the cell's batch: all
    of it is novel above 1), verdict.
    """
    names = [str(name) for name in query.uns["soft_label_names"]]
    latent, batch = query.obsm["X_latent"], query.obs["batch"].astype(str).to_numpy()
    probabilities = calibration.probabilities(model, names, latent, query.obsm["latent_var"])
    column = {name: k for k, name in enumerate(names)}
    own = np.array([column[label] for label in predicted.astype(str)])
    sets = calibration.sets(probabilities, names, own)
    far, misfit, strange = local_distance(reference, latent), None, np.full(len(latent), np.nan)
    if calibration.batch_fit is not None:
        strange = calibration.batch_fit.strangeness(far, batch)
    distance = far / batch_medians(far, batch)
    if "misfit" in query.obs:
        misfit = query.obs["misfit"].to_numpy(float)
        misfit = misfit / batch_medians(misfit, batch)
    novelty = calibration.cut_offs.novelty(distance, misfit)
    named = set_names(sets, probabilities, names)
    sure = np.array([found == [label] for found, label in zip(named, predicted, strict=True)])
    table = pd.DataFrame(
        {
            "calibrated_confidence": probabilities[np.arange(len(own)), own],
            "prediction_set": [SEPARATOR.join(found) for found in named],
            "prediction_set_size": sets.sum(1),
        },
        index=query.obs_names,
    )
    if tree is not None:
        table["common_ancestor"] = [tree.common_ancestor(found) for found in named]
    table["distance"] = distance
    if misfit is not None:
        table["misfit"] = misfit
    table["novelty"], table["strangeness"] = novelty, strange
    is_novel = (novelty > 1) | (strange > 1)
    table["verdict"] = np.where(is_novel, NOVEL, np.where(sure, CONFIDENT, AMBIGUOUS))
    return table, probabilities


def fitness(cells: pd.DataFrame) -> dict:
    """Of the query cells of a batch (as `verdicts` has them): does the reference fit? `fits`: no
    farther than half-way from a held-out batch to cells that the reference lacks; `doubtful`: no
    farther than those; `does not fit`: farther, and none of its labels is to be believed; `not
    known`: no whole batch of the reference could be held out."""
    strange, verdict = float(cells["strangeness"].iloc[0]), cells["verdict"]  # one a batch
    shares = {name: float((verdict == name).mean()) for name in (CONFIDENT, AMBIGUOUS, NOVEL)}
    said = "fits" if strange <= 0.5 else "doubtful" if strange <= 1 else "does not fit"
    return {
        "n": len(cells),
        "reference": "not known" if np.isnan(strange) else said,
        "strangeness": strange,
        **shares,
        "set_size": float(cells["prediction_set_size"].mean()),
        "calibrated_confidence": float(cells["calibrated_confidence"].mean()),
    }
