"""What a file says of itself is checked before anything follows it: structure, types, links."""

import gzip
import random
import shutil
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from fuzz.altered import ALTER, all_judged, alter
from golden import SHARED, needs_shared
from scipy import sparse
from scipy.io import mmwrite

from atlasmap.data.counts import checked_counts
from atlasmap.data.masks import kept
from atlasmap.data.memory import open_cells
from atlasmap.data.readers import Wanted, read_any
from atlasmap.data.structure import Damaged, check_sparse, strictly_rising
from atlasmap.errors import AtlasmapError
from atlasmap.training.streamed import StreamedCounts

LAZY = [pytest.param(False, id="in memory"), pytest.param(True, id="from disk")]


@pytest.fixture
def cells(rng):
    """12 cells × 7 genes with a layer, protein counts and raw."""
    counts = sparse.csr_matrix(rng.poisson(1.0, (12, 7)).astype(np.float32) + np.eye(12, 7))
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    obs = pd.DataFrame({"batch": list("ab" * 6), "n": range(12)}, [f"c{k}" for k in range(12)])
    adata = anndata.AnnData(counts, obs, pd.DataFrame(index=[f"g{k}" for k in range(7)]))
    adata.layers["counts"], adata.raw = counts.copy(), adata.copy()
    adata.obsm["adt"] = sparse.csr_matrix(rng.poisson(5.0, (12, 3)))
    adata.obsp["near"] = sparse.eye(12, format="csr")
    return adata


def read(path: Path, where: str = "X", lazily: bool = False):
    """Counts as the contract leaves them, in memory."""
    counts = checked_counts(
        read_any(path, Wanted(where, lazily)), where, "d", corrected_float=False
    )
    return counts.compute(scheduler="synchronous") if hasattr(counts, "dask") else counts


def refused(path: Path, where: str = "X", lazily: bool = False) -> AtlasmapError:
    with pytest.raises(AtlasmapError) as error:
        read(path, where, lazily)
    assert error.value.mend
    return error.value


def put(group, name: str, values) -> None:
    attributes = dict(group[name].attrs)
    del group[name]
    group.create_dataset(name, data=values)
    group[name].attrs.update(attributes)


def wild(name: str, at: int, value, kind=None):
    """One entry of an array is another."""

    def change(group):
        values = group[name][:].astype(kind or group[name].dtype)
        values[at] = value
        put(group, name, values)

    return change


def shape_of(*shape):
    return lambda group: group.attrs.__setitem__("shape", np.array(shape, np.int64))


