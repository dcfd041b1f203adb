"""Block-wise access to cells × genes matrices, in memory or on disk.

A matrix on disk is anndata's backed CSR data set (prepared cells) or a dask array of row blocks
(`stored.lazy_matrix`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
from anndata.abc import CSRDataset
from scipy import sparse

ROWS = 4096  # rows per block of a matrix on disk
PIECE = 2**24  # entries of a 1-d array that are read or checked at a time
TOGETHER = 2**17  # entries per HDF5 chunk; HDF5 has a fixed cost per chunk
BYTES = 8  # per stored count: int32 index and float32 value


def is_lazy(matrix) -> bool:
    """Whether a matrix is a dask array, on which operations are deferred until it is computed."""
    return hasattr(matrix, "dask")


def as_stored(matrix) -> sparse.csr_matrix:
    """Return the matrix as CSR, with its dtype and stored zeros unchanged."""
    return (
        matrix if sparse.issparse(matrix) and matrix.format == "csr" else sparse.csr_matrix(matrix)
    )


def as_csr(matrix) -> sparse.csr_matrix:
    """Return the matrix as float32 CSR with sorted indices, duplicates summed, no stored zeros."""
    csr = sparse.csr_matrix(matrix, dtype=np.float32)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def in_blocks(matrix) -> Iterator[sparse.csr_matrix]:
    """Yield consecutive row blocks; a matrix in memory is one block."""
    if is_lazy(matrix):
        for k in range(matrix.numblocks[0]):
            yield matrix.blocks[k].compute(scheduler="synchronous")
    elif isinstance(matrix, CSRDataset):
        for first in range(0, matrix.shape[0], ROWS):
            yield matrix[first : first + ROWS]
    else:
        yield matrix


def each_block(matrix, change, n_genes: int | None = None):
    """Apply `change` to a matrix, or lazily to each of its blocks.

    `change` maps CSR to CSR with the same number of rows and `n_genes` columns (default: as
    before).
    """
    if not is_lazy(matrix):
        return change(matrix)
    chunks = matrix.chunks[0], (matrix.shape[1] if n_genes is None else n_genes,)
    meta = sparse.csr_matrix((0, 0), dtype=np.float32)
    return matrix.map_blocks(change, chunks=chunks, dtype=np.float32, meta=meta)


def depths(matrix) -> np.ndarray:
    """Library size of each cell: the row sums (cells)."""
    return np.concatenate([np.asarray(block.sum(1)).ravel() for block in in_blocks(matrix)])


def n_stored(matrix) -> int:
    """Number of stored entries of a CSR matrix in memory or on disk."""
    return matrix.group["data"].shape[0] if isinstance(matrix, CSRDataset) else matrix.nnz


def parts_of(matrix) -> Iterator[np.ndarray]:
    """Yield indptr, indices and data of a CSR matrix in memory or on disk, in pieces.

    indptr and indices are cast to the smallest sufficient dtype, so that a hash of the pieces does
    not depend on the dtype in the file.
    """
    on_disk = isinstance(matrix, CSRDataset)
    kind = sparse.get_index_dtype(maxval=max(n_stored(matrix), *matrix.shape))
    for name, dtype in (("indptr", kind), ("indices", kind), ("data", None)):
        stored = matrix.group[name] if on_disk else getattr(matrix, name)
        for first in range(0, stored.shape[0], PIECE):
            yield np.ascontiguousarray(stored[first : first + PIECE], dtype)


def write_counts(path: Path, blocks: Iterable[sparse.csr_matrix], n_genes: int) -> None:
    """Write X of an .h5ad block by block, replacing an existing X."""
    from anndata.io import sparse_dataset, write_elem

    empty = sparse.csr_matrix((0, n_genes), dtype=np.float32)
    empty.indptr = empty.indptr.astype(np.int64)  # a matrix may have more than 2³¹ entries
    with h5py.File(path, "a") as file:
        file.pop("X", None)
        write_elem(file, "X", empty, dataset_kwargs={"chunks": (TOGETHER,)})
        for block in blocks:
            sparse_dataset(file["X"]).append(block)


def write_h5ad(adata: anndata.AnnData, path: Path, compression: str | None) -> None:
    """Write an .h5ad; lazy counts block by block and uncompressed, for fast partial reads."""
    if not is_lazy(adata.X):
        adata.write_h5ad(path, compression=compression)
        return
    anndata.AnnData(obs=adata.obs, var=adata.var, uns=adata.uns, obsm=adata.obsm).write_h5ad(path)
    write_counts(path, in_blocks(adata.X), adata.n_vars)
