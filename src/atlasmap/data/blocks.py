"""Matrices of cells × genes, whether in memory or on disk, some rows at a time.

On disk is anndata's backed sparse data set (prepared cells) or a dask array of sparse blocks (what
`readers.read_lazily` gives).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
from anndata.abc import CSRDataset
from scipy import sparse

ROWS = 4096  # of a matrix on disk, at a time
PIECE = 2**24  # entries of an array on disk, at a time
TOGETHER = 2**17  # entries that lie together in a file: HDF5 keeps account of each such lump
BYTES = 8  # of a count: int32 and float32


def is_lazy(matrix) -> bool:
    """Whether a matrix is a dask array: what is done to it is done when it is asked for."""
    return hasattr(matrix, "dask")


def as_stored(matrix) -> sparse.csr_matrix:
    """CSR with values as they are."""
    return (
        matrix if sparse.issparse(matrix) and matrix.format == "csr" else sparse.csr_matrix(matrix)
    )


def as_csr(matrix) -> sparse.csr_matrix:
    """CSR in float32 with sorted indices and no stored zeros."""
    csr = sparse.csr_matrix(matrix, dtype=np.float32)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def in_blocks(matrix) -> Iterator[sparse.csr_matrix]:
    """Rows in their order: all at once where they are in memory."""
    if is_lazy(matrix):
        for k in range(matrix.numblocks[0]):
            yield matrix.blocks[k].compute(scheduler="synchronous")
    elif isinstance(matrix, CSRDataset):
        for first in range(0, matrix.shape[0], ROWS):
            yield matrix[first : first + ROWS]
    else:
        yield matrix


def each_block(matrix, change, n_genes: int | None = None):
    """`change` (CSR → CSR of as many rows, and `n_genes`) of a matrix, or of each lazy block."""
    if not is_lazy(matrix):
        return change(matrix)
    chunks = matrix.chunks[0], (matrix.shape[1] if n_genes is None else n_genes,)
    meta = sparse.csr_matrix((0, 0), dtype=np.float32)
    return matrix.map_blocks(change, chunks=chunks, dtype=np.float32, meta=meta)


def depths(matrix) -> np.ndarray:
    """Sum of each row."""
    return np.concatenate([np.asarray(block.sum(1)).ravel() for block in in_blocks(matrix)])


def n_stored(matrix) -> int:
    """Entries that a CSR matrix in memory or on disk stores."""
    return matrix.group["data"].shape[0] if isinstance(matrix, CSRDataset) else matrix.nnz


def parts_of(matrix) -> Iterator[np.ndarray]:
    """The arrays of a CSR matrix in memory or on disk (index pointers, indices, data), in pieces;
    indices in the smallest type that can hold them, whatever they were written in."""
    on_disk = isinstance(matrix, CSRDataset)
    kind = sparse.get_index_dtype(maxval=max(n_stored(matrix), *matrix.shape))
    for name, dtype in (("indptr", kind), ("indices", kind), ("data", None)):
        stored = matrix.group[name] if on_disk else getattr(matrix, name)
        for first in range(0, stored.shape[0], PIECE):
            yield np.ascontiguousarray(stored[first : first + PIECE], dtype)


def write_counts(path: Path, blocks: Iterable[sparse.csr_matrix], n_genes: int) -> None:
    """Make X of an .h5ad, block by block."""
    from anndata.io import sparse_dataset, write_elem

    empty = sparse.csr_matrix((0, n_genes), dtype=np.float32)
    empty.indptr = empty.indptr.astype(np.int64)  # there may be 2³¹ counts
    with h5py.File(path, "a") as file:
        file.pop("X", None)
        write_elem(file, "X", empty, dataset_kwargs={"chunks": (TOGETHER,)})
        for block in blocks:
            sparse_dataset(file["X"]).append(block)


def write_h5ad(adata: anndata.AnnData, path: Path, compression: str | None) -> None:
    """Write cells; lazy counts block by block, and not compressed, for they are read in pieces."""
    if not is_lazy(adata.X):
        adata.write_h5ad(path, compression=compression)
        return
    anndata.AnnData(obs=adata.obs, var=adata.var, uns=adata.uns, obsm=adata.obsm).write_h5ad(path)
    write_counts(path, in_blocks(adata.X), adata.n_vars)
