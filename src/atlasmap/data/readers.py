"""Open what a scientist has: .h5ad, 10x .h5, 10x mtx folders, .zarr."""

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


def read_h5ad(path: Path) -> anndata.AnnData:
    """An .h5ad, with anndata's complaints made readable."""
    open_hdf5(path)
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        raise AtlasmapError(
            "FILE_NOT_H5AD",
            expected=f"an .h5ad that anndata {anndata.__version__} reads",
            found=f"{path}: {type(error).__name__}: {str(error).splitlines()[0]}",
            mend="write it again with anndata's write_h5ad; a file from a newer anndata may need "
            "conversion there",
        ) from error


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
    if path.suffix == ".h5ad":
        return read_h5ad(path)
    if path.suffix == ".zarr":
        return anndata.read_zarr(path)
    import scanpy

    if path.suffix == ".h5":
        open_hdf5(path)
        return scanpy.read_10x_h5(path)
    if path.is_dir() and any(path.glob("*matrix.mtx*")):
        return scanpy.read_10x_mtx(path, var_names="gene_ids")
    raise AtlasmapError(
        "FILE_FORMAT",
        expected=FORMATS,
        found=f"{path}",
        mend="convert it to .h5ad",
    )