WRONG = {
    "index of one gene too many": (wild("indices", 5, 7), "an index is 7, of 7"),
    "index far away": (wild("indices", 5, 2**30), "an index is 1073741824"),
    "index below zero": (wild("indices", 5, -1), "an index is -1"),
    "index of 64 bits": (wild("indices", 5, 2**32 + 3, "i8"), "an index is 4294967299"),
    "index twice in a row": (lambda g: put(g, "indices", g["indices"][:] * 0), "twice"),
    "indices that are fractions": (wild("indices", 5, 1, "f4"), "float32"),
    "pointer that falls": (wild("indptr", 3, 30), "indptr falls"),
    "pointer below zero": (wild("indptr", 3, -5), "indptr falls"),
    "pointer beyond the end": (wild("indptr", -1, 10**6), "indptr goes"),
    "pointers that are too few": (lambda g: put(g, "indptr", g["indptr"][:-1]), "indptr has shape"),
    "values that are too few": (lambda g: put(g, "data", g["data"][:-2]), "data have shape"),
    "values of two axes": (lambda g: put(g, "data", g["data"][:][:, None]), "data have shape"),
    "values that are missing": (lambda g: g.__delitem__("data"), "data is missing"),
    "values that are complex": (wild("data", 0, 1j, "c8"), "complex64"),
    "values that are texts": (lambda g: put(g, "data", g["data"][:].astype("S")), "type |S"),
    "a shape of 2⁴⁰ cells": (shape_of(2**40, 7), "says its shape is"),
    "fewer genes": (shape_of(12, 6), "says its shape is"),
    "columns that say they are rows": (
        lambda g: g.attrs.__setitem__("encoding-type", "csc_matrix"), "indptr has shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lazily", LAZY)
@pytest.mark.parametrize("where", ["X", "counts"])
@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_matrix_whose_arrays_do_not_fit_together_is_named(
    cells, tmp_path, change, said, where, lazily
):
    element, path = "X" if where == "X" else "layers/counts", tmp_path / "a.h5ad"
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        change(file[element])
    began = time.monotonic()
    error = refused(path, where, lazily)
    assert error.code == "FILE_UNREADABLE" and said in error.found and element in error.found
    assert time.monotonic() - began < 1
    other = "counts" if where == "X" else "X"  # nobody needs the other one
    assert (read(path, other, lazily) != cells.X).nnz == 0


@pytest.mark.parametrize("lazily", LAZY)
@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "zarr", "h5mu"])
def test_every_way_to_store_a_matrix_is_checked_and_read_right(cells, tmp_path, kind, lazily):
    path = tmp_path / f"a.{kind if kind in ('zarr', 'h5mu') else 'h5ad'}"
    if kind in ("csc", "dense"):
        cells.X = sparse.csc_matrix(cells.X) if kind == "csc" else cells.X.toarray()
    if kind == "zarr":
        cells.write_zarr(path)
    elif kind == "h5mu":
        with h5py.File(path, "w") as file:
            anndata.io.write_elem(file, "mod/rna", cells)
            anndata.io.write_elem(file, "obs", cells.obs[["n"]])
    else:
        cells.write_h5ad(path)
    right = cells.layers["counts"]
    assert (read(path, "X", lazily) != right).nnz == 0
    if kind in ("csc", "csr", "h5mu"):
        with h5py.File(path, "a") as file:
            wild("indices", 5, 12)(file["mod/rna/X" if kind == "h5mu" else "X"])
    elif kind == "dense":
        with h5py.File(path, "a") as file:
            put(file, "X", right.toarray()[:, :6])
    else:
        import zarr

        zarr.open_group(path, mode="a")["X/indices"][5] = 12
    assert refused(path, "X", lazily).code == "FILE_UNREADABLE"


@pytest.mark.parametrize("lazily", LAZY)
@pytest.mark.parametrize(
    ("value", "kind", "code"),
    [
        (16777217.5, "f8", "COUNTS_TOO_LARGE"), (2**24 + 1, "i8", "COUNTS_TOO_LARGE"),
        (1e38, "f4", "COUNTS_TOO_LARGE"), (1e39, "f8", "COUNTS_TOO_LARGE"),
        (2**63 + 5, "u8", "COUNTS_TOO_LARGE"), (-1, "i8", "COUNTS_NEGATIVE"),
        (1.5, "f2", "COUNTS_NOT_INTEGER"), (np.nan, "f8", "COUNTS_NOT_FINITE"),
    ],
)  # fmt: skip
def test_values_are_judged_before_they_become_float32(cells, tmp_path, value, kind, code, lazily):
    path = tmp_path / "a.h5ad"
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        wild("data", 5, value, kind)(file["X"])
    assert refused(path, "X", lazily).code == code


@pytest.mark.parametrize("lazily", LAZY)
@pytest.mark.parametrize("kind", ["u1", "i8", "u8", "f2", ">f4", "f8", "bool"])
def test_counts_of_any_type_are_the_same_numbers(cells, tmp_path, kind, lazily):
    path = tmp_path / "a.h5ad"
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        put(file["X"], "data", file["X/data"][:].astype(kind))
    right = cells.X > 0 if kind == "bool" else cells.X
    assert (read(path, "X", lazily) != right.astype(np.float32)).nnz == 0


