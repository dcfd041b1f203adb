"""An atlas of our own making: counts of a cell-type tree in batches, the query's shifted more.

A cell's counts are Poisson(library × gene share × gamma noise): negative binomial with variance
mean + mean² / INVERSE_DISPERSION. A gene's share is the product of its mean, its type's profile
and its batch's shift, scaled to sum to one over genes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from scipy import sparse

from atlasmap.data.blocks import write_counts
from atlasmap.data.simulate_proteins import add_proteins
from atlasmap.errors import AtlasmapError
from atlasmap.settings import SimulateSettings

# Fitted so that an atlas of 6,000 × 1,500 is as hard as the simulated one that development began
# with: 17 % non-zero, and logistic regression on 30 reference components names 79 % of the known
# query cells, 76 % of a reference batch left out. Standard deviations are of natural logarithms.
MEAN_SHAPE = 0.35  # gamma shape of gene means: most genes rare, a few at several counts a cell
MEAN_FLOOR = 0.003  # share of the average mean that the rarest gene has, so that none is all zero
LINEAGE_SHARE = 0.15  # share of genes that set a lineage apart from the root
TYPE_SHARE = 0.025  # share of genes that set a type apart within its lineage
MIN_CHANGED = 12  # genes that change at least, so that few genes do not mean huge changes
LINEAGE_SIGNAL = 7.2  # standard deviations of a cell's counts between lineage and root
TYPE_SIGNAL = 3.3  # the same between a type and its lineage
CLOSE_SIGNAL = 2.2  # the same between the two of a close pair
ZIPF_EXPONENT = 1.0  # the r-th most abundant type has 1 / r of the first's cells
COMPOSITION_SD = 0.1  # of a type's abundance from batch to batch
BATCH_SD = 0.3  # of every gene, independent in each batch
CHEMISTRY_SD = 0.3  # of every gene, shared by the query batches, on top of BATCH_SD
DEPTH = 450.0  # counts of a cell at which types are as far apart as said above
CAPTURE_EFFICIENCY = 0.83  # counts of the query's chemistry for one of the reference's
DEPTH_SPREAD = 0.44  # shallowest and deepest batch lie exp(∓ this) from the middle
LIBRARY_SD = 0.35  # of a cell's depth within its batch
INVERSE_DISPERSION = 3.0  # biological noise: 1 / squared coefficient of variation

CHUNK_CELLS = 1000  # dense rows in memory at once


@dataclass(frozen=True)
class Types:
    """The cell-type tree: T types, G genes."""

    names: np.ndarray
    """(T,) `L<lineage>.<type>`."""
    profiles: np.ndarray
    """(T, G) relative expression, positive, a row's scale is arbitrary."""
    abundances: np.ndarray
    """(T,) shares of cells, sum 1."""
    novel: int
    """Index of the type that only the query has."""


@dataclass(frozen=True)
class Batch:
    """One batch: how deep and how shifted it is, and whom it holds."""

    name: str
    role: str
    """reference or query."""
    depth: float
    """Median counts a cell."""
    shift: np.ndarray
    """(G,) factors on genes."""
    composition: np.ndarray
    """(T,) shares of cells, sum 1."""


def simulate(settings: SimulateSettings) -> anndata.AnnData:
    """Simulate an atlas of `n_cells` × `n_genes`, the cells spread evenly over the batches.

    X is CSR float32 of raw counts. obs: batch (batch0…, query0…), cell_type (L0.0…), lineage (L0…),
    role (reference or query); batches lie one after another, cells within one in random order.
    The type that `novel_type` names is in the query alone. The same settings give the same bits.
    At most CHUNK_CELLS cells are dense at a time.

    Raises SIMULATION_TOO_SMALL where there are fewer cells than batches, and ValueError for a
    negative seed. A type that is due less than one cell of a batch may be missing from it.
    """
    drawn = [(obs, list(chunks)) for obs, chunks in by_batch(settings)]
    counts = sparse.vstack([chunk for _, chunks in drawn for chunk in chunks], format="csr")
    obs, var = named([obs for obs, _ in drawn], settings)
    adata = anndata.AnnData(counts, obs.astype(str), var)
    if settings.proteins:
        add_proteins(adata, settings)
    return adata


