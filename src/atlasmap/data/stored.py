"""Checked reading of single elements of .h5ad, .h5mu and .zarr files.

Lengths are checked before memory is allocated, and sparse pointers and indices before they are
used: once for a matrix in memory, per block for one that stays on disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy import sparse

from atlasmap.data.blocks import ROWS
from atlasmap.data.structure import (
    NUMBERS,
    Damaged,
    check_pointers,
    check_range,
    check_twice,
    numbers,
)
from atlasmap.errors import AtlasmapError

SPARSE = ("csr_matrix", "csc_matrix", "csr", "csc")
UNREADABLE = "_unreadable"  # uns key: element that could not be read → reason
SMALL, LARGEST_RATIO = (
    2**24,
    1100,
)  # arrays up to SMALL bytes are trusted; larger ones up to LARGEST_RATIO bytes per stored byte


def opened(path: Path):
    """Open the HDF5 file or zarr store at `path` for reading."""
    if path.suffix.lower() == ".zarr":
        import zarr

        return zarr.open_group(path, mode="r")
    return h5py.File(path)


def close(file) -> None:
    """Close an HDF5 file; a zarr store needs no closing."""
    if isinstance(file, h5py.File):
        file.close()


def child(group, name: str, path: str):
    """Return element `name` of a group, whose path is `path`.

    Raises Damaged if it is missing, a broken link, or fails `check_honest`.
    """
    try:
        found = group[name]
    except Exception as error:  # h5py, zarr and codecs raise many types
        raise Damaged(f"{path}/{name} is missing or cannot be opened".lstrip("/")) from error
    if isinstance(found, h5py.Dataset):
        check_honest(found, f"{path}/{name}".lstrip("/"))
    return found


def check_honest(array: h5py.Dataset, path: str) -> None:
    """Raise Damaged for external storage, for a virtual data set with a missing source file, and
    for a declared size that is implausible given the stored bytes."""
    if array.external:
        raise Damaged(f"the values of {path} lie in another file")
    if array.is_virtual:
        beside = Path(array.file.filename).parent
        files = {source.file_name for source in array.virtual_sources()} - {"."}
        lost = [name for name in files if not (beside / name).is_file()]
        if lost:
            raise Damaged(f"the values of {path} lie in {lost[0]}, which is not there")
        return
    declared, held = array.size * array.dtype.itemsize, array.id.get_storage_size()
    if declared > SMALL and declared > LARGEST_RATIO * held:
        raise Damaged(f"{path} says that it has {array.size} values, and holds {held} bytes")


def attribute(element, key: str, default: str) -> str:
    """Return an attribute as text (it may be stored as bytes)."""
    return plain_text(element.attrs.get(key, default))


# --- sparse matrices in a file


@dataclass(frozen=True)
class SparseParts:
    """A sparse matrix in a file, whose layout was checked.

    `kind`: its scipy class; `shape`: cells × genes; `pointers`: indptr.
    """

    group: Any
    kind: type
    shape: tuple[int, int]
    pointers: np.ndarray

    @classmethod
    def of(cls, group, shape: tuple[int, int], path: str) -> "SparseParts":
        """Check a group against the expected shape; only the pointers are read. Raises Damaged."""
        told = np.asarray(group.attrs.get("shape", group.attrs.get("h5sparse_shape", ())))
        if told.shape != (2,) or tuple(told) != shape:
            raise Damaged(f"{path} says its shape is {told.tolist()}, not {list(shape)}")
        return cls.laid_out(group, sparse_kind(group), shape, path)

    @classmethod
    def laid_out(cls, group, kind: str, shape: tuple[int, int], path: str) -> "SparseParts":
        """Check a group of format `kind` (csr, csc) by its arrays only; raises Damaged."""
        arrays = {name: child(group, name, path) for name in ("data", "indices", "indptr")}
        sizes = {name: getattr(array, "shape", None) for name, array in arrays.items()}
        n_major = shape[0] if kind == "csr" else shape[1]
        if len(sizes["data"] or ()) != 1 or sizes["data"] != sizes["indices"]:
            raise Damaged(f"{path}: data have shape {sizes['data']}, indices {sizes['indices']}")
        if sizes["indptr"] != (n_major + 1,):
            raise Damaged(f"{path}: indptr has shape {sizes['indptr']}, not {(n_major + 1,)}")
        pointers = arrays["indptr"][:]
        check_pointers(pointers, n_major, sizes["data"][0], shape[1] if kind == "csr" else shape[0])
        return cls(
            group, sparse.csc_matrix if kind == "csc" else sparse.csr_matrix, shape, pointers
        )

    def rows(self, first: int, last: int):
        """Read rows (CSC: columns) `first` to `last` (exclusive), values as stored; raises
        Damaged."""
        at = slice(int(self.pointers[first]), int(self.pointers[last]))
        data, indices = numbers(self.group["data"][at]), self.group["indices"][at]
        is_csr = self.kind is sparse.csr_matrix
        n_minor = self.shape[1] if is_csr else self.shape[0]
        check_range(indices, n_minor)
        parts = (data, indices, (self.pointers[first : last + 1] - self.pointers[first]))
        shape = (last - first, n_minor) if is_csr else (n_minor, last - first)
        matrix = self.kind(parts, shape)
        check_twice(matrix)
        return matrix


def sparse_kind(stored) -> str:
    """Return csr or csc; empty if an element is no sparse matrix."""
    told = attribute(stored, "encoding-type", attribute(stored, "h5sparse_format", ""))
    return told[:3] if told in SPARSE else ""


def is_sparse(stored) -> bool:
    """Whether an element of a file is a sparse matrix."""
    return bool(sparse_kind(stored))


def has_rows(file, path: str) -> bool:
    """Whether rows of a matrix can be read separately (any format but CSC)."""
    return sparse_kind(child(file, path, "")) != "csc"


def naming(path: str, read: Callable):
    """Return `read()`; its exceptions become Damaged with `path` in the message, except
    MemoryError."""
    try:
        return read()
    except Damaged as error:
        named = str(error) if str(error).startswith(path) else f"{path}: {error}"
        raise Damaged(named) from error
    except MemoryError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise Damaged(f"{path}: {type(error).__name__} {first}".rstrip()) from error


def read_matrix(group, path: str, shape: tuple[int, int]):
    """Read a sparse or dense matrix of this shape (cells × genes) into memory, values as stored.

    Raises Damaged.
    """

    def read():
        stored = child(group, path, "")
        if is_sparse(stored):
            parts = SparseParts.of(stored, shape, path)
            return parts.rows(0, len(parts.pointers) - 1)
        if getattr(stored, "shape", None) != shape:
            found = getattr(stored, "shape", "no array")
            raise Damaged(f"{path} has shape {found}, not {shape}")
        return numbers(stored[:])

    return naming(path, read)


def lazy_matrix(file: Path, path: str, group, shape: tuple[int, int]):
    """Return a matrix as a dask array of row blocks, which are read and checked when computed.

    A CSC matrix is one block. `path` is the matrix's path from the root of `group`, the opened
    `file`. Raises Damaged.
    """
    import dask.array as da

    def read():
        stored = child(group, path, "")
        parts = SparseParts.of(stored, shape, path) if is_sparse(stored) else None
        if not parts and getattr(stored, "shape", None) != shape:
            raise Damaged(f"{path} has shape {getattr(stored, 'shape', 'no array')}, not {shape}")
        dtype = stored["data"].dtype if parts else stored.dtype
        numbers(np.empty(0, dtype))
        rows = shape[0] if parts and parts.kind is sparse.csc_matrix else ROWS
        steps = [min(rows, shape[0] - first) for first in range(0, shape[0], rows)] or [0]
        block = BlockOf(file, path, shape, parts and (parts.kind, parts.pointers))
        meta = sparse.csr_matrix((0, 0), dtype=np.float32)
        blocks = da.from_array(np.arange(len(steps)), chunks=1)
        return blocks.map_blocks(
            block, chunks=(tuple(steps), (shape[1],)), new_axis=1, dtype=np.float32, meta=meta,
            name=f"{path}-{id(block)}",
        )  # fmt: skip

    return naming(path, read)


@dataclass(frozen=True, eq=False)
class BlockOf:
    """Callable that reads block k (ROWS rows; all of a CSC matrix) of a matrix on disk.

    `sparse`: scipy class and index pointers of a sparse matrix; None of a dense one.
    """

    file: Path
    path: str
    shape: tuple[int, int]
    sparse: tuple[type, np.ndarray] | None

    def __call__(self, k: np.ndarray):
        first = int(k[0]) * ROWS
        last, file = min(first + ROWS, self.shape[0]), opened(self.file)
        try:
            stored = file[self.path]
            if self.sparse is None:
                return naming(self.path, lambda: numbers(stored[first:last]))
            kind, pointers = self.sparse
            parts = SparseParts(stored, kind, self.shape, pointers)
            ends = (first, last) if kind is sparse.csr_matrix else (0, len(pointers) - 1)
            return naming(self.path, lambda: parts.rows(*ends))
        finally:
            close(file)


# --- tables and everything else


def read_index(group, path: str) -> pd.Index:
    """Read the index (names of cells or genes) of a table as text; raises Damaged."""

    def read():
        values = np.asarray(read_elem(child(group, attribute(group, "_index", "_index"), path)))
        if values.ndim != 1:
            raise Damaged(f"the names have shape {values.shape}")
        names = pd.Index(values).map(plain_text)
        for name in names:
            name.encode()  # raises for text that could not be written to an output file
        return names

    return naming(path, read)


def plain_text(value) -> str:
    """Return a name as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def read_table(group, path: str, unreadable: dict[str, str]) -> pd.DataFrame:
    """Read obs or var; raises Damaged if its index cannot be read.

    Columns that cannot be read are left out and recorded in `unreadable` (element → reason).
    """
    names = read_index(group, path)
    order = np.atleast_1d(np.asarray(group.attrs.get("column-order", ()), object)).tolist()
    table = {}
    for key in map(plain_text, order):  # one of them may be the index, which is stored once
        read = partial(column, group, key, path, len(names))
        values = tolerant(f"{path}/{key}", unreadable, read)
        if values is not None:
            table[key] = values
    return pd.DataFrame(table, index=names)


