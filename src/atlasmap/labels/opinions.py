"""Opinions on labels besides the model's classifier: other classifiers on the same latent, and the
majority of all opinions, with weights learned on held-out batches."""

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from atlasmap.labels.confidence import pooled
from atlasmap.labels.knn import SoftLabels, votes, weighted_neighbors
from atlasmap.models.random import keyed_seed

N_TREES = 100
MAX_ITERATIONS = 1000
MOST_FITTED = 20_000  # largest number of cells that `fitted_on` fits classifiers on

Fitted = Callable[[np.ndarray], SoftLabels]  # a fitted classifier: latent (cells × latent) → labels


def knn(latent: np.ndarray, labels: np.ndarray, n_neighbors: int, seed: int) -> Fitted:
    """Weighted nearest neighbours (see `weighted`)."""
    return lambda query: votes(weighted_neighbors(latent, query, n_neighbors), labels)


def random_forest(latent: np.ndarray, labels: np.ndarray, n_neighbors: int, seed: int) -> Fitted:
    """Random forest (Breiman 2001)."""
    state = keyed_seed(seed, "random forest") % 2**32
    model = RandomForestClassifier(N_TREES, random_state=state, n_jobs=1).fit(latent, labels)
    return lambda query: SoftLabels(model.predict_proba(query), list(map(str, model.classes_)))


def logistic(latent: np.ndarray, labels: np.ndarray, n_neighbors: int, seed: int) -> Fitted:
    """Multinomial logistic regression on the standardised latent."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    model.fit(latent, labels)
    return lambda query: SoftLabels(model.predict_proba(query), list(map(str, model.classes_)))


ON_LATENT = {"knn": knn, "random_forest": random_forest, "logistic": logistic}


def fitted_on(
    latent: np.ndarray, labels: np.ndarray, n_neighbors: int, seed: int = 0
) -> dict[str, Fitted]:
    """Fit every classifier on the latent (cells × latent) of labelled cells, or on a random sample
    of MOST_FITTED of them."""
    at = np.arange(len(latent))
    if len(at) > MOST_FITTED:
        rng = np.random.default_rng(keyed_seed(seed, "opinions"))
        at = np.sort(rng.choice(at, MOST_FITTED, replace=False))
    return {name: fit(latent[at], labels[at], n_neighbors, seed) for name, fit in ON_LATENT.items()}


def aligned(soft: SoftLabels, names: list[str]) -> np.ndarray:
    """Reorder probabilities to the labels `names` (cells × names); zero for labels that `soft`
    lacks."""
    place = {name: k for k, name in enumerate(names)}
    out = np.zeros((len(soft.probabilities), len(names)), np.float32)
    out[:, [place[name] for name in soft.names]] = soft.probabilities
    return out


def majority(opinions: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """Log-linear pool of all `opinions` (cells × labels) that have `weights`, with equal weights if
    none were learned. An opinion has no effect where it is NaN."""
    equal = dict.fromkeys(opinions, 1 / len(opinions))
    by_name = weights or equal
    known = [name for name in opinions if name in by_name]
    return pooled([by_name[name] for name in known], *(opinions[name] for name in known))
