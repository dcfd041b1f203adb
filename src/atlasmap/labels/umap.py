"""The map: UMAP (McInnes et al. 2018), fitted on reference cells; all other cells are placed in it.

The fitted map is stored as arrays (.npz), never as a pickle. Neighbours are exact (scikit-learn),
and query batches are placed one by one, so a cell's position depends only on its own batch and the
reference.
"""

import operator
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from atlasmap.errors import AtlasmapError
from atlasmap.labels.compile_cache import keep_numba
from atlasmap.labels.knn import Nearest
from atlasmap.models.random import keyed_seed
from atlasmap.settings import UmapSettings

LARGEST = 1e15  # bound on a map's values, so that their squares are finite in float32


@dataclass(frozen=True)
class FittedMap:
    """A fitted map: `latent` (fitted cells × latent), `positions` (fitted cells × 2), and the
    parameters `a`, `b` of UMAP's low-dimensional similarity curve."""

    latent: np.ndarray
    positions: np.ndarray
    n_neighbors: int
    a: float
    b: float
    seed: int

    def save(self, path: Path) -> None:
        """Write as .npz."""
        with open(path, "wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "FittedMap":
        """Read what `save` wrote; raises UMAP_UNREADABLE."""
        try:
            with np.load(path, allow_pickle=False) as file:
                whole = {key: operator.index(file[key].item()) for key in ("n_neighbors", "seed")}
                curve = {key: float(file[key].item()) for key in ("a", "b")}
                out = cls(file["latent"], file["positions"], **whole, **curve)
            if out.latent.ndim != 2 or out.positions.shape != (len(out.latent), 2):
                raise ValueError(f"shapes {out.latent.shape} and {out.positions.shape}")
            for part in (out.latent, out.positions, np.array([out.a, out.b])):
                if part.dtype.kind != "f" or not (np.abs(part) < LARGEST).all():
                    raise ValueError("values that are no finite numbers")
            if not (1 <= out.n_neighbors < max(len(out.latent), 2) and 0 <= out.seed < 2**32):
                raise ValueError(f"{out.n_neighbors} neighbours, seed {out.seed}")
        except Exception as error:  # numpy, zipfile and zlib raise many types
            raise AtlasmapError(
                "UMAP_UNREADABLE",
                expected=f"{path}, a fitted map",
                found=f"{type(error).__name__} {error}",
                mend="delete it: it is then fitted anew",
            ) from error
        return out


def umap_unfitted(**settings):
    """Return an unfitted umap.UMAP; its compiled functions are cached on disk."""
    import umap

    keep_numba("umap", "pynndescent")
    return umap.UMAP(n_jobs=1, **settings)


def fit_map(latent: np.ndarray, settings: UmapSettings, seed: int) -> FittedMap:
    """Fit UMAP on `latent` (cells × latent), or on a random sample of `max_cells` of its cells."""
    seed32 = keyed_seed(seed, "umap") % 2**32
    if len(latent) > settings.max_cells:
        rng = np.random.default_rng(seed32)
        latent = latent[np.sort(rng.choice(len(latent), settings.max_cells, replace=False))]
    n_neighbors = min(settings.n_neighbors, len(latent) - 1)
    model = umap_unfitted(n_neighbors=n_neighbors, min_dist=settings.min_dist, random_state=seed32)
    positions = model.fit_transform(latent)
    return FittedMap(latent, positions, n_neighbors, float(model._a), float(model._b), seed32)


def place(fitted: FittedMap, latent: np.ndarray, nearest: Nearest | None = None) -> np.ndarray:
    """Positions (cells × 2) of `latent` (cells × latent) in the fitted map.

    `nearest`: nearest cells among those that the map was fitted on, if already computed. If
    `latent` are exactly the fitted cells, their fitted positions are returned.
    """
    if np.array_equal(latent, fitted.latent):
        return fitted.positions
    model = umap_unfitted(
        n_neighbors=fitted.n_neighbors, metric="precomputed", a=fitted.a, b=fitted.b,
        random_state=fitted.seed, transform_seed=fitted.seed,
    )  # fmt: skip
    # Attributes that fit() would have set; transform() reads no others.
    model.embedding_, model._raw_data = fitted.positions, fitted.latent
    model._n_neighbors, model._a, model._b = fitted.n_neighbors, fitted.a, fitted.b
    model._initial_alpha, model._input_hash = model.learning_rate, None
    model._disconnection_distance, model._sparse_data = np.inf, True
    if nearest is None:
        nearest = Nearest.of(fitted.latent, latent, fitted.n_neighbors)
    nearest = nearest.first(fitted.n_neighbors)
    ends = fitted.n_neighbors * np.arange(len(latent) + 1)
    parts = nearest.distances.ravel(), nearest.at.ravel(), ends
    distances = sparse.csr_matrix(parts, (len(latent), len(fitted.latent)))
    with warnings.catch_warnings():  # precomputed distances are intended
        warnings.filterwarnings("ignore", "Transforming new data with precomputed", UserWarning)
        return np.asarray(model.transform(distances))
