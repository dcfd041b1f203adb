"""Readers of input data: .h5ad, .h5mu, 10x .h5, 10x mtx folders, .zarr."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy import sparse

from atlasmap.data.blocks import BYTES
from atlasmap.data.counts import RAW
from atlasmap.data.stored import (
    UNREADABLE,
    attribute,
    check_readable,
    child,
    close,
    has_rows,
    is_sparse,
    lazy_matrix,
    naming,
    opened,
    plain_text,
    read_index,
    read_matrix,
    read_table,
    tolerant,
)
from atlasmap.data.structure import Damaged, check_sparse, numbers
from atlasmap.data.tenx import is_10x_folder, read_10x_h5, read_10x_mtx
from atlasmap.errors import AtlasmapError, check_input, listed

log = logging.getLogger("atlasmap")
FORMATS = ".h5ad, .h5mu, 10x .h5, a folder with matrix.mtx[.gz], .zarr"

RNA = ("rna", "gex", "RNA")  # names of the RNA modality in MuData files
LARGEST_PANEL = 2000  # a modality with more features is no protein panel


def open_hdf5(path: Path) -> None:
    """Raise FILE_TRUNCATED or FILE_NOT_HDF5 if h5py cannot open the file."""
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
    """Return `read()`; its exceptions become FILE_UNREADABLE, except AtlasmapError, MemoryError."""
    try:
        return read()
    except (MemoryError, AtlasmapError):
        raise
    except Exception as error:
        damaged = isinstance(error, Damaged)
        found = (
            f"{'' if damaged else type(error).__name__ + ' '}{(str(error).splitlines() or [''])[0]}"
        )
        raise AtlasmapError(
            "FILE_UNREADABLE",
            expected=f"{kind} whose elements are there, and fit together",
            found=f"{path}: {found}",
            mend="copy the file again, or write it again with anndata from where its data came"
            if damaged
            else "write it again as .h5ad with anndata; a file from a newer anndata may need "
            "conversion there",
        ) from error


@dataclass(frozen=True)
class Wanted:
    """Which elements of a file to load.

    `counts`: the matrix to load (X, a layer's name, or RAW; None: X and all layers); `lazily`: as a
    dask array instead of in memory, if its rows can be read separately; `obsm`: whether to read
    obsm and uns, which are large for millions of cells.
    """

    counts: str | None = None
    lazily: bool = False
    obsm: bool = True


def read_cells(file, at: str, path: Path, wanted: Wanted) -> anndata.AnnData:
    """Read the AnnData in a group of a file (`at`: its name; empty: the root); raises Damaged.

    X, layers and raw.X other than the wanted counts stay on disk as dask arrays. Elements that
    cannot be read are left out and recorded in uns[UNREADABLE] (element → reason). obsp, varp and
    varm are not read.
    """
    group = child(file, at, "") if at else file
    unreadable: dict[str, str] = {}
    if isinstance(child(group, "obs", at), h5py.Dataset):  # format of anndata before 0.7
        return read_legacy(path)
    obs = read_table(group["obs"], "obs", unreadable)
    var = read_table(child(group, "var", at), "var", unreadable)
    out = anndata.AnnData(obs=obs, var=var)

    def matrix(key: str, shape: tuple[int, int], needed: bool):
        where = f"{at}/{key}".lstrip("/")
        if needed and not (wanted.lazily and has_rows(file, where)):
            return read_matrix(file, where, shape)
        return lazy_matrix(path, where, file, shape)

    places = {"X": "X"} if "X" in group else {}
    places |= {f"layers/{name}": name for name in names_in(group, "layers")}
    for key, name in places.items():
        needed = wanted.counts in (name, None)
        found = tolerant(key, unreadable, partial(matrix, key, out.shape, needed))
        if key == "X":
            out.X = found
        elif found is not None:
            out.layers[name] = found
    if "raw" in group and attribute(group["raw"], "encoding-type", "") != "null":
        needed = wanted.counts == RAW
        out.raw = tolerant("raw", unreadable, lambda: read_raw(group["raw"], matrix, obs, needed))
    if wanted.obsm:
        read_beside(group, out, unreadable)
    note(path, out, unreadable)
    return out


def note(path: Path, out: anndata.AnnData, unreadable: dict[str, str]) -> None:
    """Record in uns, and log, the elements that cannot be read."""
    if unreadable:
        out.uns[UNREADABLE] = out.uns.get(UNREADABLE, {}) | unreadable
    for element, why in unreadable.items():
        log.warning("%s: %s is left out, as it cannot be read (%s)", path, element, why)


def names_in(group, key: str) -> list[str]:
    """Names of the elements of subgroup `key`; empty if there is no such group."""
    try:
        return list(group[key].keys())
    except Exception:  # broken link or not a group: h5py and zarr raise different errors
        return []


def read_raw(group, matrix: Callable, obs: pd.DataFrame, needed: bool) -> anndata.AnnData:
    """Read raw: its genes, and its matrix, which stays on disk unless `needed`; raises Damaged."""
    var = read_table(child(group, "var", "raw"), "raw/var", {})
    x = matrix("raw/X", (len(obs), len(var)), needed)
    return anndata.AnnData(x, obs=pd.DataFrame(index=obs.index), var=var)


def read_beside(group, out: anndata.AnnData, unreadable: dict[str, str]) -> None:
    """Read obsm and uns into `out`; elements that cannot be read are recorded in `unreadable`."""
    for key in names_in(group, "obsm"):
        read = partial(read_aligned, group["obsm"], key, out.obs_names)
        found = tolerant(f"obsm/{key}", unreadable, read)
        if found is not None:
            out.obsm[key] = found
    for key in names_in(group, "uns"):
        if key == UNREADABLE:  # a user's own key of this name would look like our record
            continue
        read = partial(lambda key: read_elem(child(group["uns"], key, "uns")), key)
        found = tolerant(f"uns/{key}", unreadable, read)
        if found is not None:
            out.uns[key] = found


def read_aligned(group, key: str, cells: pd.Index):
    """Read an array or table of obsm and check that its rows match the cells; raises Damaged."""
    stored, n = child(group, key, "obsm"), len(cells)
    if is_sparse(stored):
        shape = tuple(int(k) for k in np.atleast_1d(stored.attrs["shape"]))
        return read_matrix(group, key, (n, shape[-1]))
    found = read_elem(stored)
    if isinstance(found, pd.DataFrame):
        if list(found.index.map(plain_text)) != list(cells):
            raise Damaged(f"the rows of obsm/{key} are named otherwise than the cells")
        return found.set_axis(cells)
    if np.ndim(found) != 2 or len(found) != n:
        raise Damaged(f"obsm/{key} has shape {np.shape(found)}, and there are {n} cells")
    return found


def read_legacy(path: Path) -> anndata.AnnData:
    """Read an .h5ad of anndata before 0.7, with obs and var as compound arrays; raises Damaged."""
    out = anndata.read_h5ad(path)
    out.uns.pop(UNREADABLE, None)
    for name, matrix in {"X": out.X, **{f"layers/{k}": v for k, v in out.layers.items()}}.items():
        if sparse.issparse(matrix):
            naming(name, lambda matrix=matrix: check_sparse(matrix))
            numbers(matrix.data[:0])
    return out


def read_h5mu(path: Path, wanted: Wanted) -> anndata.AnnData:
    """Read the RNA modality of a MuData file; raises Damaged.

    Other modalities with up to LARGEST_PANEL features become tables in obsm, under their names;
    columns of the shared obs are added to obs.
    """
    with h5py.File(path) as file:
        names, unreadable = names_in(file, "mod"), {}
        name = next((name for name in RNA if name in names), None)
        if name is None:
            raise Damaged(f"no modality {' or '.join(RNA)}: {', '.join(names)}")
        rna = read_cells(file, f"mod/{name}", path, wanted)
        shared = read_table(child(file, "obs", ""), "obs", unreadable)
        own = shared.index.is_unique and rna.obs_names.is_unique
        for key in shared.columns.difference(rna.obs.columns) if own else ():
            rna.obs[key] = shared[key].reindex(rna.obs_names)
        if not own:
            unreadable["obs"] = "a cell is there twice"
        for other in sorted(set(names) - {name}) if wanted.obsm else ():
            read = partial(read_panel, file, f"mod/{other}", path)
            panel = tolerant(f"mod/{other}", unreadable, read)
            if panel is not None:
                rna.obsm[other] = panel.reindex(rna.obs_names)
    note(path, rna, unreadable)
    return rna


def read_panel(file, at: str, path: Path) -> pd.DataFrame | None:
    """Read a modality as a table (cells × features); None if it has more than LARGEST_PANEL
    features. Raises Damaged."""
    if len(read_index(child(file[at], "var", at), f"{at}/var")) > LARGEST_PANEL:
        return None
    part = read_cells(file, at, path, Wanted(obsm=False))
    if part.X is None:
        raise Damaged(f"{at}/X is missing or cannot be read")
    counts = part.X.toarray() if sparse.issparse(part.X) else np.asarray(part.X)
    return pd.DataFrame(counts, part.obs_names, part.var_names)


def read_elements(path: Path, wanted: Wanted) -> anndata.AnnData:
    """Read an .h5ad or .zarr; raises Damaged."""
    file = opened(path)
    try:
        return read_cells(file, "", path, wanted)
    finally:
        close(file)


def of_raw(adata: anndata.AnnData, path: Path) -> anndata.AnnData:
    """Return the cells with raw.X and raw.var as X and var.

    If there is no raw but a layer of that name, the cells are returned unchanged. Raises
    LAYER_MISSING, LAYER_AMBIGUOUS (both exist), FILE_UNREADABLE.
    """
    check_readable(adata, "raw", str(path))
    if adata.raw is None and RAW in adata.layers:
        return adata
    if adata.raw is None:
        raise AtlasmapError(
            "LAYER_MISSING",
            expected="counts in raw.X, as `counts` says",
            found=f"no raw in {path}; X, layers: {listed(adata.layers)}",
            mend="name the right one as `counts` in the sheet",
        )
    if RAW in adata.layers:
        raise AtlasmapError(
            "LAYER_AMBIGUOUS",
            expected="one place that is called raw",
            found=f"raw.X and a layer 'raw' in {path}",
            mend="give the layer another name",
        )
    raw = adata.raw
    return anndata.AnnData(
        raw.X, obs=adata.obs, var=raw.var, obsm=dict(adata.obsm), uns=dict(adata.uns)
    )


def stored_bytes(path: str | Path) -> int:
    """Estimate the bytes that the counts of an .h5ad or .zarr take in memory; 0 for other formats.

    Counts are taken to be the matrix with the most stored entries among X, layers and raw.X.
    """
    path = Path(path)
    if ending(path) not in (".h5ad", ".zarr") or not path.exists():
        return 0
    try:
        file = opened(path)
        found = [file[key] for key in ("X", "raw/X") if key in file]
        found += [file["layers"][name] for name in names_in(file, "layers")]
        sizes = [x["data"].shape[0] if is_sparse(x) else x.size for x in found]
        close(file)
    except Exception:  # read_any reports what is wrong with the file
        return 0
    return BYTES * max(sizes, default=0)


def read_any(path: str | Path, wanted: Wanted = Wanted()) -> anndata.AnnData:
    """Read `path` as AnnData; raises FILE_*, FOLDER_SAMPLES, LAYER_MISSING, LAYER_AMBIGUOUS.

    Counts wanted `lazily` stay on disk if the format allows it (.h5ad, .h5mu, .zarr).
    """
    path = Path(path)
    adata = read_file(path, wanted)
    return of_raw(adata, path) if wanted.counts == RAW else adata


def ending(path: Path) -> str:
    """Return the suffix of a file name in lower case."""
    return path.suffix.lower()


def read_file(path: Path, wanted: Wanted) -> anndata.AnnData:
    """Read a file with the reader of its suffix."""
    check_input(path, "`path`")
    if ending(path) in (".h5ad", ".h5", ".h5mu"):
        open_hdf5(path)
    readers = {
        ".h5ad": lambda: read_elements(path, wanted),
        ".zarr": lambda: read_elements(path, wanted),
        ".h5mu": lambda: read_h5mu(path, wanted),
        ".h5": lambda: read_10x_h5(path),
    }
    if read := readers.get(ending(path)):
        return read_by(read, path, f"an {ending(path)}")
    if is_10x_folder(path):
        return read_by(lambda: read_10x_mtx(path), path, "a 10x mtx folder")
    raise AtlasmapError(
        "FILE_FORMAT",
        expected=FORMATS,
        found=f"{path}",
        mend="convert it to .h5ad",
    )
