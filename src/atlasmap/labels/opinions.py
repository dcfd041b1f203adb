"""Opinions on labels besides the classifier's: by other classifiers on the same latent; and the
majority of all opinions, weighted as held-out batches teach."""

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
MOST_FITTED = 20_000  # cells of a held-out reference that classifiers are fitted on

Fitted = Callable[[np.ndarray], SoftLabels]  # names cells (cells × latent)


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
    """Every classifier on the latent (cells × latent) of labelled cells, of many cells some."""
    at = np.arange(len(latent))
    if len(at) > MOST_FITTED:
        rng = np.random.default_rng(keyed_seed(seed, "opinions"))
        at = np.sort(rng.choice(at, MOST_FITTED, replace=False))
    return {name: fit(latent[at], labels[at], n_neighbors, seed) for name, fit in ON_LATENT.items()}


def aligned(soft: SoftLabels, names: list[str]) -> np.ndarray:
    """Probabilities of these labels (cells × names), zero for those that `soft` does not have."""
    place = {name: k for k, name in enumerate(names)}
    out = np.zeros((len(soft.probabilities), len(names)), np.float32)
    out[:, [place[name] for name in soft.names]] = soft.probabilities
    return out


def majority(opinions: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """What all `opinions` (cells × labels) say together: a log-linear pool by their `weights`, or
    where none were learned by equal ones. An opinion abstains where it is NaN."""
    equal = dict.fromkeys(opinions, 1 / len(opinions))
    by_name = weights or equal
    known = [name for name in opinions if name in by_name]
    return pooled([by_name[name] for name in known], *(opinions[name] for name in known))
