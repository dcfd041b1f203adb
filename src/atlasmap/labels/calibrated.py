"""What a reference learned about its own labels, kept beside its bundle as calibration.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
from pydantic import TypeAdapter

from atlasmap.errors import AtlasmapError
from atlasmap.labels.calibration import Scaling, cross_scaled, fit_scaling
from atlasmap.labels.conformal import Thresholds, fit_thresholds
from atlasmap.labels.held_out import STAND_IN
from atlasmap.labels.novelty import (
    BatchFit,
    CutOffs,
    HeldOut,
    batch_medians,
    distances_if_missing,
    fit_batches,
    fit_cut_offs,
    local_distance,
)
from atlasmap.mapping.embed import posterior_soft_labels
from atlasmap.mapping.latent import latent_of, variance_of
from atlasmap.models.scanvi import Scanvi
from atlasmap.settings import CalibrationSettings

FORMAT = 1
NEW_BATCHES = "held-out batches"  # a scheme


@dataclass(frozen=True)
class Calibration:
    """Learned on `n_cells` held-out cells of `batches` (`scheme` says how), for `labels`.

    `left_out`: what leaving out each label would show (label, n, detected, auroc). `batch_fit`: how
    far whole batches may be (None where that tells nothing).
    """

    scheme: str
    batches: list[str]
    n_cells: int
    labels: list[str]
    n_draws: int
    scaling: Scaling
    thresholds: Thresholds
    cut_offs: CutOffs
    left_out: list[dict]
    batch_fit: BatchFit | None = None

    def probabilities(
        self, model: Scanvi, labels: list[str], mean: np.ndarray, var: np.ndarray
    ) -> np.ndarray:
        """Calibrated probabilities (cells × `labels`, the model's own) at a posterior.

        Labels that no held-out cell could have are scaled as the average label is.
        """
        known = {name: k for k, name in enumerate(self.labels)}
        at = [known.get(name) for name in labels]
        weight = float(np.mean(self.scaling.weights))
        scaling = Scaling(
            self.scaling.method,
            [weight if k is None else self.scaling.weights[k] for k in at],
            [0.0 if k is None else self.scaling.biases[k] for k in at],
        )
        return scaling(posterior_soft_labels(model, mean, var, self.n_draws))

    def sets(self, probabilities: np.ndarray, labels: list[str], given: np.ndarray) -> np.ndarray:
        """Prediction sets (cells × `labels`, bool) of calibrated probabilities; `given` is the
        column of each cell's predicted label."""
        pooled = [
            v for v, own in zip(self.thresholds.values, self.thresholds.own, strict=True) if not own
        ]
        other = pooled[0] if pooled else max(self.thresholds.values)
        known = dict(zip(self.labels, self.thresholds.values, strict=True))
        values = [known.get(name, other) for name in labels]
        return Thresholds(self.thresholds.coverage, values, []).sets(probabilities, given)

    def write(self, path: Path) -> None:
        """As JSON."""
        said = {"format": FORMAT} | asdict(self)
        path.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """What `write` wrote; raises CALIBRATION_FORMAT."""

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        said = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_number)
        if said.pop("format") != FORMAT:
            raise ValueError("another format")
        return TypeAdapter(Calibration).validate_python(said)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtlasmapError(
            "CALIBRATION_FORMAT",
            expected=f"a calibration of format {FORMAT}",
            found=f"{path}: {type(error).__name__} {error}",
            mend="make it again: snakemake --forcerun calibrate",
        ) from error


def held_out_scores(
    held: anndata.AnnData, at: np.ndarray, labels: np.ndarray, reference: np.ndarray,
    reference_labels: np.ndarray,
) -> tuple[HeldOut, BatchFit | None]:  # fmt: skip
    """Scores of held-out cells, those of cells `at` relative to the batch's median of all, and what
    whole batches are like."""
    batch = held.obs["batch"].astype(str).to_numpy()
    latent = latent_of(held)
    distance = local_distance(reference, latent)
    missing = distances_if_missing(reference, reference_labels, latent[at], labels[at])
    middle = batch_medians(distance, batch)[at]
    misfit = misfit_missing = None
    if "misfit" in held.obs:
        values = held.obs["misfit"].to_numpy(float)
        ordinary = batch_medians(values, batch)[at]
        misfit = values[at] / ordinary
        misfit_missing = held.obs["misfit_if_missing"].to_numpy(float)[at] / ordinary
    held_out = HeldOut(
        labels[at], batch[at], distance[at] / middle, missing / middle, misfit, misfit_missing
    )
    return held_out, fit_batches(distance, batch, missing, labels[at])


def all_new(scheme: str, batches: list[str]) -> bool:
    """Whether the cells learned from are of batches that the model had never seen."""
    return scheme == NEW_BATCHES and not any(name.startswith(STAND_IN) for name in batches)


def calibrate(
    model: Scanvi, names: list[str], held: anndata.AnnData, reference: anndata.AnnData,
    scheme: str, settings: CalibrationSettings,
) -> Calibration:  # fmt: skip
    """Learn from cells that `model` was not trained on.

    `held`: obs batch, label (and misfit, misfit_if_missing), soft labels and a posterior;
    `reference`: the cells that it was trained on, obs label and a posterior. Thresholds come from
    probabilities scaled by what the other folds say (cross-conformal, Vovk 2015). Raises
    CALIBRATION_CELLS.
    """
    labels = held.obs["label"].astype(str).to_numpy()
    at = np.isin(labels, names)
    if at.sum() < settings.min_cells:
        raise AtlasmapError(
            "CALIBRATION_CELLS",
            expected=f"at least {settings.min_cells} held-out cells with a label (min_cells)",
            found=f"{int(at.sum())}",
            mend="set calibration: {scheme: none}, or give the reference more labelled batches",
        )
    column = {name: k for k, name in enumerate(names)}
    codes = np.array([column[label] for label in labels[at]])
    posterior = (latent_of(held)[at], variance_of(held)[at])
    averaged = posterior_soft_labels(model, *posterior, settings.n_draws)
    scaling = fit_scaling(averaged, codes, settings.method)
    given = np.asarray(held.obsm["soft_labels"])[at].argmax(1)
    thresholds = fit_thresholds(
        cross_scaled(averaged, codes, settings.method), codes, given, settings.coverage,
        settings.min_cells_per_label,
    )  # fmt: skip
    scores, batch_fit = held_out_scores(
        held, at, labels, latent_of(reference), reference.obs["label"].astype(str).to_numpy()
    )
    cuts, left = fit_cut_offs(scores, settings.false_novel, settings.min_cells_per_label)
    batches = sorted(held.obs["batch"].astype(str).unique())
    return Calibration(
        scheme, batches, int(at.sum()), names, settings.n_draws, scaling, thresholds, cuts, left,
        batch_fit if all_new(scheme, batches) else None,
    )  # fmt: skip
