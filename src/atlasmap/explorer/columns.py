"""Columns by which the explorer colours cells, packed as integers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from atlasmap.labels.palette import colors_of

# Titles of known columns, in the order in which they are shown; other columns of obs follow.
TITLES = {
    "predicted_label": "Predicted label",
    "pooled_label": "Label, by classifier and genes",
    "safe_label": "Deepest safe label",
    "label": "Label of the reference",
    "truth": "Known label",
    "verdict": "Verdict",
    "shifted": "Shifted",
    "pooled_confidence": "Confidence, by classifier and genes",
    "calibrated_confidence": "Confidence, calibrated",
    "confidence": "Confidence, as the classifier gives it",
    "batch": "Batch",
    "role": "Role",
    "knn_label": "Second opinion (nearest neighbours)",
    "knn_uncertainty": "Uncertainty of the second opinion",
    "genes_label": "Second opinion (genes)",
    "genes_confidence": "Confidence of the second opinion (genes)",
    "runner_up": "Runner-up",
    "safe_level": "Level of the safe label",
    "safe_probability": "Probability of the safe label",
    "prediction_set": "Prediction set",
    "novelty": "Novelty",
    "strangeness": "Strangeness of the batch",
    "seed_agreement": "Seeds that agree",
    "entropy": "Entropy of the label, nats",
    "dataset": "Data set",
    "split": "Split",
}
LEFT_OUT = ("barcode",)  # already part of the cell's id
ON_CARD = ("safe_label", "safe_level", "pooled_label", "predicted_label", "label", "truth",
           "verdict", "shifted", "pooled_confidence", "calibrated_confidence", "confidence",
           "knn_label", "runner_up", "prediction_set", "batch", "role")  # fmt: skip
MOST_NAMES = 500  # in a legend; columns with more categories are shown on a cell's card only
MISSING, NONE = 65_535, "none"  # missing values of numbers, of categories
# Columns without values for reference cells.
OF_QUERY = ("safe_label", "safe_level", "safe_probability", "verdict", "shifted", "pooled_label",
            "pooled_confidence", "genes_label", "genes_confidence", "knn_label", "knn_uncertainty",
            "prediction_set", "novelty", "truth")  # fmt: skip


@dataclass(frozen=True)
class Category:
    """A categorical column: per cell a code into `names`, which have a colour each."""

    key: str
    title: str
    names: list[str]
    colors: list[str]
    codes: np.ndarray

    @property
    def has_legend(self) -> bool:
        """Whether cells can be coloured by this column."""
        return len(self.names) <= MOST_NAMES

    def about(self) -> dict:
        """Returns the description for the page, without the cells."""
        return {"kind": "category", "names": self.names, "colors": self.colors,
                "legend": self.has_legend}  # fmt: skip

    def packed(self) -> np.ndarray:
        """Returns the codes as uint8 if they fit, else uint16."""
        return self.codes.astype(np.uint8 if len(self.names) < 256 else np.uint16)


@dataclass(frozen=True)
class Number:
    """A numeric column: `values` per cell (NaN: missing), of the range `low` to `high`."""

    key: str
    title: str
    values: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, key: str, title: str, values: np.ndarray) -> "Number":
        """Returns a column with the range of its finite values (0 to 1 if there are none)."""
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        return cls(key, title, values, low, high)

    def about(self) -> dict:
        """Returns the description for the page, without the cells."""
        return {"kind": "number", "low": self.low, "high": self.high, "legend": True}

    def packed(self) -> np.ndarray:
        """Returns values quantised to uint16 (65,534 steps of the range), MISSING for NaN."""
        width = max(self.high - self.low, 1e-12)
        shares = np.clip((self.values - self.low) / width, 0, 1)
        steps = np.where(np.isfinite(self.values), np.rint(shares * (MISSING - 1)), MISSING)
        return steps.astype(np.uint16)


def colors_for(names: list[str], stored: np.ndarray | None) -> list[str]:
    """Returns the stored colours if there is one per name, else colours of the palette."""
    if stored is not None and len(stored) == len(names):
        return [str(color)[:7] for color in stored]
    return list(colors_of(names).values())


def columns_of(obs: pd.DataFrame, uns: dict) -> Iterator[Category | Number]:
    """Yield the columns of `obs` to show, important ones first; colours are taken from `uns`."""
    order = [key for key in TITLES if key in obs]
    order += [key for key in obs if key not in TITLES and key not in LEFT_OUT]
    for key in order:
        title, values = TITLES.get(key, key.replace("_", " ")), obs[key]
        if values.dtype.kind == "f" or (values.dtype.kind in "iu" and values.nunique() > 12):
            yield Number.of(key, title, values.to_numpy(np.float64, na_value=np.nan))
            continue
        text = values.astype(object).where(values.notna(), NONE).astype(str)
        kept = values.cat.categories if isinstance(values.dtype, pd.CategoricalDtype) else None
        codes = pd.Categorical(text, kept if kept is not None and values.notna().all() else None)
        names = [str(name) for name in codes.categories]
        found = Category(
            key, title, names, colors_for(names, uns.get(f"{key}_colors")), codes.codes
        )
        if len(names) < MISSING and (found.has_legend or key in ON_CARD):
            yield found
