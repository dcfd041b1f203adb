"""Predicted labels against true ones: accuracy, macro-F1, calibration error, scores per class."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from atlasmap.training.history import N_BINS, expected_calibration_error

N_COVERAGES = 20
N_BY_COUNT, LEAST_CELLS = 10, 20  # bins with equal numbers of cells: most bins, fewest cells


@dataclass(frozen=True)
class Scored:
    """Scores of one group of cells: `summary` (one row), `per_class`, `confusion` (long: truth,
    predicted, n), `reliability` (bins of confidence) and `risk_coverage` (accuracy of the most
    confident cells)."""

    summary: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    reliability: pd.DataFrame
    risk_coverage: pd.DataFrame


def reliability_bins(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Mean confidence and accuracy per bin of confidence, without empty bins.

    There are two sets of bins (column `bins`). width: 15 bins of equal width; count: up to 10 bins
    of about equally many cells, at least 20 each.
    """
    n_bins = int(np.clip(len(confidence) // LEAST_CELLS, 1, N_BY_COUNT))
    found = {
        "width": np.clip((confidence * N_BINS).astype(int), 0, N_BINS - 1),
        "count": pd.qcut(confidence, n_bins, labels=False, duplicates="drop"),
    }
    tables = []
    for kind, bins in found.items():
        values = {"bin": np.nan_to_num(bins).astype(int), "confidence": confidence}
        grouped = pd.DataFrame(values | {"accuracy": correct.astype(float)}).groupby("bin")
        tables.append(grouped.mean().assign(n=grouped.size(), bins=kind).reset_index())
    return pd.concat(tables, ignore_index=True)


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Accuracy and least confidence of the most confident 5 %, 10 %, … of all cells (El-Yaniv &
    Wiener 2010, JMLR 11:1605)."""
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum(correct[order])
    coverage = np.linspace(1 / N_COVERAGES, 1, N_COVERAGES)
    n = np.ceil(coverage * len(order) - 1e-9).astype(int)
    return pd.DataFrame(
        {
            "coverage": coverage.round(4),
            "accuracy": right[n - 1] / n,
            "least_confidence": confidence[order][n - 1],
            "n": n,
        }
    )


def score(
    truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, known: set[str],
    unlabeled: str,
) -> Scored | None:  # fmt: skip
    """Score the cells whose true label the reference has; None if there is no such cell.

    `truth`, `predicted` and `confidence` have one value per cell; `known`: the reference's labels.
    Cells with truth `unlabeled` are ignored. Cells with a true label not in `known` are not scored
    but counted in n_not_in_reference, and are in the confusion matrix.
    """
    has_truth = truth != unlabeled
    is_known = np.isin(truth, list(known)) & has_truth
    if not is_known.any():
        return None
    t, p, c = truth[is_known], predicted[is_known], confidence[is_known].astype(float)
    correct = t == p
    ece = expected_calibration_error(torch.as_tensor(c), torch.as_tensor(correct))
    summary = {
        "n": len(t),
        "n_not_in_reference": int((has_truth & ~is_known).sum()),
        "accuracy": accuracy_score(t, p),
        "macro_f1": f1_score(t, p, average="macro", zero_division=0),
        "ece": float(ece),
    }
    names = sorted(set(t) | set(p))
    values = precision_recall_fscore_support(t, p, labels=names, zero_division=0)
    per_class = pd.DataFrame(dict(zip(("precision", "recall", "f1", "n"), values, strict=True)))
    per_class.insert(0, "label", names)
    everyone = sorted(set(truth[has_truth]) | set(predicted[has_truth]))
    matrix = confusion_matrix(truth[has_truth], predicted[has_truth], labels=everyone)
    confusion = pd.DataFrame(matrix, index=everyone, columns=everyone).rename_axis("truth")
    long = confusion.reset_index().melt("truth", var_name="predicted", value_name="n")
    return Scored(
        pd.DataFrame([summary]), per_class, long[long["n"] > 0], reliability_bins(c, correct),
        risk_coverage(c, correct),
    )  # fmt: skip
