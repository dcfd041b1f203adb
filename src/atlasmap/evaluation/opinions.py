"""Second opinions on a query's labels: other classifiers on the same latent, and a vote of all."""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from atlasmap.labels.knn import SoftLabels, votes, weighted_neighbors
from atlasmap.models.random import keyed_seed

N_TREES = 100
MAX_ITERATIONS = 1000
KS = (5, 10, 20, 50, 100, 200)  # neighbours, whose number kNN is sensitive to


def random_forest(reference: np.ndarray, labels: np.ndarray, query: np.ndarray, seed: int):
    """Random forest (Breiman 2001) on the latent (cells × latent)."""
    state = keyed_seed(seed, "random forest") % 2**32
    model = RandomForestClassifier(N_TREES, random_state=state, n_jobs=1).fit(reference, labels)
    return SoftLabels(model.predict_proba(query), [str(name) for name in model.classes_])


def logistic(reference: np.ndarray, labels: np.ndarray, query: np.ndarray, seed: int):
    """Multinomial logistic regression on the standardised latent (cells × latent)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    model.fit(reference, labels)
    return SoftLabels(model.predict_proba(query), [str(name) for name in model.classes_])


def majority(opinions: pd.DataFrame) -> pd.DataFrame:
    """Label that most columns of `opinions` (cells × methods) name, and their share; of labels with
    as many votes the one that the leftmost column named."""
    codes, names = pd.factorize(opinions.to_numpy(object).ravel())
    codes = codes.reshape(opinions.shape)
    counts = np.stack([(codes == code).sum(1) for code in range(len(names))], 1)
    of_each = np.take_along_axis(counts, codes, 1)  # votes of the label that each column names
    winner = of_each.argmax(1)
    rows = np.arange(len(codes))
    share = of_each[rows, winner] / opinions.shape[1]
    return pd.DataFrame({"label": names[codes[rows, winner]], "confidence": share})


def second_opinions(
    reference: np.ndarray, labels: np.ndarray, query: np.ndarray, classifier: SoftLabels | None,
    n_neighbors: int, seed: int,
) -> tuple[pd.DataFrame, dict[str, float]]:  # fmt: skip
    """Columns {method} and {method}_confidence for each query cell, and seconds a method.

    `reference` and `query` are cells × latent, `labels` those of the reference's cells (all known).
    """

    def knn(reference, labels, query, seed):
        return votes(weighted_neighbors(reference, query, n_neighbors), labels)

    methods: dict[str, Callable] = {
        "knn": knn, "random_forest": random_forest, "logistic": logistic,
    }  # fmt: skip
    found = {} if classifier is None else {"classifier": classifier}
    seconds = {}
    for name, method in methods.items():
        start = time.perf_counter()
        found[name] = method(reference, labels, query, seed)
        seconds[name] = time.perf_counter() - start
    table = pd.DataFrame({name: soft.predicted().astype(str) for name, soft in found.items()})
    everyone = majority(table)
    for name, soft in found.items():
        table[f"{name}_confidence"] = soft.confidence()
    table["majority"], table["majority_confidence"] = everyone["label"], everyone["confidence"]
    return table, seconds | {"majority": sum(seconds.values())}


def knn_by_k(reference: np.ndarray, labels: np.ndarray, query: np.ndarray) -> pd.DataFrame:
    """kNN's label of each query cell for each number of neighbours (cells × KS)."""
    ks = [k for k in KS if k <= len(reference)]
    return pd.DataFrame(
        {k: votes(weighted_neighbors(reference, query, k), labels).predicted() for k in ks}
    )
