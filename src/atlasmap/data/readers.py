"""Open what a scientist has: .h5ad, .h5mu, 10x .h5, 10x mtx folders, .zarr."""

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
from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import check_input

log = logging.getLogger("atlasmap")
FORMATS = ".h5ad, .h5mu, 10x .h5, a folder with matrix.mtx[.gz], .zarr"

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
    """Which of a file's matrices are needed: that of the counts (X, a layer's name, or RAW; None:
    all but raw) in memory, or `lazily`; obsm and uns where asked for (embeddings of millions of
    cells are large)."""

    counts: str | None = None
    lazily: bool = False
    obsm: bool = True


def read_cells(file, at: str, path: Path, wanted: Wanted) -> anndata.AnnData:
    """The AnnData in a group of a file (`at`: its name; empty: the root); raises Damaged.

    X, layers and raw.X other than the wanted counts stay on disk, as dask arrays. What cannot be
    read is left out, and noted in uns: UNREADABLE (element → why); what belongs to pairs of cells
    or genes is not read.
    """
    group = child(file, at, "") if at else file
    unreadable: dict[str, str] = {}
    if isinstance(child(group, "obs", at), h5py.Dataset):  # as anndata before 0.7 wrote it
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
    """Keep, and say, which elements of a file cannot be read."""
    if unreadable:
        out.uns[UNREADABLE] = out.uns.get(UNREADABLE, {}) | unreadable
    for element, why in unreadable.items():
        log.warning("%s: %s is left out, as it cannot be read (%s)", path, element, why)


def names_in(group, key: str) -> list[str]:
    """Names of what a group has in another; none where it has no such group."""
    try:
        return list(group[key].keys())
    except Exception:  # a link to nowhere, or no group: h5py and zarr differ in what they raise
        return []


def read_raw(group, matrix: Callable, obs: pd.DataFrame, needed: bool) -> anndata.AnnData:
    """raw: its genes, and its matrix, on disk unless it is needed; raises Damaged."""
    var = read_table(child(group, "var", "raw"), "raw/var", {})
    x = matrix("raw/X", (len(obs), len(var)), needed)
    return anndata.AnnData(x, obs=pd.DataFrame(index=obs.index), var=var)


def read_beside(group, out: anndata.AnnData, unreadable: dict[str, str]) -> None:
    """obsm and uns, as far as they can be read."""
    for key in names_in(group, "obsm"):
        read = partial(read_aligned, group["obsm"], key, out.obs_names)
        found = tolerant(f"obsm/{key}", unreadable, read)
        if found is not None:
            out.obsm[key] = found
    for key in names_in(group, "uns"):
        if key == UNREADABLE:  # somebody's own
            continue
        read = partial(lambda key: read_elem(child(group["uns"], key, "uns")), key)
        found = tolerant(f"uns/{key}", unreadable, read)
        if found is not None:
            out.uns[key] = found


def read_aligned(group, key: str, cells: pd.Index):
    """An array or table of obsm, a row a cell; raises Damaged."""
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
    """A file of anndata before 0.7, whose tables are compound arrays; raises Damaged."""
    out = anndata.read_h5ad(path)
    out.uns.pop(UNREADABLE, None)
    for name, matrix in {"X": out.X, **{f"layers/{k}": v for k, v in out.layers.items()}}.items():
        if sparse.issparse(matrix):
            naming(name, lambda matrix=matrix: check_sparse(matrix))
            numbers(matrix.data[:0])
    return out


def read_h5mu(path: Path, wanted: Wanted) -> anndata.AnnData:
    """The RNA of a MuData file; its small other modalities as tables in obsm, by their names."""
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
    """A modality as a table (cells × features); None if it has too many to be proteins. Raises
    Damaged."""
    if len(read_index(child(file[at], "var", at), f"{at}/var")) > LARGEST_PANEL:
        return None
    part = read_cells(file, at, path, Wanted(obsm=False))
    if part.X is None:
        raise Damaged(f"{at}/X is missing or cannot be read")
    counts = part.X.toarray() if sparse.issparse(part.X) else np.asarray(part.X)
    return pd.DataFrame(counts, part.obs_names, part.var_names)


def read_elements(path: Path, wanted: Wanted) -> anndata.AnnData:
    """An .h5ad or .zarr; raises Damaged."""
    file = opened(path)
    try:
        return read_cells(file, "", path, wanted)
    finally:
        close(file)


def of_raw(adata: anndata.AnnData, path: Path) -> anndata.AnnData:
    """The cells with raw's counts and genes as X and var; where there is no raw but a layer of that
    name, as they are. Raises LAYER_MISSING, LAYER_AMBIGUOUS, FILE_UNREADABLE."""
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
    """Bytes that the counts of an .h5ad or .zarr take in memory, by what the largest of X, layers
    and raw.X stores; 0 of other formats."""
    path = Path(path)
    if ending(path) not in (".h5ad", ".zarr") or not path.exists():
        return 0
    try:
        file = opened(path)
        found = [file[key] for key in ("X", "raw/X") if key in file]
        found += [file["layers"][name] for name in names_in(file, "layers")]
        sizes = [x["data"].shape[0] if is_sparse(x) else x.size for x in found]
        close(file)
    except Exception:  # whatever it is, read_any says what is wrong with the file
        return 0
    return BYTES * max(sizes, default=0)


def read_any(path: str | Path, wanted: Wanted = Wanted()) -> anndata.AnnData:
    """The AnnData in `path`; raises FILE_* errors. What is wanted `lazily` is on disk where the
    format allows it (.h5ad, .h5mu, .zarr)."""
    path = Path(path)
    adata = read_file(path, wanted)
    return of_raw(adata, path) if wanted.counts == RAW else adata


def ending(path: Path) -> str:
    """What a file's name ends in, however it is written."""
    return path.suffix.lower()


def read_file(path: Path, wanted: Wanted) -> anndata.AnnData:
    """What is in a file, by its ending."""
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
