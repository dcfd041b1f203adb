"""Comparison of a query batch with a labelled reference in gene space: correlation of each cell
with each label, and label probabilities from genes.

The shift of a batch is the change in expression that its cells have in common (chemistry, library
size, stimulation): the median over labels of the difference between the mean of the cells with that
label and the reference's mean. It is subtracted from the cells, genes with a large shift get less
weight, and the direction of the shift is projected out. Each cell is averaged with similar cells of
its batch before it is correlated with labels, as single cells are mostly noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from atlasmap.models.random import keyed_seed

N_POOLED = 15  # similar cells that a cell is averaged with
SHARE = 8  # but at most one in SHARE of the batch's cells
N_COMPONENTS = 20
N_GENES = 1000  # genes used for correlations
N_REGRESSED = 600  # genes used by the regression
PENALTY, LARGEST = 0.02, 8.0  # regression: C, and the bound of features in standard deviations
LEAST = 5  # fewest cells of a label that count for the batch's shift
MOST_PER_LABEL = 2000  # most reference cells that a profile is computed from
MAX_ANCHORS = 20_000  # most cells among which similar ones are searched
CHUNK = 2048
MAX_ITERATIONS = 200
LEAST_VARIANCE = 1e-3
EPS, NEVER = 1e-9, -30.0  # NEVER: intercept of labels without cells


def log_normalised(counts: sparse.csr_matrix, scale: float) -> sparse.csr_matrix:
    """log(1 + counts scaled to a library size of `scale`)."""
    depth = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    out = sparse.csr_matrix(sparse.diags_array(scale / depth) @ counts, dtype=np.float32)
    out.data = np.log1p(out.data)
    return out


def sums_by(codes: np.ndarray, n: int, values: sparse.csr_matrix) -> np.ndarray:
    """Sum of the rows per code (`n` codes × genes)."""
    ends = np.arange(len(codes) + 1)
    member = sparse.csr_matrix((np.ones(len(codes), np.float32), codes, ends), (len(codes), n)).T
    return np.asarray((member @ values).todense(), np.float64)


@dataclass(frozen=True)
class Profiles:
    """Log-normalised expression of a reference's labels, for batches of one library size (`scale`).

    `means` (labels × genes); variance `within` labels (genes); `centre`: mean of all labelled cells
    (genes); and a logistic regression on the `regressed` genes: `coefficients` (labels × regressed
    genes) and `intercepts` (labels).
    """

    scale: float
    means: np.ndarray
    within: np.ndarray
    centre: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    @classmethod
    def of(
        cls, counts: sparse.csr_matrix, labels: np.ndarray, names: list[str], scale: float
    ) -> "Profiles":
        """Compute profiles from reference `counts` (cells × genes; of each label a sample is read)
        and their `labels`, for batches with a median library size of `scale`. Cells with a label
        not in `names` are left out."""
        number = {name: k for k, name in enumerate(names)}
        codes = np.array([number.get(label, -1) for label in labels])
        at = np.sort(np.concatenate([some_of(codes, k) for k in range(len(names))]))
        codes, logs = codes[at], log_normalised(sparse.csr_matrix(counts[at]), scale)
        n = np.bincount(codes, minlength=len(names))[:, None]
        means = sums_by(codes, len(names), logs) / np.maximum(n, 1)
        centre = (n * means).sum(0) / len(codes)
        means[n[:, 0] == 0] = centre  # no cells: a neutral profile
        squares = np.asarray(logs.multiply(logs).sum(0)).ravel()
        within = (squares - (n * means**2).sum(0)) / len(codes) + LEAST_VARIANCE
        empty = np.empty((0, 0))
        out = cls(scale, means, within, centre, empty, empty)
        coefficients, intercepts = regression(
            out.features(logs, np.zeros_like(centre)), codes, len(n)
        )
        return replace(out, coefficients=coefficients, intercepts=intercepts)

    @cached_property
    def regressed(self) -> np.ndarray:
        """Indices of the genes that vary most between labels, relative to the variance within."""
        return np.argsort(-self.means.std(0) / np.sqrt(self.within), kind="stable")[:N_REGRESSED]

    def features(self, logs: sparse.csr_matrix, shift: np.ndarray) -> np.ndarray:
        """Features of the regression (cells × regressed genes): expression without the batch's
        `shift` (genes), standardised and clipped."""
        genes, unit = self.regressed, np.sqrt(self.within)
        values = logs[:, genes].toarray() - shift[genes] - self.centre[genes]
        return np.clip(values / unit[genes], -LARGEST, LARGEST)

    def probabilities(
        self, logs: sparse.csr_matrix, shift: np.ndarray, measured: np.ndarray
    ) -> np.ndarray:
        """Label probabilities by the regression (cells × labels); genes that were not `measured`
        (mask) are ignored."""
        coefficients = np.where(measured[self.regressed], self.coefficients, 0.0).T
        parts = [self.features(logs[rows], shift) @ coefficients for rows in chunks(logs.shape[0])]
        return softmax(np.concatenate(parts) + self.intercepts, axis=1)


def regression(x: np.ndarray, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (`n` labels × features) and intercepts of a logistic regression; labels without
    cells get the intercept NEVER."""
    coefficients, intercepts = np.zeros((n, x.shape[1])), np.full(n, NEVER)
    own = np.unique(codes)
    intercepts[own] = 0
    if len(own) > 1:
        model = LogisticRegression(C=PENALTY, max_iter=MAX_ITERATIONS).fit(x, codes)
        own = own[1:] if len(own) == 2 else own  # binary: scikit-learn fits only the second
        coefficients[own], intercepts[own] = model.coef_, model.intercept_
    return coefficients, intercepts