def column(group, key: str, path: str, n: int):
    """Read a column of a table with `n` rows as a pandas array; raises any exception."""
    stored = child(group, key, path)
    parts = {"codes", "values", "mask"} & set(getattr(stored, "keys", tuple)())
    for part in ("", *parts):
        array = child(stored, part, f"{path}/{key}") if part else stored
        if getattr(array, "shape", (n,)) != (n,):
            raise Damaged(f"it has shape {array.shape}, and the table {n} rows")
    if "codes" in parts:
        child(stored, "categories", f"{path}/{key}")
    values = read_elem(stored)
    if np.ndim(values) != 1 or len(values) != n or getattr(values.dtype, "kind", "") == "V":
        raise Damaged(f"it has shape {np.shape(values)} and type {values.dtype}, in {n} rows")
    for text in getattr(values, "categories", ()):
        str(text).encode()
    if isinstance(values, np.ndarray):  # native byte order; any kind of text as objects
        native = values.dtype.newbyteorder("=") if values.dtype.kind in NUMBERS else object
        values = values.astype(native, copy=False)
    return pd.Series(values).array


def check_readable(adata: anndata.AnnData, element: str, name: str) -> None:
    """Raise FILE_UNREADABLE if a required element could not be read from the file."""
    why = adata.uns.get(UNREADABLE, {}).get(element)
    if why:
        raise AtlasmapError(
            "FILE_UNREADABLE",
            expected=f"{element} of {name}, whole",
            found=why,
            mend="copy the file again, or write it again with anndata from where its data came",
        )


def tolerant(path: str, unreadable: dict[str, str], read: Callable) -> Any | None:
    """Return `read()`; if it fails, record the reason in `unreadable` and return None.

    For elements that may not be needed; `check_readable` raises if one is.
    """
    try:
        return naming(path, read)
    except (Damaged, RecursionError) as error:
        unreadable[path] = str(error)
        return None
