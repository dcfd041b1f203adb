"""What a cell is coloured by, as numbers a page can hold."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from atlasmap.labels.palette import colors_of

# In this order; other columns of obs follow.
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
LEFT_OUT = ("barcode",)  # the id says it
ON_CARD = ("safe_label", "safe_level", "pooled_label", "predicted_label", "label", "truth",
           "verdict", "shifted", "pooled_confidence", "calibrated_confidence", "confidence",
           "knn_label", "runner_up", "prediction_set", "batch", "role")  # fmt: skip
MOST_NAMES = 500  # of a legend; columns with more are shown on the card alone
MISSING, NONE = 65_535, "none"  # of numbers, of categories
# Of reference cells there is nothing to say.
OF_QUERY = ("safe_label", "safe_level", "safe_probability", "verdict", "shifted", "pooled_label",
            "pooled_confidence", "genes_label", "genes_confidence", "knn_label", "knn_uncertainty",
            "prediction_set", "novelty", "truth")  # fmt: skip


@dataclass(frozen=True)
class Category:
    """`codes` (cells) into `names`, with a colour each."""

    key: str
    title: str
    names: list[str]
    colors: list[str]
    codes: np.ndarray

    @property
    def has_legend(self) -> bool:
        """Whether cells can be coloured by it."""
        return len(self.names) <= MOST_NAMES

    def about(self) -> dict:
        """Without the cells."""
        return {"kind": "category", "names": self.names, "colors": self.colors,
                "legend": self.has_legend}  # fmt: skip

    def packed(self) -> np.ndarray:
        """As few bytes a cell as will do."""
        return self.codes.astype(np.uint8 if len(self.names) < 256 else np.uint16)


@dataclass(frozen=True)
class Number:
    """`values` (cells; NaN: none) between `low` and `high`."""

    key: str
    title: str
    values: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, key: str, title: str, values: np.ndarray) -> "Number":
        """With their own range."""
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        return cls(key, title, values, low, high)

    def about(self) -> dict:
        """Without the cells."""
        return {"kind": "number", "low": self.low, "high": self.high, "legend": True}

    def packed(self) -> np.ndarray:
        """Steps of 1/65,534 of the range; MISSING where there is none."""
        width = max(self.high - self.low, 1e-12)
        shares = np.clip((self.values - self.low) / width, 0, 1)
        steps = np.where(np.isfinite(self.values), np.rint(shares * (MISSING - 1)), MISSING)
        return steps.astype(np.uint16)


def colors_for(names: list[str], stored: np.ndarray | None) -> list[str]:
    """Stored colours where there is one for each name."""
    if stored is not None and len(stored) == len(names):
        return [str(color)[:7] for color in stored]
    return list(colors_of(names).values())


def columns_of(obs: pd.DataFrame, uns: dict) -> Iterator[Category | Number]:
    """Columns worth a look, the important ones first."""
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