def some_of(codes: np.ndarray, code: int) -> np.ndarray:
    """Sorted indices of a label's cells, or of a random sample of MOST_PER_LABEL of them."""
    at = np.flatnonzero(codes == code)
    if len(at) <= MOST_PER_LABEL:
        return at
    rng = np.random.default_rng(keyed_seed(0, "profiles", code))
    return np.sort(rng.choice(at, MOST_PER_LABEL, replace=False))


def chunks(n: int) -> Iterator[slice]:
    """Slices of at most CHUNK rows that cover `n` rows."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def like_ones(logs: sparse.csr_matrix) -> sparse.csr_matrix:
    """Averaging matrix (cells × cells; rows sum to one) of each cell and its nearest cells in the
    batch.

    Neighbours are searched in principal components of the batch's own expression, so they do not
    depend on any model. With more than MAX_ANCHORS cells, only a random sample of them is searched,
    and a cell outside the sample is averaged without itself.
    """
    n = logs.shape[0]
    anchors = np.arange(n)
    if n > MAX_ANCHORS:
        rng = np.random.default_rng(keyed_seed(0, "like ones", n))
        anchors = np.sort(rng.choice(n, MAX_ANCHORS, replace=False))
    n_components = min(N_COMPONENTS, min(len(anchors), logs.shape[1]) - 1)
    pca = PCA(n_components, svd_solver="arpack", random_state=0).fit(logs[anchors])
    space = np.concatenate([pca.transform(logs[rows]) for rows in chunks(n)])
    n_like = min(max(1, min(N_POOLED, n // SHARE)) + 1, len(anchors))
    search = NearestNeighbors(n_neighbors=n_like).fit(space[anchors])
    at = anchors[search.kneighbors(space, return_distance=False)]
    ends = n_like * np.arange(n + 1)
    weights = np.full(at.size, 1 / n_like, np.float32)
    return sparse.csr_matrix((weights, at.ravel(), ends), (n, n))


@dataclass(frozen=True)
class Seen:
    """A batch compared with a reference's profiles, given labels (`codes`) of its cells.

    `logs`: log-normalised expression (cells × genes); `pooling`: averaging matrix of `like_ones`;
    `measured`: mask of genes with any count; `shift` of the batch (genes); `like`: correlations
    with labels (cells × labels); `by_genes`: label probabilities of the regression (cells ×
    labels).
    """

    profiles: Profiles
    codes: np.ndarray
    logs: sparse.csr_matrix
    pooling: sparse.csr_matrix
    measured: np.ndarray
    shift: np.ndarray
    like: np.ndarray
    by_genes: np.ndarray

    @classmethod
    def of(cls, profiles: Profiles, counts: sparse.csr_matrix, codes: np.ndarray) -> "Seen":
        """Compare a batch's `counts` (cells × genes) with the profiles."""
        logs = log_normalised(counts, profiles.scale)
        measured = np.asarray(logs.sum(0)).ravel() > 0
        return cls.named(profiles, codes, logs, like_ones(logs), measured)

    @classmethod
    def named(cls, profiles, codes, logs, pooling, measured) -> "Seen":
        """Compute what depends on the cells' labels (`codes`) from what does not."""
        shift = shift_of(profiles, logs, codes)
        like = likeness(profiles, logs, pooling, measured, shift)
        by_genes = profiles.probabilities(logs, shift, measured)
        return cls(profiles, codes, logs, pooling, measured, shift, like, by_genes)

    @property
    def opinion(self) -> np.ndarray:
        """`by_genes`, NaN for cells without counts of any regressed gene."""
        nothing = np.asarray(self.logs[:, self.profiles.regressed].sum(1)).ravel() == 0
        return np.where(nothing[:, None], np.nan, self.by_genes)

    def renamed(self, codes: np.ndarray) -> "Seen":
        """Return the comparison with other labels of the cells."""
        return self.named(self.profiles, codes, self.logs, self.pooling, self.measured)


def shift_of(profiles: Profiles, logs: sparse.csr_matrix, codes: np.ndarray) -> np.ndarray:
    """Shift of a batch (genes): median over labels of its cells' mean minus the reference's.

    The mean instead of the median for one or two labels. If no label has LEAST cells: mean of the
    batch minus mean of all label profiles.
    """
    n = np.bincount(codes, minlength=len(profiles.means))
    enough = np.flatnonzero(n >= LEAST)
    if not len(enough):
        return np.asarray(logs.mean(0)).ravel() - profiles.means.mean(0)
    moved = sums_by(codes, len(n), logs)[enough] / n[enough, None] - profiles.means[enough]
    return np.median(moved, 0) if len(moved) > 2 else moved.mean(0)


def likeness(
    profiles: Profiles, logs: sparse.csr_matrix, pooling: sparse.csr_matrix, measured: np.ndarray,
    shift: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Correlation of each cell, averaged with its neighbours (`pooling`), with each label (cells ×
    labels)."""
    unit = np.sqrt(profiles.within + shift**2)  # genes with a large shift get less weight
    apart = np.where(measured, profiles.means.std(0) / unit, -1)
    genes = np.argsort(-apart, kind="stable")[: min(N_GENES, int(measured.sum()))]
    centre, unit = profiles.means.mean(0)[genes], unit[genes]
    along = shift[genes] / unit
    along = along / (np.linalg.norm(along) + EPS)

    def direction(values: np.ndarray) -> np.ndarray:
        out = (values - centre) / unit
        out = out - (out @ along)[:, None] * along
        return out / (np.linalg.norm(out, axis=1, keepdims=True) + EPS)

    own, of_genes = direction(profiles.means[:, genes]).T, logs[:, genes].tocsr()
    pooled = ((pooling[rows] @ of_genes).toarray() for rows in chunks(logs.shape[0]))
    return np.concatenate([direction(part - shift[genes]) @ own for part in pooled])
