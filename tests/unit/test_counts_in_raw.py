"""Counts in raw.X, where CELLxGENE and scanpy keep them, and files whose names end otherwise."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from small import CONFIG, caught

from atlasmap.data.blocks import in_blocks
from atlasmap.data.counts import checked_counts
from atlasmap.data.prepare import checked_dataset
from atlasmap.data.readers import Wanted, read_any
from atlasmap.data.sheet import Dataset


def published(adata, n_kept=60):
    """As published files are: raw has all genes' counts, X a part of the genes, normalised."""
    out = adata[:, :n_kept].copy()
    out.raw = adata
    out.X = sparse.csr_matrix(np.log1p(out.X.toarray() * 0.37))
    return out


@pytest.fixture(params=[None, 0.1], ids=["in memory", "from disk"])
def lazily(request):
    return request.param is not None


def in_memory(prepared):
    """Prepared cells, their counts read before another file takes the place of theirs."""
    adata = prepared.adata
    adata.X = sparse.vstack(list(in_blocks(adata.X))).tocsr()
    return adata


@pytest.mark.parametrize("role", ["reference", "query"])
def test_counts_and_genes_of_raw(prepare, simulated, role):
    found = in_memory(prepare(published, role=role, counts="raw"))
    plain = in_memory(prepare(None, role=role))
    assert list(found.var_names) == list(plain.var_names) and found.n_vars == simulated.n_vars
    assert (found.X != plain.X).nnz == 0
    assert list(found.obs["batch"]) == list(plain.obs["batch"])


def test_of_a_batch_alone_raw_is_read_by_rows(simulated, tmp_path):
    path = tmp_path / "raw.h5ad"
    published(simulated).write_h5ad(path)
    row = Dataset(id="d", path=str(path), role="query", batch_key="batch", counts="raw")
    cells = checked_dataset(row, path, CONFIG, batch="query0")
    own = simulated[simulated.obs["batch"] == "query0"]
    assert (cells.X != own.X).nnz == 0 and list(cells.obs["barcode"]) == list(own.obs_names)


def normalised(adata):
    return published(adata, adata.n_vars)


def empty(adata):
    out = published(adata, adata.n_vars)
    out.X = None
    return out


def scaled(adata):
    out = published(adata, adata.n_vars)
    out.X = out.X.toarray() - 1
    return out


@pytest.mark.parametrize(
    "change, code",
    [(normalised, "COUNTS_NOT_INTEGER"), (empty, "LAYER_MISSING"), (scaled, "COUNTS_NEGATIVE")],
)
def test_the_message_names_raw(prepare, change, code):
    error = caught(code, prepare, change)
    assert "raw: name it as `counts` in the sheet" in error.mend


def test_genes_that_only_raw_has(prepare):
    def change(adata):
        out = adata[:, :30].copy()
        out.raw = adata
        return out

    error = caught("GENES_LOW_OVERLAP", prepare, change, role="query")
    assert "raw has 80 genes" in error.mend and "name raw as `counts`" in error.mend


def test_no_raw_or_two(prepare):
    assert "layers: none" in caught("LAYER_MISSING", prepare, None, counts="raw").found

    def both(adata):
        out = published(adata)
        out.layers["raw"] = out.X
        return out

    assert "another name" in caught("LAYER_AMBIGUOUS", prepare, both, counts="raw").mend


def test_a_layer_may_be_called_raw(prepare):
    def change(adata):
        adata.layers["raw"], adata.X = adata.X.copy(), adata.X * 0.5

    plain, found = in_memory(prepare()), in_memory(prepare(change, counts="raw"))
    assert (found.X != plain.X).nnz == 0


def test_nothing_holds_counts(prepare):
    def change(adata):
        adata.layers["z"] = adata.X * 0.3
        adata.X = adata.X * 0.7

    mend = caught("COUNTS_NOT_INTEGER", prepare, change).mend
    assert "nothing else in the file holds counts (looked at: z)" in mend


def test_raw_in_a_damaged_file(simulated, tmp_path):
    path = tmp_path / "raw.h5ad"
    published(simulated).write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["raw/var"]
    row = Dataset(id="d", path=str(path), role="query", batch_key="batch", counts="raw")
    assert "var" in caught("FILE_UNREADABLE", checked_dataset, row, path, CONFIG).found


@pytest.mark.parametrize("name", ["cells.H5AD", "cells.h5ad", "Cells.H5ad"])
def test_an_ending_in_capitals(simulated, tmp_path, name, lazily):
    simulated.write_h5ad(tmp_path / name)
    found = read_any(tmp_path / name, Wanted("X", lazily))
    counts = checked_counts(found, "X", "d", corrected_float=False, in_memory=True)
    assert (counts != simulated.X).nnz == 0


@pytest.mark.parametrize("name", ["batch", "dataset", "truth", "label", "barcode", "cell_id"])
def test_cells_whose_index_has_a_name_of_ours(prepare, name):
    def change(adata):
        adata.obs = adata.obs.rename(columns={"batch": "donor"})
        adata.obs.index.name = adata.var.index.name = name

    found, plain = prepare(change, batch_key="donor").adata, prepare().adata
    pd.testing.assert_frame_equal(found.obs, plain.obs)


def test_cells_are_named_by_data_set_and_barcode(prepare, simulated):
    obs = prepare().adata.obs
    own = simulated[simulated.obs["role"] == "reference"]
    assert list(obs.index) == [f"d:{name}" for name in own.obs_names]
    assert list(obs["barcode"]) == list(own.obs_names) and set(obs["dataset"]) == {"d"}


def test_a_message_in_a_command_names_its_flags(simulated, tmp_path, capsys):
    from atlasmap.errors import said_as_flags

    path = tmp_path / "n.h5ad"
    normalised(simulated).write_h5ad(path)
    row = Dataset(id="d", path=str(path), role="query", batch_key="batch")

    def run(*how, **names):
        with said_as_flags(*how, **names):
            checked_dataset(row, path, CONFIG)

    mend = caught("COUNTS_NOT_INTEGER", run).mend
    assert "name it as `--counts`" in mend and "`--config.counts corrected_float`" in mend
    mend = caught("COUNTS_NOT_INTEGER", run, "--", counts="layer").mend
    assert "name it as `--layer`" in mend and "`--counts corrected_float`" in mend
    assert "sheet" not in mend


def test_stored_as_csc_or_dense(simulated, tmp_path, lazily):
    for kind in (sparse.csc_matrix, np.asarray):
        whole = simulated.copy()
        dense = whole.X.toarray()
        whole.X = kind(dense)
        cells = published(simulated)
        cells.raw = anndata.AnnData(whole.X, obs=whole.obs, var=whole.var)
        cells.write_h5ad(tmp_path / "raw.h5ad")
        found = read_any(tmp_path / "raw.h5ad", Wanted("raw", lazily))
        counts = checked_counts(found, "raw", "d", corrected_float=False, in_memory=True)
        assert np.array_equal(counts.toarray(), dense)
