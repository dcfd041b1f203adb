"""Calibrated probabilities: the classifier averaged over the posterior, then scaled.

The classifier is asked at the mean of q(z | x), as if a cell's place were known. Averaged over the
posterior its probabilities know of the encoder's doubt; a temperature (Guo et al. 2017) or a weight
and bias a label (vector scaling, there too) does the rest. The predicted label stays the
classifier's own.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from atlasmap.models.random import keyed_seed
from atlasmap.settings import Scaling as Method

EPS = 1e-12
N_FOLDS = 5
LOG_T = (-2.0, 4.0)  # where log temperatures are looked for


@dataclass(frozen=True)
class Scaling:
    """p → softmax(weights · log p + biases), labels' own or (temperature) one weight for all."""

    method: Method
    weights: list[float]
    biases: list[float]

    @property
    def temperature(self) -> float:
        """1 / weight, of vector scaling 1 / the mean weight."""
        return float(1 / np.mean(self.weights))

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (cells × labels) of `probabilities` (cells × labels)."""
        scores = logs(probabilities) * np.array(self.weights) + np.array(self.biases)
        return softmax(scores, axis=1)


def logs(probabilities: np.ndarray) -> np.ndarray:
    """Log-probabilities, finite."""
    return np.log(np.clip(probabilities.astype(np.float64), EPS, 1))


def fit_scaling(probabilities: np.ndarray, codes: np.ndarray, method: Method) -> Scaling:
    """Fit on cells whose true label is column `codes` of `probabilities` (cells × labels)."""
    n_cells, n_labels = probabilities.shape
    log_p, rows = logs(probabilities), np.arange(n_cells)

    def loss_of(log_t: float) -> float:
        return float(-log_softmax(log_p * np.exp(-log_t), axis=1)[rows, codes].mean())

    weight = float(np.exp(-minimize_scalar(loss_of, bounds=LOG_T, method="bounded").x))
    start = np.concatenate([np.full(n_labels, weight), np.zeros(n_labels)])
    if method == "temperature":
        return Scaling(method, start[:n_labels].tolist(), start[n_labels:].tolist())

    def loss_and_slope(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights, biases = values[:n_labels], values[n_labels:]
        said = log_softmax(log_p * weights + biases, axis=1)
        error = np.exp(said)
        error[rows, codes] -= 1
        slope = np.concatenate([(error * log_p).sum(0), error.sum(0)])
        away = values - start  # a unit normal prior around the temperature: rare labels stay there
        loss = -said[rows, codes].sum() + 0.5 * away @ away
        return float(loss) / n_cells, (slope + away) / n_cells

    found = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B").x
    return Scaling(method, found[:n_labels].tolist(), found[n_labels:].tolist())


def cross_scaled(probabilities: np.ndarray, codes: np.ndarray, method: Method) -> np.ndarray:
    """Each cell's probabilities, scaled by what was fitted on the other folds' cells."""
    order = np.random.default_rng(keyed_seed(0, "folds", len(codes))).permutation(len(codes))
    out = np.empty(probabilities.shape)
    for fold in np.array_split(order, N_FOLDS):
        others = np.setdiff1d(order, fold)
        out[fold] = fit_scaling(probabilities[others], codes[others], method)(probabilities[fold])
    return out