def test_what_nobody_needs_and_cannot_be_read_blocks_nothing(cells, tmp_path, caplog):
    path = tmp_path / "a.h5ad"
    cells.obs["n"] = pd.Categorical(cells.obs["n"].astype(str))
    cells.uns["colours"], cells.varm["pcs"] = np.arange(3), np.zeros((7, 2))
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["obsp/near/data"], file["varm/pcs"], file["raw/X/indptr"]
        file["obs/n/codes"][3] = 99
        file["uns/colours"].attrs["encoding-type"] = "of tomorrow"
        file["obsm/adt/indices"][0] = 3
        file["obsm/gone"] = h5py.SoftLink("/nowhere")
    adata = read_any(path)
    assert (adata.X != cells.X).nnz == 0 and list(adata.obs.columns) == ["batch"]
    unreadable = {"obs/n", "uns/colours", "obsm/adt", "obsm/gone", "raw"}
    assert set(adata.uns["_unreadable"]) == unreadable
    assert all(f"{element} is left out" in caplog.text for element in unreadable)


@pytest.mark.parametrize("missing", ["var", "obs", "var/_index", "obs/_index"])
def test_names_that_are_missing_are_named(cells, tmp_path, missing):
    cells.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file[missing]
    with pytest.raises(AtlasmapError) as error:
        read_any(tmp_path / "a.h5ad")
    assert error.value.code == "FILE_UNREADABLE" and missing in error.value.found


def test_a_10x_file_is_checked_as_well(tmp_path):
    parts = {"data": [1, 2, 3], "indices": [0, 1, 9], "indptr": [0, 1, 3], "shape": [2, 2]}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in parts.items():
            file[f"matrix/{name}"] = np.array(values)
        file["matrix/barcodes"] = np.array([b"a", b"b"])
        for name in ("id", "name", "feature_type", "genome"):
            file[f"matrix/features/{name}"] = np.array([b"Gene Expression", b"g"])
    with pytest.raises(AtlasmapError) as error:
        read_any(tmp_path / "a.h5")
    assert error.value.code == "FILE_UNREADABLE" and "an index is 9, of 2" in error.value.found


def test_prepared_cells_are_checked_where_they_are_opened(cells, tmp_path):
    path = tmp_path / "prepared.h5ad"
    cells.write_h5ad(path)
    open_cells(path, None)
    with h5py.File(path, "a") as file:
        file["X/indices"][5] = 7
    with pytest.raises(AtlasmapError) as error:
        open_cells(path, None)
    assert error.value.code == "FILE_UNREADABLE" and "of 7" in error.value.found
    streamed = StreamedCounts(anndata.read_h5ad(path, backed="r").X, None)
    with pytest.raises(Damaged, match="of 7"):
        streamed.csr(np.arange(12))


def test_the_order_of_indices_in_a_row_is_free(rng, monkeypatch):
    monkeypatch.setattr("atlasmap.data.structure.PIECE", 5)
    right = sparse.random(30, 20, 0.3, "csr", random_state=0)
    turned = right.copy()
    for row in range(30):
        at = slice(turned.indptr[row], turned.indptr[row + 1])
        turned.indices[at], turned.data[at] = turned.indices[at][::-1], turned.data[at][::-1]
    assert strictly_rising(right.indices, right.indptr)
    assert not strictly_rising(turned.indices, turned.indptr)
    turned.has_sorted_indices = False
    check_sparse(turned)
    assert np.array_equal(turned.toarray(), right.toarray())
    for empty in (sparse.csr_matrix((0, 5)), sparse.csr_matrix((5, 0)), sparse.csr_matrix((3, 3))):
        check_sparse(empty)


CASES = SHARED / "cases/structure"


@needs_shared
@pytest.mark.parametrize("lazily", LAZY)
@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.h5ad")))
def test_files_that_crashed_or_slipped_through_are_refused(name, lazily, tmp_path):
    shutil.copy(CASES / name, tmp_path)
    error = refused(tmp_path / name, "X", lazily)
    assert error.code == "FILE_UNREADABLE" and "X" in error.found


