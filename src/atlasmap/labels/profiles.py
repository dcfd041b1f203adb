"""A query batch seen from a labelled reference, gene by gene: how like each label a cell is, and
which label its genes say.

What a batch has in common (chemistry, depth, stimulation) is its shift: the median over labels of
how far cells called so are from the reference's. It is taken out of the cells, genes that it moves
weigh less, and its direction is projected out. A cell is compared with labels as the mean of it and
its like, as single cells are mostly noise.
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

N_POOLED = 15  # cells that are like a cell
SHARE = 8  # of a batch's cells at most one in so many are
N_COMPONENTS = 20
N_GENES = 1000  # that labels are compared in
N_REGRESSED = 600  # that the regression sees
PENALTY, LARGEST = 0.02, 8.0  # C of the regression, and standard deviations
LEAST = 5  # cells of a label from which its shift is known
MOST_PER_LABEL = 2000  # reference cells that a profile is of
MAX_ANCHORS = 20_000  # cells among which like ones are looked for
CHUNK = 2048
MAX_ITERATIONS = 200
LEAST_VARIANCE = 1e-3
EPS, NEVER = 1e-9, -30.0


def log_normalised(counts: sparse.csr_matrix, scale: float) -> sparse.csr_matrix:
    """log(1 + counts scaled to `scale` a cell)."""
    depth = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    out = sparse.csr_matrix(sparse.diags_array(scale / depth) @ counts, dtype=np.float32)
    out.data = np.log1p(out.data)
    return out


def sums_by(codes: np.ndarray, n: int, values: sparse.csr_matrix) -> np.ndarray:
    """Sum of the rows of each code (codes × genes)."""
    ends = np.arange(len(codes) + 1)
    member = sparse.csr_matrix((np.ones(len(codes), np.float32), codes, ends), (len(codes), n)).T
    return np.asarray((member @ values).todense(), np.float64)


@dataclass(frozen=True)
class Profiles:
    """Labels of a reference, on a logarithmic scale for batches of one depth (`scale`): `means`
    (labels × genes), variance `within` labels (genes), `centre` (genes) of all labelled cells, and
    a logistic regression on `regressed` genes: `coefficients` (labels × those) and `intercepts`."""

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
        """Of reference cells (cells × genes; some of each label are read) with these labels, for
        batches whose median depth is `scale`; cells with no label of `names` are left out."""
        number = {name: k for k, name in enumerate(names)}
        codes = np.array([number.get(label, -1) for label in labels])
        at = np.sort(np.concatenate([some_of(codes, k) for k in range(len(names))]))
        codes, logs = codes[at], log_normalised(sparse.csr_matrix(counts[at]), scale)
        n = np.bincount(codes, minlength=len(names))[:, None]
        means = sums_by(codes, len(names), logs) / np.maximum(n, 1)
        centre = (n * means).sum(0) / len(codes)
        means[n[:, 0] == 0] = centre  # like no cell
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
        """Genes (places) that tell labels apart most."""
        return np.argsort(-self.means.std(0) / np.sqrt(self.within), kind="stable")[:N_REGRESSED]

    def features(self, logs: sparse.csr_matrix, shift: np.ndarray) -> np.ndarray:
        """What the regression sees of cells from which a shift (genes) is taken out."""
        genes, unit = self.regressed, np.sqrt(self.within)
        values = logs[:, genes].toarray() - shift[genes] - self.centre[genes]
        return np.clip(values / unit[genes], -LARGEST, LARGEST)

    def probabilities(
        self, logs: sparse.csr_matrix, shift: np.ndarray, measured: np.ndarray
    ) -> np.ndarray:
        """Of each label by the cells' genes (cells × labels); of genes that were not `measured`
        (mask) nothing is taken."""
        coefficients = np.where(measured[self.regressed], self.coefficients, 0.0).T
        parts = [self.features(logs[rows], shift) @ coefficients for rows in chunks(logs.shape[0])]
        return softmax(np.concatenate(parts) + self.intercepts, axis=1)


def regression(x: np.ndarray, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (`n` labels × features) and intercepts of a logistic regression; a label without cells
    is never probable."""
    coefficients, intercepts = np.zeros((n, x.shape[1])), np.full(n, NEVER)
    own = np.unique(codes)
    intercepts[own] = 0
    if len(own) > 1:
        model = LogisticRegression(C=PENALTY, max_iter=MAX_ITERATIONS).fit(x, codes)
        own = own[1:] if len(own) == 2 else own  # of two scikit-learn keeps the second's alone
        coefficients[own], intercepts[own] = model.coef_, model.intercept_
    return coefficients, intercepts


def some_of(codes: np.ndarray, code: int) -> np.ndarray:
    """Places of a label's cells, of many some."""
    at = np.flatnonzero(codes == code)
    if len(at) <= MOST_PER_LABEL:
        return at
    rng = np.random.default_rng(keyed_seed(0, "profiles", code))
    return np.sort(rng.choice(at, MOST_PER_LABEL, replace=False))


def chunks(n: int) -> Iterator[slice]:
    """Some cells at a time."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def like_ones(logs: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each cell and its like among its batch's cells (cells × cells; rows sum to one), by principal
    components of its own genes: no model has a say in them."""
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
    """A batch seen from a reference, its cells named by `codes` of labels: `like` (cells × labels)
    correlations of a cell and its like with labels, `by_genes` (cells × labels) probabilities, the
    batch's `shift` (genes), `logs` (cells × genes) and which genes were `measured` (mask)."""

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
        """`counts`: cells × genes of the batch."""
        logs = log_normalised(counts, profiles.scale)
        measured = np.asarray(logs.sum(0)).ravel() > 0
        return cls.named(profiles, codes, logs, like_ones(logs), measured)

    @classmethod
    def named(cls, profiles, codes, logs, pooling, measured) -> "Seen":
        """The same, of what does not depend on the labels that cells were given."""
        shift = shift_of(profiles, logs, codes)
        like = likeness(profiles, logs, pooling, measured, shift)
        by_genes = profiles.probabilities(logs, shift, measured)
        return cls(profiles, codes, logs, pooling, measured, shift, like, by_genes)

    @property
    def opinion(self) -> np.ndarray:
        """`by_genes`, NaN for cells in which no gene was found that tells labels apart."""
        nothing = np.asarray(self.logs[:, self.profiles.regressed].sum(1)).ravel() == 0
        return np.where(nothing[:, None], np.nan, self.by_genes)

    def renamed(self, codes: np.ndarray) -> "Seen":
        """Its cells given other labels."""
        return self.named(self.profiles, codes, self.logs, self.pooling, self.measured)


def shift_of(profiles: Profiles, logs: sparse.csr_matrix, codes: np.ndarray) -> np.ndarray:
    """What a batch has in common (genes)."""
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
    """Correlation of each cell and its like with each label (cells × labels)."""
    unit = np.sqrt(profiles.within + shift**2)
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
