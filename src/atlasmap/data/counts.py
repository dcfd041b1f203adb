"""Checks that a matrix holds raw counts, before a model is trained on it."""

from dataclasses import dataclass
from itertools import pairwise

import anndata
import numpy as np
from scipy import sparse

from atlasmap.data.blocks import as_csr, as_stored, depths, each_block, in_blocks, is_lazy
from atlasmap.data.stored import check_readable
from atlasmap.data.structure import Damaged
from atlasmap.errors import AtlasmapError, listed

CORRECTED = "corrected_float"  # value of `counts` in the config: ambient-corrected counts
RAW = "raw"  # value of `counts` in the sheet: raw.X, where CELLxGENE and scanpy keep counts
SAMPLE, LEAST = 200, 10  # cells tested for normalisation; non-zero entries a tested cell needs
LARGEST_LOG = 20.0  # larger values cannot be log-transformed counts
LARGEST_EXACT = 2**24  # float32 represents every integer up to this one
# Inverse transformations: kind of normalisation → function that leaves counts times a factor.
UNDONE = {
    "normalised": lambda values: values,
    "normalised and logged (log1p)": np.expm1,
    "normalised and logged (log2)": lambda values: np.exp2(values) - 1,
}


def matrix_at(adata: anndata.AnnData, where: str, name: str):
    """Return X or the layer `where`. For raw, X already holds raw.X (`readers.of_raw`).

    Raises LAYER_MISSING, FILE_UNREADABLE.
    """
    check_readable(adata, "X" if where == "X" else f"layers/{where}", name)
    if where == "X" and adata.X is not None:
        return adata.X
    if where in adata.layers:
        return adata.layers[where]
    if where == RAW and adata.X is not None:
        return adata.X
    raw = "" if adata.raw is None else f"; raw.X with {adata.raw.n_vars} genes"
    raise AtlasmapError(
        "LAYER_MISSING",
        expected=f"counts in {where!r}",
        found=f"X{' (empty)' if adata.X is None else ''}; layers: {listed(adata.layers)}{raw}",
        mend=counts_elsewhere(adata, where)
        + ("; or set `counts: corrected_float` in the config" if where == CORRECTED else ""),
    )


def not_integer(values: np.ndarray) -> bool:
    """Whether any value is not an integer (tolerance 1e-3)."""
    return (
        bool(len(values))
        and values.dtype.kind == "f"
        and bool(np.abs(values - np.rint(values)).max() > 1e-3)
    )


def holds_counts(matrix) -> bool:
    """Whether all values are finite, non-negative integers and at least one is positive."""
    try:
        found = findings(each_block(matrix, as_stored))
    except Damaged:
        return False
    odd = len(found.not_finite) or found.n_negative or found.fractional
    return found.largest > 0 and not odd


def counts_elsewhere(adata: anndata.AnnData, where: str) -> str:
    """Say where else in the file counts are, for the `mend` of an error."""
    places = {name: adata.layers[name] for name in adata.layers if name != where}
    if where != "X" and adata.X is not None:
        places["X"] = adata.X
    if adata.raw is not None:
        places[RAW] = adata.raw.X
    found = [name for name, matrix in places.items() if holds_counts(matrix)]
    looked_at = f"looked at: {listed(places)}" if places else "there is nothing else"
    if found:
        return f"counts seem to be in {listed(found)}: name it as `counts` in the sheet"
    return f"go back to the count matrix: nothing else in the file holds counts ({looked_at})"


@dataclass(frozen=True)
class Findings:
    """Properties of a count matrix: indices of cells with NaN or infinity (`not_finite`), indices
    of cells whose sum is zero (`empty`), number of negative values, smallest and largest value, and
    whether any value is not an integer."""

    not_finite: np.ndarray
    empty: np.ndarray
    n_negative: int
    least: float
    largest: float
    fractional: bool

    @classmethod
    def of(cls, counts: sparse.csr_matrix, first: int) -> "Findings":
        """Findings of one block of rows, whose first row is cell `first`."""
        values, odd = counts.data, np.flatnonzero(~np.isfinite(counts.data))
        with np.errstate(over="ignore"):  # reported as COUNTS_TOO_LARGE
            sums = counts.astype(np.float32).sum(1)
        return cls(
            first + np.unique(np.searchsorted(counts.indptr, odd, side="right") - 1),
            first + np.flatnonzero(np.asarray(sums).ravel() == 0),
            int((values < 0).sum()),
            float(values.min(initial=0)),
            float(values.max(initial=0)),
            not_integer(np.delete(values, odd) if len(odd) else values),
        )

    @classmethod
    def join(cls, parts: list["Findings"]) -> "Findings":
        """Merge the findings of all blocks."""
        return cls(
            np.concatenate([part.not_finite for part in parts]),
            np.concatenate([part.empty for part in parts]),
            sum(part.n_negative for part in parts),
            min(part.least for part in parts),
            max(part.largest for part in parts),
            any(part.fractional for part in parts),
        )


def findings(matrix) -> Findings:
    """Compute the findings of a matrix (cells × genes), in memory or lazy."""
    first, parts = 0, []
    for block in in_blocks(matrix):
        parts.append(Findings.of(block, first))
        first += block.shape[0]
    return Findings.join(parts)


