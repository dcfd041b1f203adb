"""Elements of an .h5ad, .h5mu or .zarr, each checked before anything relies on it.

Lengths are compared before they are allocated, and pointers and indices before they are followed:
of a matrix in memory once, of one that stays on disk in each block that is read.
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
UNREADABLE = "_unreadable"  # key of uns: what of a file could not be read, and why
SMALL, LARGEST_RATIO = (
    2**24,
    1100,
)  # bytes that are never doubted; of an array, for each in the file


def opened(path: Path):
    """The HDF5 file or zarr store at `path`, for reading."""
    if path.suffix.lower() == ".zarr":
        import zarr

        return zarr.open_group(path, mode="r")
    return h5py.File(path)


def close(file) -> None:
    """Close an HDF5 file; a zarr store needs no closing."""
    if isinstance(file, h5py.File):
        file.close()


def child(group, name: str, path: str):
    """What a group has under a name; raises Damaged if it is not there, or a link to nowhere."""
    try:
        found = group[name]
    except Exception as error:  # h5py, zarr and codecs raise what they like
        raise Damaged(f"{path}/{name} is missing or cannot be opened".lstrip("/")) from error
    if isinstance(found, h5py.Dataset):
        check_honest(found, f"{path}/{name}".lstrip("/"))
    return found


def check_honest(array: h5py.Dataset, path: str) -> None:
    """Raise Damaged for values that lie in another file which is not there, or that are not in the
    file at all, whatever length it says they have."""
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
    """An attribute as text, however it was written."""
    return plain_text(element.attrs.get(key, default))


# --- sparse matrices in a file


@dataclass(frozen=True)
class SparseParts:
    """A sparse group's layout, compared with the shape (cells × genes) that it must have."""

    group: Any
    kind: type
    shape: tuple[int, int]
    pointers: np.ndarray

    @classmethod
    def of(cls, group, shape: tuple[int, int], path: str) -> "SparseParts":
        """Raises Damaged where lengths, shape or pointers do not fit; reads the pointers alone."""
        told = np.asarray(group.attrs.get("shape", group.attrs.get("h5sparse_shape", ())))
        if told.shape != (2,) or tuple(told) != shape:
            raise Damaged(f"{path} says its shape is {told.tolist()}, not {list(shape)}")
        return cls.laid_out(group, sparse_kind(group), shape, path)

    @classmethod
    def laid_out(cls, group, kind: str, shape: tuple[int, int], path: str) -> "SparseParts":
        """The same of a group that is known to be `kind` (csr, csc)."""
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
        """Rows (of CSC: columns) `first` to under `last` as a matrix of `kind`, values as stored;
        raises Damaged."""
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
    """csr or csc; empty if an element of a file is no sparse matrix."""
    told = attribute(stored, "encoding-type", attribute(stored, "h5sparse_format", ""))
    return told[:3] if told in SPARSE else ""


def is_sparse(stored) -> bool:
    """Whether an element of a file is a sparse matrix."""
    return bool(sparse_kind(stored))


def has_rows(file, path: str) -> bool:
    """Whether some rows of a matrix can be read without the others."""
    return sparse_kind(child(file, path, "")) != "csc"


def naming(path: str, read: Callable):
    """What `read` gives; what is Damaged, or cannot be read, is said to be at `path`."""
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
    """A matrix (cells × genes) of a file in memory, sparse or dense, values as stored; raises
    Damaged."""

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
    """The same as a dask array of blocks of rows, each read and checked when it is asked for (CSC
    has no rows to read: it is one block). `path` leads to the matrix from the file's root.
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
    """Reads the k-th block of ROWS rows of a matrix on disk, or all of CSC; `sparse` is the kind
    and the pointers of a sparse one."""

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
    """Names of cells or genes; raises Damaged."""

    def read():
        values = np.asarray(read_elem(child(group, attribute(group, "_index", "_index"), path)))
        if values.ndim != 1:
            raise Damaged(f"the names have shape {values.shape}")
        names = pd.Index(values).map(plain_text)
        for name in names:
            name.encode()  # what no file that is written later could hold
        return names

    return naming(path, read)


def plain_text(value) -> str:
    """A name as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def read_table(group, path: str, unreadable: dict[str, str]) -> pd.DataFrame:
    """obs or var. Columns that cannot be read are left out and noted in `unreadable` (element →
    why); raises Damaged where there are no names."""
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
    """A column of a table with `n` rows, as pandas keeps it; raises whatever hinders."""
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
    if isinstance(values, np.ndarray):  # numbers of this machine, or texts of any kind as objects
        native = values.dtype.newbyteorder("=") if values.dtype.kind in NUMBERS else object
        values = values.astype(native, copy=False)
    return pd.Series(values).array


def check_readable(adata: anndata.AnnData, element: str, name: str) -> None:
    """Raise FILE_UNREADABLE if an element that is needed was left out on reading."""
    why = adata.uns.get(UNREADABLE, {}).get(element)
    if why:
        raise AtlasmapError(
            "FILE_UNREADABLE",
            expected=f"{element} of {name}, whole",
            found=why,
            mend="copy the file again, or write it again with anndata from where its data came",
        )


def tolerant(path: str, unreadable: dict[str, str], read: Callable) -> Any | None:
    """What `read` gives, or None and a note of what hinders, where nobody may need it."""
    try:
        return naming(path, read)
    except (Damaged, RecursionError) as error:
        unreadable[path] = str(error)
        return None