N_ALTERED = 40


@pytest.mark.skipif(not ALTER.is_file(), reason="shared/cases is not beside this checkout")
def test_altered_files_are_refused_with_a_code_or_read_right(tmp_path):
    base = tmp_path / "base.h5ad"
    alter().make_base(base)
    cases, blobs = alter().altered(base, 7)
    chosen = random.Random(0).sample(sorted(cases | blobs), N_ALTERED)
    found = list(all_judged(base, {name: (cases | blobs)[name] for name in chosen}, tmp_path))
    assert not [row for row in found if row[2] == "wrong"]
    assert {row[2] for row in found} == {"coded", "right"} and len(found) > 4 * N_ALTERED


# --- what other writers, and chance, make of a file


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_column_that_is_the_index_too_is_a_column(cells, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    cells.obs["cell"], cells.var["gene_ids"] = cells.obs_names, cells.var_names
    cells.obs_names.name, cells.var_names.name = "cell", "gene_ids"
    cells.write_zarr(path) if kind == "zarr" else cells.write_h5ad(path)
    adata = read_any(path)
    assert list(adata.obs["cell"]) == list(adata.obs_names) == list(cells.obs_names)
    assert list(adata.var["gene_ids"]) == list(cells.var_names)


def test_a_store_without_raw_has_nothing_unreadable(cells, tmp_path):
    cells.raw = None
    cells.write_zarr(tmp_path / "a.zarr")
    assert "_unreadable" not in read_any(tmp_path / "a.zarr").uns


def test_attributes_of_fixed_length_are_read(cells, tmp_path):
    path = tmp_path / "a.h5ad"
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        for element in ("obs", "var", "X", "layers/counts"):
            for key, value in dict(file[element].attrs).items():
                if isinstance(value, str):
                    file[element].attrs[key] = np.bytes_(value)
        file["obs"].attrs["column-order"] = np.array([b"batch", b"n"])
    adata = read_any(path)
    assert (adata.X != cells.X).nnz == 0 and list(adata.obs.columns) == ["batch", "n"]


@pytest.mark.parametrize("kind", [">i4", ">f8", "V4", [("a", "f4"), ("b", "i4")]])
def test_odd_columns_neither_block_a_file_nor_a_filter(cells, tmp_path, kind):
    path = tmp_path / "a.h5ad"
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["obs/n"]
        file["obs/n"] = np.zeros(12, dtype=kind)
    obs = read_any(path).obs
    assert kept(obs, "batch == 'a'").sum() == 6
    assert ("n" in obs) == (kind in (">i4", ">f8"))


def test_a_table_of_proteins_in_another_order_of_cells_is_refused(cells, tmp_path):
    del cells.obsm["adt"]
    cells.obsm["prot"] = pd.DataFrame(np.arange(24.0).reshape(12, 2), cells.obs_names, ["p", "q"])
    path = tmp_path / "a.h5ad"
    cells.write_h5ad(path)
    assert read_any(path).obsm["prot"].equals(cells.obsm["prot"])
    with h5py.File(path, "a") as file:
        file["obsm/prot/_index"][:] = file["obsm/prot/_index"][:][::-1]
    assert "named otherwise" in read_any(path).uns["_unreadable"]["obsm/prot"]


@pytest.mark.parametrize("lazily", LAZY)
def test_a_chunk_that_cannot_be_uncompressed_is_named(cells, tmp_path, lazily):
    path = tmp_path / "a.h5ad"
    cells.X = cells.X.toarray()
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        dataset = file.create_dataset("X", data=cells.X, compression="gzip", chunks=(4, 7))
        dataset.attrs.update(attributes)
        dataset.id.write_direct_chunk((4, 0), b"not gzip at all")
    error = refused(path, "X", lazily)
    assert error.code == "FILE_UNREADABLE" and "X" in error.found


def test_a_length_that_the_file_cannot_hold_is_not_believed(cells, tmp_path):
    path, empty = tmp_path / "a.h5ad", {"dtype": "f8", "chunks": (2**16,)}
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        file.create_dataset("uns/huge", shape=(2**40,), **empty)
        del file["obs/n"]
        file.create_dataset("obs/n", shape=(2**40,), **empty)
        layout = h5py.VirtualLayout(shape=(12, 7), dtype="f4")
        layout[:] = h5py.VirtualSource("gone.h5", "X", shape=(12, 7))
        file.create_virtual_dataset("layers/gone", layout)
        del file["layers/counts/data"], file["layers/counts/indices"]
        for name in ("data", "indices"):
            file.create_dataset(
                f"layers/counts/{name}", shape=(2**36,), dtype="i4", chunks=(2**16,)
            )
        file["layers/counts/indptr"][-1] = 2**31 - 1
    began = time.monotonic()
    adata = read_any(path)
    unreadable = {"uns/huge", "obs/n", "layers/gone", "layers/counts"}
    assert set(adata.uns["_unreadable"]) == unreadable and time.monotonic() - began < 2
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        file.create_dataset("obs/_index", shape=(2**36,), dtype="i8", chunks=(2**16,))
    assert refused(path).code == "FILE_UNREADABLE" and time.monotonic() - began < 4


def test_whatever_uns_holds_is_no_note_of_ours(cells, tmp_path):
    cells.uns["_unreadable"] = "a text of somebody's"
    cells.write_h5ad(tmp_path / "a.h5ad")
    assert (read(tmp_path / "a.h5ad") != cells.X).nnz == 0


# --- 10x


def as_10x(path: Path, counts: np.ndarray, kinds: list[str]) -> None:
    """A .h5 of Cell Ranger 3 (counts: cells × features)."""
    stored = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(stored, name)
        file["matrix/shape"] = np.array(counts.shape[::-1])
        file["matrix/barcodes"] = np.array([f"c{k}" for k in range(len(counts))], "S")
        names = np.array([f"ENSG{k}" for k in range(len(kinds))], "S")
        file["matrix/features/id"] = file["matrix/features/name"] = names
        file["matrix/features/feature_type"] = np.array(kinds, "S")


def test_large_counts_of_10x_files_are_not_rounded_before_they_are_judged(tmp_path):
    counts, kinds = np.array([[1, 2], [3, 2**24 + 1]], np.int32), ["Gene Expression"] * 2
    as_10x(tmp_path / "a.h5", counts, kinds)
    folder = tmp_path / "mtx"
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", sparse.coo_matrix(counts.T))
    (folder / "genes.tsv").write_text("g0\tG0\ng1\tG1\n")
    (folder / "barcodes.tsv").write_text("c0\nc1\n")
    for path in (tmp_path / "a.h5", folder):
        assert refused(path).code == "COUNTS_TOO_LARGE"


def test_antibodies_of_a_10x_file_go_beside_its_genes(tmp_path):
    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression"]
    as_10x(tmp_path / "a.h5", np.array([[1, 20, 0], [0, 30, 4]], np.int32), kinds)
    adata = read_any(tmp_path / "a.h5")
    assert list(adata.var_names) == ["ENSG0", "ENSG2"] and list(adata.obs_names) == ["c0", "c1"]
    assert adata.X.toarray().tolist() == [[1, 0], [0, 4]]
    assert adata.obsm["protein_expression"]["ENSG1"].tolist() == [20, 30]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_folder_of_texts_is_read_as_it_stands(tmp_path, compressed):
    counts = np.array([[1, 0, 2], [0, 3, 0]])
    mmwrite(tmp_path / "GSM1_matrix.mtx", sparse.coo_matrix(counts.T))
    (tmp_path / "GSM1_features.tsv").write_text(
        "".join(f"{row}\tGene Expression\n" for row in ("0001\tNA", '1e5\t"q"', "7\tx"))
    )
    (tmp_path / "GSM1_barcodes.tsv").write_text("NA\n1e5\n")
    for path in list(tmp_path.iterdir()) if compressed else ():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    adata = read_any(tmp_path)
    assert list(adata.var_names) == ["0001", "1e5", "7"] and list(adata.obs_names) == ["NA", "1e5"]
    assert list(adata.var["gene_symbols"]) == ["NA", '"q"', "x"]
    assert adata.X.toarray().tolist() == counts.tolist()


HEAD = "%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("matrix.mtx", HEAD + "3 2 9000000000\n1 1 1\n", "bytes"),
        ("matrix.mtx", HEAD + "4 2 1\n1 1 1\n", "3 features"),
        ("matrix.mtx", HEAD.replace("integer", "complex") + "3 2 1\n1 1 1 1\n", "complex"),
        ("matrix.mtx", HEAD + "3 2 1\n1 9 1\n", "matrix.mtx"),
        ("matrix.mtx", HEAD + "3 2 2\n1 1 1\n1 1 1\n", "twice"),
        ("barcodes.tsv", None, "barcodes.tsv[.gz]"),
    ],
)  # fmt: skip
def test_a_folder_whose_files_do_not_fit_together_is_refused(tmp_path, name, text, said):
    files = {
        "matrix.mtx": HEAD + "3 2 1\n1 1 1\n",
        "features.tsv": "a\nb\nc\n", "barcodes.tsv": "x\ny\n",
    }  # fmt: skip
    for key, content in (files | {name: text}).items():
        if content is not None:
            (tmp_path / key).write_text(content)
    error = refused(tmp_path)
    assert error.code == "FILE_UNREADABLE" and said in error.found


