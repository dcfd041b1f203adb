"""Consistency checks of the arrays of a sparse matrix (CSR; CSC with rows and columns swapped).

The three arrays of a matrix from a file may be inconsistent. Compiled code does not check them, so
an index or pointer out of range gives wrong counts or a crash.
"""

import numpy as np
from scipy import sparse

from atlasmap.data.blocks import PIECE

NUMBERS = "biuf"  # dtype kinds that can hold counts


class Damaged(ValueError):
    """An element of a file is missing or inconsistent; the message says which and how."""


def check_pointers(pointers: np.ndarray, n_rows: int, n_stored: int, n_columns: int) -> None:
    """Raise Damaged unless row pointers (rows + 1) are integers that increase from 0 to `n_stored`
    by at most `n_columns` per row."""
    if pointers.dtype.kind not in "iu" or pointers.shape != (n_rows + 1,):
        raise Damaged(
            f"indptr has shape {pointers.shape} and type {pointers.dtype}, "
            f"not {n_rows + 1} whole numbers"
        )
    if pointers[0] != 0 or pointers[-1] != n_stored:
        raise Damaged(f"indptr goes from {pointers[0]} to {pointers[-1]}, not from 0 to {n_stored}")
    falls = np.flatnonzero(pointers[1:] < pointers[:-1])
    if len(falls):
        at = falls[0] + 1
        raise Damaged(f"indptr falls from {pointers[at - 1]} to {pointers[at]} at {at}")
    most = np.diff(pointers).max(initial=0)
    if most > n_columns:
        raise Damaged(f"a row has {most} entries, and there are {n_columns} columns")


def check_range(indices: np.ndarray, n_columns: int) -> None:
    """Raise Damaged unless column indices are integers from 0 to `n_columns` − 1."""
    if indices.dtype.kind not in "iu":
        raise Damaged(f"indices are of type {indices.dtype}, not whole numbers")
    for first in range(0, len(indices), PIECE):
        part = indices[first : first + PIECE]
        least, largest = part.min(), part.max()
        if least < 0 or largest >= n_columns:
            odd = least if least < 0 else largest
            raise Damaged(f"an index is {odd}, of {n_columns} (0 to {n_columns - 1})")


def strictly_rising(indices: np.ndarray, pointers: np.ndarray) -> bool:
    """Whether column indices are strictly increasing within each row."""
    starts = pointers[1:-1]
    for first in range(0, len(indices) - 1, PIECE):
        part = indices[first : first + PIECE + 1]
        rises = part[1:] > part[:-1]
        own = starts[
            np.searchsorted(starts, first + 1) : np.searchsorted(starts, first + len(part))
        ]
        rises[own - first - 1] = True  # pairs across two rows are not compared
        if not rises.all():
            return False
    return True


def check_twice(matrix: sparse.csr_matrix | sparse.csc_matrix) -> None:
    """Sort the indices of a matrix in place; raises Damaged for duplicate entries.

    Pointers and indices must be in range.
    """
    if strictly_rising(matrix.indices, matrix.indptr):
        return
    matrix.sort_indices()
    if not strictly_rising(matrix.indices, matrix.indptr):
        raise Damaged("an index is in a row twice (sum_duplicates() adds the values up)")


def check_sparse(matrix: sparse.csr_matrix | sparse.csc_matrix) -> None:
    """Check a matrix in memory and sort its indices in place; raises Damaged."""
    n_major, n_minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    n_stored = len(matrix.data)
    if len(matrix.indices) != n_stored:
        raise Damaged(f"{n_stored} values have {len(matrix.indices)} indices")
    check_pointers(matrix.indptr, n_major, n_stored, n_minor)
    check_range(matrix.indices, n_minor)
    check_twice(matrix)


def numbers(values: np.ndarray) -> np.ndarray:
    """Return values in native byte order; bool and float16 become float32, for sparse matrices.

    Raises Damaged for a dtype that is not numeric.
    """
    if values.dtype.kind not in NUMBERS:
        raise Damaged(f"values are of type {values.dtype}, not numbers")
    if values.dtype.kind == "b" or values.dtype == np.float16:
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
