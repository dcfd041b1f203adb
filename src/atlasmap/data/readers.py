"""Open what a scientist has: .h5ad, .h5mu, 10x .h5, 10x mtx folders, .zarr."""

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.blocks import BYTES, ROWS
from atlasmap.errors import AtlasmapError
from atlasmap.files import check_input

FORMATS = ".h5ad, .h5mu, 10x .h5, a folder with matrix.mtx[.gz], .zarr"

GENE, ANTIBODY = "Gene Expression", "Antibody Capture"  # 10x feature types
RNA = ("rna", "gex", "RNA")  # names of the modality with genes
LARGEST_PANEL = 2000  # features of a modality that could be proteins


def open_hdf5(path: Path) -> None:
    """Raise FILE_TRUNCATED or FILE_NOT_HDF5 before anndata says something obscure."""
    try:
        with h5py.File(path):
            pass
    except OSError as error:
        truncated = "truncated" in str(error)
        raise AtlasmapError(
            "FILE_TRUNCATED" if truncated else "FILE_NOT_HDF5",
            expected=f"a whole {path.suffix} file",
            found=f"{path} ({path.stat().st_size} bytes): {error}",
            mend="copy or download the file again"
            if truncated
            else f"give one of: {FORMATS}; the ending must say which",
        ) from error


def read_by(read: Callable[[], anndata.AnnData], path: Path, kind: str) -> anndata.AnnData:
    """What `read` gives, with the reader's complaints made readable: FILE_UNREADABLE."""
    try:
        return read()
    except Exception as error:
        raise AtlasmapError(
            "FILE_UNREADABLE",
            expected=f"{kind} that anndata {anndata.__version__} and scanpy read",
            found=f"{path}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            mend="write it again as .h5ad with anndata; a file from a newer anndata may need "
            "conversion there",
        ) from error


def read_10x_h5(path: Path) -> anndata.AnnData:
    """A 10x .h5 indexed by gene id, as its mtx twin is."""
    import scanpy

    adata = scanpy.read_10x_h5(path, gex_only=False)
    adata.var["gene_symbols"] = adata.var_names
    adata.var_names = adata.var["gene_ids"].astype(str)
    return with_antibodies(adata)


def with_antibodies(adata: anndata.AnnData) -> anndata.AnnData:
    """Genes alone, with the Antibody Capture features of a 10x file as obsm protein_expression."""
    if "feature_types" not in adata.var:
        return adata
    kinds = adata.var["feature_types"].astype(str)
    antibodies, out = adata[:, kinds == ANTIBODY], adata[:, kinds == GENE].copy()
    if antibodies.n_vars:
        counts = antibodies.X.toarray()
        names = antibodies.var["gene_symbols"].astype(str)
        out.obsm["protein_expression"] = pd.DataFrame(counts, out.obs_names, list(names))
    return out


def read_10x_mtx(path: Path) -> anndata.AnnData:
    """A folder with {prefix}matrix.mtx[.gz] and its features and barcodes."""
    import scanpy

    (matrix,) = path.glob("*matrix.mtx*")
    prefix = matrix.name.partition("matrix.mtx")[0]
    ids = scanpy.read_10x_mtx(path, var_names="gene_ids", prefix=prefix or None, gex_only=False)
    return with_antibodies(ids)


def read_h5mu(path: Path) -> anndata.AnnData:
    """The RNA of a MuData file; its small other modalities as tables in obsm, by their names."""
    with h5py.File(path) as file:
        parts = {name: anndata.io.read_elem(file["mod"][name]) for name in file["mod"]}
        shared = anndata.io.read_elem(file["obs"])
    rna = next((parts.pop(name) for name in RNA if name in parts), None)
    if rna is None:
        raise ValueError(f"no modality {' or '.join(RNA)}: {', '.join(parts)}")
    for key in shared.columns.difference(rna.obs.columns):
        rna.obs[key] = shared[key].reindex(rna.obs_names)
    for name, part in parts.items():
        if part.n_vars <= LARGEST_PANEL:
            counts = part.X.toarray() if sparse.issparse(part.X) else np.asarray(part.X)
            table = pd.DataFrame(counts, part.obs_names, part.var_names)
            rna.obsm[name] = table.reindex(rna.obs_names)
    return rna


def opened(path: Path):
    """The HDF5 file or zarr store that an .h5ad or .zarr is."""
    if path.suffix == ".zarr":
        import zarr

        return zarr.open_group(path, mode="r")
    return h5py.File(path)


def read_elements(path: Path, obsm: bool) -> anndata.AnnData:
    """An .h5ad or .zarr with the matrices in X and in layers as dask arrays of CSR blocks; without
    raw, what belongs to pairs of cells or genes, and unless it is asked for `obsm`."""
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem

    file = opened(path)
    wanted = ("obs", "var", "uns", *(["obsm"] if obsm else []))
    whole = anndata.AnnData(**{key: read_elem(file[key]) for key in wanted if key in file})

    def matrix(stored):
        if stored.attrs.get("encoding-type") == "csc_matrix":  # has no rows to read
            return read_elem(stored)
        return read_elem_lazy(stored, chunks=(ROWS, whole.n_vars))

    if "X" in file:
        whole.X = matrix(file["X"])
    for name in file.get("layers", ()):
        whole.layers[name] = matrix(file["layers"][name])
    return whole


def read_lazily(path: str | Path, *, obsm: bool) -> anndata.AnnData:
    """The AnnData in `path`, its matrices on disk where the format allows it (.h5ad, .zarr); with
    `obsm` (embeddings of millions of cells are large) where it is asked for. Raises FILE_* errors.
    """
    path = Path(path)
    check_input(path, "`path`")
    if path.suffix == ".h5ad":
        open_hdf5(path)
    elif path.suffix != ".zarr":
        return read_any(path)
    return read_by(lambda: read_elements(path, obsm), path, f"an {path.suffix}")


def stored_bytes(path: str | Path) -> int:
    """Bytes that the counts of an .h5ad or .zarr take in memory, by what X or the largest layer
    stores; 0 of other formats."""
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr") or not path.exists():
        return 0
    try:
        file = opened(path)
    except OSError:  # read_any says what is wrong with it
        return 0
    found = [file[key] for key in ("X",) if key in file]
    found += [file["layers"][name] for name in file.get("layers", ())]
    sizes = [x["data"].shape[0] if "data" in getattr(x, "keys", tuple)() else x.size for x in found]
    if isinstance(file, h5py.File):
        file.close()
    return BYTES * max(sizes, default=0)


def read_any(path: str | Path) -> anndata.AnnData:
    """The AnnData in `path`; raises FILE_* errors."""
    path = Path(path)
    check_input(path, "`path`")
    if path.suffix == ".zarr":
        return read_by(lambda: anndata.read_zarr(path), path, "a .zarr")
    readers = {".h5ad": anndata.read_h5ad, ".h5": read_10x_h5, ".h5mu": read_h5mu}
    if read := readers.get(path.suffix):
        open_hdf5(path)
        return read_by(lambda: read(path), path, f"an {path.suffix}")
    if path.is_dir() and any(path.glob("*matrix.mtx*")):
        return read_by(lambda: read_10x_mtx(path), path, "a 10x mtx folder")
    raise AtlasmapError(
        "FILE_FORMAT",
        expected=FORMATS,
        found=f"{path}",
        mend="convert it to .h5ad",
    )