def test_two_samples_in_one_folder_are_told_apart_by_name(tmp_path):
    for prefix in ("GSM1_", "GSM2_"):
        (tmp_path / f"{prefix}matrix.mtx").write_text(HEAD + "3 2 1\n1 1 1\n")
    error = refused(tmp_path)
    assert error.code == "FOLDER_SAMPLES" and "GSM1_, GSM2_" in error.found
    assert "folder of its own" in error.mend


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_features_of_one_two_or_three_columns(tmp_path, columns):
    (tmp_path / "matrix.mtx").write_text(HEAD + "2 2 2\n1 1 1\n2 2 5\n")
    (tmp_path / "barcodes.tsv").write_text("x\ny\n")
    rows = (["ENSG1", "A", "Gene Expression"], ["ENSG2", "B", "Gene Expression"])
    text = "".join("\t".join(row[:columns]) + "\n" for row in rows)
    (tmp_path / "features.tsv").write_text(text)
    adata = read_any(tmp_path)
    assert list(adata.var_names) == ["ENSG1", "ENSG2"]
    assert list(adata.var["gene_symbols"]) == [row[min(columns, 2) - 1] for row in rows]
    assert adata.X.toarray().tolist() == [[1, 0], [0, 5]]


@needs_shared
def test_a_folder_of_starsolo_is_its_compressed_twin(tmp_path):
    source = SHARED / "cases/public/starsolo_folder"
    for path in source.iterdir():
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    plain, twin = read_any(source), read_any(tmp_path)
    assert (plain.X != twin.X).nnz == 0 and plain.n_obs > 0
    assert plain.obs.equals(twin.obs) and plain.var.equals(twin.var)


@needs_shared
@pytest.mark.parametrize("lazily", LAZY)
def test_a_file_of_anndata_before_0_7_is_read_and_checked(tmp_path, lazily):
    path = shutil.copy(SHARED / "cases/public/q_legacy06.h5ad", tmp_path / "q.h5ad")
    adata = anndata.read_h5ad(path)
    assert (read(path, "X", lazily) != adata.X).nnz == 0
    with h5py.File(path, "a") as file:
        file["X/indices"][5] = adata.n_vars
    assert refused(path, "X", lazily).code == "FILE_UNREADABLE"