def ratios_are_whole(values: np.ndarray) -> bool:
    """Whether values are integer multiples of the smallest, as counts scaled by a constant are.

    Assumes that the smallest value is a count of one.
    """
    ratios = values / values.min()
    ratios = ratios[ratios < SAMPLE]  # float32 keeps too few decimals of larger ones
    return bool(np.abs(ratios - np.rint(ratios)).max() < 0.01)


def normalisation(counts: sparse.csr_matrix) -> str | None:
    """Name the normalisation (a key of UNDONE) that non-integer counts went through, or None.

    Tested on up to SAMPLE cells, of which more than half must agree: after inversion, the values of
    a normalised cell are multiples of its smallest. Ambient-corrected counts are not.
    """
    cells = (counts.data[a:b] for a, b in pairwise(counts.indptr[: SAMPLE + 1]))
    cells = [cell for cell in cells if len(cell) >= LEAST and not_integer(cell)]
    for name, undo in UNDONE.items():
        if name != "normalised" and counts.data.max(initial=0) > LARGEST_LOG:
            continue
        if cells and np.mean([ratios_are_whole(undo(np.float64(cell))) for cell in cells]) > 0.5:
            return name
    return None


def check_not_normalised(adata: anndata.AnnData, where: str, name: str, counts) -> None:
    """Raise COUNTS_NORMALISED if counts declared as ambient-corrected are normalised.

    Only the first block is tested.
    """
    done = normalisation(next(iter(in_blocks(counts))))
    if done:
        raise AtlasmapError(
            "COUNTS_NORMALISED",
            expected="counts corrected for ambient RNA, as `counts: corrected_float` says",
            found=f"values of {name} ({where}) that are counts {done}",
            mend=counts_elsewhere(adata, where),
        )


def checked_counts(
    adata: anndata.AnnData, where: str, name: str, *, corrected_float: bool, in_memory: bool = False
):
    """Return the counts at `where` as float32 CSR (cells × genes), after checking them.

    Lazy counts stay lazy unless `in_memory`. `corrected_float` admits non-integer values (ambient
    RNA correction). Raises COUNTS_* errors, LAYER_MISSING, FILE_UNREADABLE.
    """
    stored = matrix_at(adata, where, name)
    try:
        if in_memory and is_lazy(stored):
            stored = stored.compute(scheduler="synchronous")
        found = findings(each_block(stored, as_stored))
    except Damaged as error:
        raise AtlasmapError(
            "FILE_UNREADABLE",
            expected=f"a matrix whose arrays fit together in {name} ({where})",
            found=f"{error}",
            mend="copy the file again, or write it again with anndata from where its data came",
        ) from error
    if len(found.not_finite):
        cells = adata.obs_names[found.not_finite]
        raise AtlasmapError(
            "COUNTS_NOT_FINITE",
            expected="finite counts",
            found=f"NaN or infinity in {len(cells)} cells of {name}: {listed(cells)}",
            mend="remove these cells or restore their counts",
        )
    if found.n_negative:
        raise AtlasmapError(
            "COUNTS_NEGATIVE",
            expected="counts of zero or more",
            found=f"{found.n_negative} negative values in {name} ({where}), "
            f"least {found.least:.3g}: scaled data?",
            mend=counts_elsewhere(adata, where),
        )
    if found.largest > LARGEST_EXACT:
        raise AtlasmapError(
            "COUNTS_TOO_LARGE",
            expected=f"counts of one gene in a cell up to {LARGEST_EXACT:,}, which float32 holds",
            found=f"up to {found.largest:.8g} in {name} ({where})",
            mend="look at these values: no cell has so many; " + counts_elsewhere(adata, where),
        )
    if not corrected_float and found.fractional:
        raise AtlasmapError(
            "COUNTS_NOT_INTEGER",
            expected="integer counts",
            found=f"non-integer values in {name} ({where}), largest {found.largest:.4g}: "
            "normalised or logged data?",
            mend=counts_elsewhere(adata, where)
            + "; of ambient-corrected counts set `counts: corrected_float` in the config",
        )
    counts = each_block(stored, as_csr)
    if found.fractional:
        check_not_normalised(adata, where, name, counts)
    check_none_empty(found.empty, adata.obs_names, name, "")
    return counts


def check_none_empty(empty: np.ndarray, cells, name: str, among: str) -> None:
    """Raise COUNTS_EMPTY_CELLS if `empty` (indices of cells without counts) is not empty.

    The models take the logarithm of the library size, so it must not be zero. `among` names a
    subset of genes for the message.
    """
    if len(empty):
        raise AtlasmapError(
            "COUNTS_EMPTY_CELLS",
            expected=f"at least one count in every cell{among}",
            found=f"{len(empty)} empty cells in {name}: {listed(np.asarray(cells)[empty])}",
            mend="filter them out (`obs_filter` in the sheet)"
            + ("; or keep more genes (data.n_top_genes)" if among else ""),
        )


def check_cells_not_empty(counts, cells, name: str, among: str) -> None:
    """Raise COUNTS_EMPTY_CELLS if any row of `counts` sums to zero."""
    check_none_empty(np.flatnonzero(depths(counts) == 0), cells, name, among)
