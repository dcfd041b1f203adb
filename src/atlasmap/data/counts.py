"""The counts contract: what a matrix must be before anything trains on it."""

import anndata
import numpy as np
from scipy import sparse

from atlasmap.errors import AtlasmapError, listed


def matrix_at(adata: anndata.AnnData, where: str):
    """The matrix in X or in a layer; raises LAYER_MISSING."""
    if where == "X" and adata.X is not None:
        return adata.X
    if where in adata.layers:
        return adata.layers[where]
    raise AtlasmapError(
        "LAYER_MISSING",
        expected=f"counts in {where!r}",
        found=f"X{' (empty)' if adata.X is None else ''}; layers: {listed(adata.layers)}",
        mend="name the right one: `counts` in the sheet, or --layer",
    )


def as_csr(matrix) -> sparse.csr_matrix:
    """CSR in float32 with sorted indices and no stored zeros."""
    csr = sparse.csr_matrix(matrix, dtype=np.float32)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def not_integer(values: np.ndarray) -> bool:
    """Whether any value is not a whole number (tolerance 1e-3)."""
    return bool(len(values)) and bool(np.abs(values - np.rint(values)).max() > 1e-3)


def holds_counts(matrix) -> bool:
    """Whether a matrix could be counts."""
    values = as_csr(matrix).data
    finite = np.isfinite(values).all()
    return bool(len(values)) and bool(finite) and values.min() >= 0 and not not_integer(values)


def counts_elsewhere(adata: anndata.AnnData, where: str) -> str:
    """Where in the file counts are, for the mend of COUNTS_NOT_INTEGER."""
    places = {name: adata.layers[name] for name in adata.layers if name != where}
    if where != "X" and adata.X is not None:
        places["X"] = adata.X
    if adata.raw is not None:
        places["raw.X (make it a layer)"] = adata.raw.X
    found = [name for name, matrix in places.items() if holds_counts(matrix)]
    if found:
        return f"counts seem to be in {listed(found)}: name it as `counts` in the sheet"
    return "no other layer holds counts either: go back to the count matrix"


def checked_counts(
    adata: anndata.AnnData, where: str, name: str, *, corrected_float: bool
) -> sparse.csr_matrix:
    """Counts of `adata` as CSR float32 (cells × genes); raises COUNTS_* errors.

    `corrected_float` admits non-integer values (ambient-RNA correction).
    """
    counts = as_csr(matrix_at(adata, where))
    values = counts.data
    if not np.isfinite(values).all():
        bad = np.unique(np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[
            ~np.isfinite(values)
        ])  # fmt: skip
        raise AtlasmapError(
            "COUNTS_NOT_FINITE",
            expected="finite counts",
            found=f"NaN or infinity in {len(bad)} cells of {name}: {listed(adata.obs_names[bad])}",
            mend="remove these cells or restore their counts",
        )
    if len(values) and values.min() < 0:
        raise AtlasmapError(
            "COUNTS_NEGATIVE",
            expected="counts of zero or more",
            found=f"{int((values < 0).sum())} negative values in {name} ({where}), "
            f"least {values.min():.3g}: scaled data?",
            mend=counts_elsewhere(adata, where),
        )
    if not corrected_float and not_integer(values):
        raise AtlasmapError(
            "COUNTS_NOT_INTEGER",
            expected="integer counts",
            found=f"non-integer values in {name} ({where}), largest {values.max():.4g}: "
            "normalised or logged data?",
            mend=counts_elsewhere(adata, where)
            + "; if these are ambient-corrected counts, set `counts: corrected_float`",
        )
    check_cells_not_empty(counts, adata.obs_names, name, "")
    return counts


def check_cells_not_empty(counts: sparse.csr_matrix, cells, name: str, among: str) -> None:
    """Raise COUNTS_EMPTY_CELLS if any cell has no count (its library size would be zero)."""
    empty = np.asarray(counts.sum(1)).ravel() == 0
    if empty.any():
        raise AtlasmapError(
            "COUNTS_EMPTY_CELLS",
            expected=f"at least one count in every cell{among}",
            found=f"{int(empty.sum())} empty cells in {name}: {listed(np.asarray(cells)[empty])}",
            mend="filter them out (`obs_filter` in the sheet)"
            + ("; or keep more genes (data.n_top_genes)" if among else ""),
        )
