"""Readers of 10x Genomics and STARsolo output: .h5 files, and folders with matrix.mtx."""

import csv
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd

from atlasmap.data.stored import SparseParts, child, naming, plain_text
from atlasmap.data.structure import Damaged, check_sparse, numbers
from atlasmap.errors import AtlasmapError, listed

GENE, ANTIBODY = "Gene Expression", "Antibody Capture"  # feature types
LARGEST_RATIO = 300  # maximum entries per byte of the (compressed) mtx file


def read_10x_h5(path: Path) -> anndata.AnnData:
    """Read a 10x .h5, indexed by gene id, counts as stored; raises Damaged."""
    with h5py.File(path) as file:
        if "matrix" not in file:  # format before Cell Ranger 3
            return read_old_h5(path)
        group = child(file, "matrix", "")
        features = child(group, "features", "matrix")
        genes, cells = (int(n) for n in child(group, "shape", "matrix")[:2])
        names = {key: texts(features, key, genes) for key in ("id", "name", "feature_type")}
        barcodes = texts(group, "barcodes", cells)
        parts = SparseParts.laid_out(group, "csr", (cells, genes), "matrix")
        counts = naming("matrix", lambda: parts.rows(0, cells))
    return with_antibodies(counts, barcodes, *names.values())


def texts(group, key: str, n: int) -> list[str]:
    """Read the `n` texts of array `key` of a group; raises Damaged."""
    stored = child(group, key, "matrix")
    if stored.shape != (n,):
        raise Damaged(f"matrix: {key} has shape {stored.shape}, not {(n,)}")
    return [plain_text(value) for value in stored[:]]


def read_old_h5(path: Path) -> anndata.AnnData:
    """Read a 10x .h5 of Cell Ranger 2, with one group per genome; raises Damaged."""
    import scanpy

    adata = scanpy.read_10x_h5(path, gex_only=False)
    naming("the matrix", lambda: check_sparse(adata.X))
    adata.var["gene_symbols"] = adata.var_names
    adata.var_names = adata.var["gene_ids"].astype(str)
    return adata


def is_10x_folder(path: Path) -> bool:
    """Whether a path is a folder with a file {prefix}matrix.mtx[.gz]."""
    return path.is_dir() and any(path.glob("*matrix.mtx*"))


def read_10x_mtx(path: Path) -> anndata.AnnData:
    """Read a folder with {prefix}matrix.mtx, features.tsv (or genes.tsv) and barcodes.tsv [.gz].

    Raises Damaged; FOLDER_SAMPLES for files of several samples.
    """
    found = sorted(path.glob("*matrix.mtx*"))
    samples = sorted({name.name.partition("matrix.mtx")[0] for name in found})
    if len(samples) > 1:
        raise AtlasmapError(
            "FOLDER_SAMPLES",
            expected=f"one sample in the folder {path}",
            found=f"{len(samples)}, whose files begin with: {listed(samples)}",
            mend="give each sample a folder of its own, and a row of the sheet",
        )
    (prefix,), matrix = samples, found[0]
    features = table(path, prefix, ("features.tsv", "genes.tsv"))
    barcodes = table(path, prefix, ("barcodes.tsv",))[0]
    ids = features[0]
    symbols = features[1] if features.shape[1] > 1 else ids
    kinds = features[2] if features.shape[1] > 2 else pd.Series(GENE, index=ids.index)
    counts = read_mtx(matrix, (len(ids), len(barcodes)))
    return with_antibodies(counts, *(list(names) for names in (barcodes, ids, symbols, kinds)))


def table(folder: Path, prefix: str, names: tuple[str, ...]) -> pd.DataFrame:
    """Read a tab-separated table without header as texts, from the first of `names` that exists.

    Raises Damaged if none exists.
    """
    tried = [folder / f"{prefix}{name}{end}" for name in names for end in (".gz", "")]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise Damaged(f"there is no {' or '.join(f'{prefix}{name}[.gz]' for name in names)}")
    how = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False}
    return naming(found.name, lambda: pd.read_csv(found, quoting=csv.QUOTE_NONE, **how))


def read_mtx(path: Path, shape: tuple[int, int]):
    """Read a Matrix Market file (genes × cells), transposed to cells × genes; raises Damaged."""
    from scipy.io import mminfo, mmread

    rows, columns, entries, _, field, _ = naming(path.name, lambda: mminfo(path))
    if (rows, columns) != shape or entries > LARGEST_RATIO * path.stat().st_size:
        raise Damaged(
            f"{path.name} says {rows} × {columns} with {entries} entries in "
            f"{path.stat().st_size} bytes; there are {shape[0]} features and {shape[1]} barcodes"
        )
    if field == "complex":
        raise Damaged(f"{path.name} holds complex numbers")
    stored = naming(path.name, lambda: mmread(path))
    counts = stored.T.tocsr() if hasattr(stored, "tocsr") else np.asarray(stored).T
    if hasattr(counts, "nnz") and counts.nnz < stored.nnz:
        raise Damaged(f"{path.name}: an entry is there twice")
    return counts


def with_antibodies(
    counts, barcodes: list[str], ids: list[str], symbols: list[str], kinds: list[str]
) -> anndata.AnnData:
    """Return the genes as AnnData, with Antibody Capture features in obsm protein_expression."""
    kind, symbol = np.array(kinds, dtype=object), np.array(symbols, dtype=object)
    is_gene, is_antibody = kind == GENE, kind == ANTIBODY
    var = pd.DataFrame({"gene_symbols": symbol, "feature_types": kind}, index=pd.Index(ids))
    obs = pd.DataFrame(index=pd.Index(barcodes))
    if hasattr(counts, "data") and not isinstance(counts, np.ndarray):
        counts.data = numbers(counts.data)
    out = anndata.AnnData(counts[:, is_gene], obs=obs, var=var[is_gene])
    if is_antibody.any():
        values = counts[:, is_antibody]
        values = values if isinstance(values, np.ndarray) else values.toarray()
        out.obsm["protein_expression"] = pd.DataFrame(values, obs.index, symbol[is_antibody])
    return out
