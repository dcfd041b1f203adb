"""Open what a scientist has: .h5ad, 10x .h5, 10x mtx folders, .zarr."""

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py

from atlasmap.errors import AtlasmapError

FORMATS = ".h5ad, 10x .h5, a folder with matrix.mtx[.gz], .zarr"


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

    adata = scanpy.read_10x_h5(path)
    adata.var["gene_symbols"] = adata.var_names
    adata.var_names = adata.var["gene_ids"].astype(str)
    return adata


def read_10x_mtx(path: Path) -> anndata.AnnData:
    """A folder with {prefix}matrix.mtx[.gz] and its features and barcodes."""
    import scanpy

    (matrix,) = path.glob("*matrix.mtx*")
    prefix = matrix.name.partition("matrix.mtx")[0]
    return scanpy.read_10x_mtx(path, var_names="gene_ids", prefix=prefix or None)


def read_any(path: str | Path) -> anndata.AnnData:
    """The AnnData in `path`; raises FILE_* errors."""
    path = Path(path)
    if not path.exists():
        raise AtlasmapError(
            "FILE_MISSING",
            expected="the file or folder that the sheet names",
            found=f"nothing at {path.absolute()}",
            mend="correct `path` in the sheet, or `data_dir` in the config",
        )
    if path.suffix == ".zarr":
        return read_by(lambda: anndata.read_zarr(path), path, "a .zarr")
    if path.suffix in (".h5ad", ".h5"):
        open_hdf5(path)
        read = anndata.read_h5ad if path.suffix == ".h5ad" else read_10x_h5
        return read_by(lambda: read(path), path, f"an {path.suffix}")
    if path.is_dir() and any(path.glob("*matrix.mtx*")):
        return read_by(lambda: read_10x_mtx(path), path, "a 10x mtx folder")
    raise AtlasmapError(
        "FILE_FORMAT",
        expected=FORMATS,
        found=f"{path}",
        mend="convert it to .h5ad",
    )