def write_simulated(settings: SimulateSettings, path: Path) -> None:
    """Write `simulate`'s atlas (.h5ad) in pieces: no more than CHUNK_CELLS cells are in memory at a
    time (with proteins, whose truth is dense, all are)."""
    if settings.proteins:
        simulate(settings).write_h5ad(path)
        return
    obs, var = named([obs for obs, _ in by_batch(settings)], settings)
    anndata.AnnData(obs=obs, var=var).write_h5ad(path)
    write_counts(path, (chunk for _, chunks in by_batch(settings) for chunk in chunks), len(var))


def by_batch(
    settings: SimulateSettings,
) -> Iterator[tuple[pd.DataFrame, Iterator[sparse.csr_matrix]]]:
    """Obs and counts of each batch, the counts in pieces."""
    n_batches = settings.n_reference_batches + settings.n_query_batches
    if settings.n_cells < n_batches:
        raise AtlasmapError(
            "SIMULATION_TOO_SMALL",
            expected="at least one cell a batch",
            found=f"{settings.n_cells} cells for {n_batches} batches",
            mend="raise simulate.n_cells or lower simulate.n_reference_batches, n_query_batches",
        )
    # Streams of their own, so that more cells or batches leave the tree as it was.
    for_types, for_batches, for_cells = np.random.default_rng(settings.seed).spawn(3)
    types = grow_types(settings, for_types)
    batches = draw_batches(settings, types, for_batches)
    sizes = np.diff(np.arange(n_batches + 1) * settings.n_cells // n_batches)
    for batch, size, rng in zip(batches, sizes, for_cells.spawn(n_batches), strict=True):
        members = draw_members(batch.composition, size, rng)
        counts = draw_counts(types.profiles * batch.shift, members, batch.depth, rng)
        yield describe(batch, types.names[members]), counts


def named(
    frames: list[pd.DataFrame], settings: SimulateSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Obs of all batches (categorical), and var."""
    whole = {
        key: union_categoricals([frame[key].astype("category") for frame in frames])
        for key in frames[0]
    }
    cells = [f"cell{i:05d}" for i in range(settings.n_cells)]
    genes = [f"GENE{i:04d}" for i in range(settings.n_genes)]
    return pd.DataFrame(whole, index=cells), pd.DataFrame(index=genes)


def novel_type(settings: SimulateSettings) -> str:
    """Name of the type that only the query has: L3.1, or the tree's last type where L3.1 is not."""
    if settings.n_lineages > 3 and settings.n_types_per_lineage > 1:
        return "L3.1"
    return f"L{settings.n_lineages - 1}.{settings.n_types_per_lineage - 1}"


def grow_types(settings: SimulateSettings, rng: np.random.Generator) -> Types:
    """Draw the tree: root, lineages apart from the root, types apart from their lineage.

    In lineages of three types or more the last branches off the first rather than off the lineage:
    a close pair.
    """
    n_per = settings.n_types_per_lineage
    root = np.log(rng.gamma(MEAN_SHAPE, 1 / MEAN_SHAPE, settings.n_genes) + MEAN_FLOOR)
    names, logs = [], []
    for lineage in range(settings.n_lineages):
        stem = root + draw_change(root, LINEAGE_SHARE, LINEAGE_SIGNAL, rng)
        branches = []
        for kind in range(n_per):
            close = kind == n_per - 1 >= 2
            parent, signal = (branches[0], CLOSE_SIGNAL) if close else (stem, TYPE_SIGNAL)
            branches.append(parent + draw_change(stem, TYPE_SHARE, signal, rng))
            names.append(f"L{lineage}.{kind}")
        logs += branches
    novel = names.index(novel_type(settings))
    return Types(np.array(names), np.exp(logs), draw_abundances(len(names), novel, rng), novel)


def draw_change(
    parent: np.ndarray, share: float, signal: float, rng: np.random.Generator
) -> np.ndarray:
    """(G,) log fold changes from log means `parent` (G,): zero but for about `share` of the genes.

    The changed genes are spread evenly over the ranks of `parent`, and the changes scaled to
    `signal`: the root of the sum, over genes, of (expected difference)² / (count variance) at
    DEPTH. Otherwise how many changed genes happen to be expressed would make a type plain or
    hidden, and one seed's atlas far harder than another's.
    """
    n_changed = min(parent.size, max(MIN_CHANGED, round(share * parent.size)))
    ranks = (np.arange(n_changed) + rng.random(n_changed)) * parent.size / n_changed
    changed = np.argsort(parent)[ranks.astype(int)]
    counts = DEPTH * np.exp(parent[changed]) / np.exp(parent).sum()
    change = np.zeros(parent.size)
    change[changed] = rng.normal(size=n_changed)
    reached = np.sum(change[changed] ** 2 * counts / (1 + counts / INVERSE_DISPERSION))
    return change * signal / np.sqrt(reached)


def draw_abundances(n_types: int, novel: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) Zipf shares in random order; the novel type's rank is fixed, a quarter of the way down.

    A novel type that took the first rank by chance would leave the reference without its main
    type; one at the last would hardly be seen in the query.
    """
    ranked = np.arange(1, n_types + 1) ** -ZIPF_EXPONENT
    ranked /= ranked.sum()
    middle = max(1, n_types // 4)
    return np.insert(rng.permutation(np.delete(ranked, middle)), novel, ranked[middle])


def draw_batches(settings: SimulateSettings, types: Types, rng: np.random.Generator) -> list[Batch]:
    """Draw the batches, the reference's first; the query's share one chemistry."""
    n_genes = settings.n_genes
    chemistry = rng.normal(0, CHEMISTRY_SD, n_genes)
    known = types.abundances * (np.arange(types.names.size) != types.novel)
    batches = []
    for role, prefix, n_batches, log_shift, efficiency, present in (
        ("reference", "batch", settings.n_reference_batches, 0.0, 1.0, known),
        (
            "query",
            "query",
            settings.n_query_batches,
            chemistry,
            CAPTURE_EFFICIENCY,
            types.abundances,
        ),
    ):
        for i, spread in enumerate(draw_spread(n_batches, rng)):
            shift = np.exp(log_shift + rng.normal(0, BATCH_SD, n_genes))
            composition = present * np.exp(rng.normal(0, COMPOSITION_SD, present.size))
            depth = settings.depth * efficiency * np.exp(spread)
            batches.append(
                Batch(f"{prefix}{i}", role, depth, shift, composition / composition.sum())
            )
    return batches


def draw_spread(n_batches: int, rng: np.random.Generator) -> np.ndarray:
    """(n_batches,) log depths about zero: evenly spaced, in random order.

    Even, since free draws for two query batches would make some seeds far harder than others.
    """
    if n_batches == 1:
        return np.zeros(1)
    return rng.permutation(np.linspace(-DEPTH_SPREAD, DEPTH_SPREAD, n_batches))


def draw_members(composition: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) type indices in random order, every type within one cell of its share.

    Systematic sampling, so that a type that is due one cell is never missing.
    """
    ticks = (np.arange(size) + rng.random()) / size
    edges = np.cumsum(composition)
    return rng.permutation(np.searchsorted(edges / edges[-1], ticks))


def draw_counts(
    expression: np.ndarray, members: np.ndarray, depth: float, rng: np.random.Generator
) -> Iterator[sparse.csr_matrix]:
    """Counts (≤ CHUNK_CELLS, G), CSR float32, of the cells whose types `members` lists.

    `expression` (T, G) is on any scale, `depth` in counts a cell.
    """
    shares = (expression / expression.sum(axis=1, keepdims=True)).astype(np.float32)
    for start in range(0, members.size, CHUNK_CELLS):
        chunk = members[start : start + CHUNK_CELLS]
        library = depth * np.exp(rng.normal(0, LIBRARY_SD, (chunk.size, 1)))
        rate = rng.standard_gamma(INVERSE_DISPERSION, (chunk.size, shares.shape[1]), np.float32)
        rate *= shares[chunk]
        rate *= (library / INVERSE_DISPERSION).astype(np.float32)
        yield sparse.csr_matrix(rng.poisson(rate).astype(np.float32))


def describe(batch: Batch, cell_types: np.ndarray) -> pd.DataFrame:
    """Obs of one batch's cells, the types given by name."""
    return pd.DataFrame(
        {
            "batch": batch.name,
            "cell_type": cell_types,
            "lineage": [name.split(".")[0] for name in cell_types],
            "role": batch.role,
        }
    )
