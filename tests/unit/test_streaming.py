"""Counts that have no room in memory: the same preparation, training and mapping from disk."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from citeseq import SETTINGS as CITESEQ
from citeseq import citeseq
from scipy import sparse
from small import CONFIG, CPU, SCANVI, SCVI, states_equal

from atlasmap.bundle import fingerprint
from atlasmap.data import memory
from atlasmap.data.blocks import depths, in_blocks, write_h5ad
from atlasmap.data.genes import seurat_v3
from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.readers import Wanted, read_any
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS, Registry
from atlasmap.data.sheet import Dataset
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.query import map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, fit_totalvi
from atlasmap.settings import DataConfig, DataSettings, SurgerySettings, TrainSettings
from atlasmap.training import stopping, streamed
from atlasmap.training.cells import Counts
from atlasmap.training.checkpoint import Checkpoints
from atlasmap.training.streamed import StreamedCounts

NO_ROOM = 0.1  # GB: less than the libraries take


def with_no_room(config: DataConfig) -> DataConfig:
    return replace(config, data=replace(config.data, memory_gb=NO_ROOM))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that a tiny atlas has many of them."""
    for module in ("blocks", "stored"):
        monkeypatch.setattr(f"atlasmap.data.{module}.ROWS", 37)
    for module in ("blocks", "structure"):
        monkeypatch.setattr(f"atlasmap.data.{module}.PIECE", 101)
    monkeypatch.setattr(streamed, "WINDOW", 40_000)  # bytes: some 150 cells


def on_disk(adata: anndata.AnnData, path) -> anndata.AnnData:
    """The same cells, backed."""
    adata.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


@pytest.fixture
def backed(reference, tmp_path):
    """The prepared reference, its counts on disk."""
    return on_disk(reference, tmp_path / "prepared.h5ad")


def same_cells(a: anndata.AnnData, b: anndata.AnnData) -> None:
    assert (a.X != b.X).nnz == 0 and a.X.dtype == b.X.dtype
    assert a.obs.astype(str).equals(b.obs.astype(str)) and a.var.equals(b.var)


@pytest.mark.parametrize("n_top_genes", [None, 30])
@pytest.mark.parametrize("kind", ["h5ad", "zarr", "dense", "columns", "layer"])
def test_preparation_from_disk_is_the_same(rows, simulated, tmp_path, kind, n_top_genes):
    cells, row, path = simulated.copy(), rows[0], tmp_path / "in.h5ad"
    if kind == "layer":
        cells.layers["raw"], cells.X = cells.X, None
        row = replace(row, counts="raw")
    elif kind in ("dense", "columns"):
        cells.X = cells.X.toarray() if kind == "dense" else sparse.csc_matrix(cells.X)
    if kind == "zarr":
        path = tmp_path / "in.zarr"
        cells.write_zarr(path)
    else:
        cells.write_h5ad(path)
    config = replace(CONFIG, data=DataSettings(n_top_genes=n_top_genes))
    whole = prepare_reference([row], [path], config)
    pieces = prepare_reference([row], [path], with_no_room(config))
    assert kind == "columns" or hasattr(pieces.adata.X, "dask")
    write_h5ad(pieces.adata, tmp_path / "out.h5ad", None)
    same_cells(whole.adata, anndata.read_h5ad(tmp_path / "out.h5ad"))
    assert whole.facts == pieces.facts


def test_data_sets_join_from_disk(rows, simulated, tmp_path):
    """Other genes in another order, and names that both have."""
    first, second = simulated[:300, 5:].copy(), simulated[300:, ::-1][:, 7:].copy()
    second.obs["batch"] = "other " + second.obs["batch"].astype(str)
    second.obs_names = first.obs_names[: second.n_obs]
    paths = [tmp_path / f"{k}.h5ad" for k in range(2)]
    for part, path in zip((first, second), paths, strict=True):
        part.write_h5ad(path)
    sheet = [replace(rows[0], id=f"d{k}", obs_filter="") for k in range(2)]
    whole = prepare_reference(sheet, paths, CONFIG)
    pieces = prepare_reference(sheet, paths, with_no_room(CONFIG))
    write_h5ad(pieces.adata, tmp_path / "out.h5ad", None)
    same_cells(whole.adata, anndata.read_h5ad(tmp_path / "out.h5ad"))
    assert whole.facts == pieces.facts


def test_a_query_from_disk_is_the_same(rows, reference, queries, tmp_path):
    registry, config = Registry.of(reference), with_no_room(CONFIG)
    whole = checked_dataset(rows[1], rows[1].path, config, lazily=True)
    found = prepare_query(whole, rows[1], "query1", registry, config).adata
    assert hasattr(found.X, "dask")
    write_h5ad(found, tmp_path / "out.h5ad", None)
    same_cells(queries["query1"], anndata.read_h5ad(tmp_path / "out.h5ad"))


def test_what_is_left_goes_into_memory_if_it_fits(rows, monkeypatch):
    rooms = iter([0, 10**9])
    monkeypatch.setattr(memory, "room_for_counts", lambda gb: next(rooms))
    monkeypatch.setattr("atlasmap.data.prepare.room_for_counts", lambda gb: next(rooms))
    assert sparse.issparse(prepare_reference([rows[0]], [rows[0].path], CONFIG).adata.X)


@pytest.mark.parametrize("n", [5, 20, 60])
def test_variable_genes_are_scanpys(simulated, tmp_path, n):
    cells, dense = simulated.copy(), simulated.X.toarray()
    dense[::60, 30:40] = 3000  # a few cells with far more than others: counts are clipped
    cells.X = sparse.csr_matrix(dense)
    cells.write_h5ad(tmp_path / "x.h5ad")
    lazy = read_any(tmp_path / "x.h5ad", Wanted(lazily=True))
    assert (seurat_v3(lazy, n, 0.5) == seurat_v3(cells, n, 0.5)).all()


def test_cells_have_one_fingerprint_wherever_they_are(reference, backed, tmp_path):
    assert fingerprint(backed) == fingerprint(reference)
    wide = reference.copy()
    wide.X.indices, wide.X.indptr = (x.astype(np.int64) for x in (wide.X.indices, wide.X.indptr))
    assert fingerprint(wide) == fingerprint(reference)
    assert fingerprint(on_disk(wide, tmp_path / "wide.h5ad")) == fingerprint(reference)
    wide.X.data[7] += 1
    assert fingerprint(wide) != fingerprint(reference)


def test_blocks_are_read_piece_by_piece(reference, backed):
    assert (depths(backed.X) == depths(reference.X)).all()
    assert len(list(in_blocks(backed.X))) > 5


def test_rows_are_those_in_memory(reference, backed, rng):
    whole, pieces = Counts.of(reference.X, CPU), StreamedCounts(backed.X, CPU)
    held = np.arange(50, 300, 3)
    for index in (np.array([7]), rng.permutation(400)[:90], held[::-2], np.array([50, 51, 50])):
        for wanted in (np.empty(0, np.int64), held):
            pieces.hold(wanted)
            found, expected = (c.rows(torch.as_tensor(index.copy())) for c in (pieces, whole))
            for part in ("starts", "gene", "value", "sums"):
                assert torch.equal(getattr(found, part), getattr(expected, part))
            assert (pieces.csr(index) != whole.csr(index)).nnz == 0


def test_an_epoch_meets_every_cell_once_and_is_mixed(backed):
    counts = StreamedCounts(backed.X, CPU)
    assert counts.block < counts.window < backed.n_obs
    cells = np.random.default_rng(1).permutation(backed.n_obs)[:350]
    orders = [counts.shuffled(cells, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for order in orders:
        assert sorted(order) == sorted(cells)
    assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).any()
    window = orders[0][: counts.window]
    assert 1 < len(np.unique(window // counts.block)) <= counts.window // counts.block + 2
    assert (
        len(np.unique(window[:20] // counts.block)) > 1
    )  # a minibatch has cells of several blocks
    starts = {
        tuple(np.unique(counts.shuffled(cells, np.random.default_rng(s))[:50] // counts.block))
        for s in range(9)
    }
    assert len(starts) > 2  # an epoch begins anywhere


def test_steps_find_their_cells_in_memory(backed, monkeypatch):
    """All that steps need is read ahead, in few long pieces."""
    counts = StreamedCounts(backed.X, CPU)
    order = counts.shuffled(np.arange(backed.n_obs), np.random.default_rng(0))
    steps = [(part, None) for part in np.array_split(order, 25)]
    for step in counts.ahead(steps):
        with monkeypatch.context() as m:
            m.setattr(counts, "csr", None)  # reading now would fail
            counts.rows(torch.as_tensor(step[0]))
        assert len(counts.at) <= counts.window + len(step[0])


def in_memory_order(monkeypatch):
    """Streamed cells in the order of cells in memory."""
    for name in ("shuffled", "arranged"):
        monkeypatch.setattr(StreamedCounts, name, getattr(Counts, name))


def test_in_the_same_order_the_same_bits(reference, backed, scanvi, monkeypatch):
    in_memory_order(monkeypatch)
    registry = Registry.of(reference)
    scvi, of_disk = (fit_scvi(cells, registry, SCVI, 0, CPU)[0] for cells in (reference, backed))
    assert states_equal(of_disk.model.state_dict(), scvi.model.state_dict())
    assert of_disk.history.equals(scvi.history)
    assert of_disk.about["training"].pop("streamed") and of_disk.about == scvi.about
    fitted = fit_scanvi(backed, of_disk, SCANVI, "fixed", 0, CPU)[0]
    assert states_equal(fitted.model.state_dict(), scanvi.model.state_dict())
    cells = encode(registry, backed, CPU)
    assert cells.counts.streamed
    for name, value in vars(embed(scanvi.model, encode(registry, reference, CPU))).items():
        assert np.array_equal(getattr(embed(fitted.model, cells), name), value)


def test_surgery_from_disk_has_the_same_bits(scanvi, queries, tmp_path, monkeypatch):
    from copy import deepcopy

    in_memory_order(monkeypatch)
    query, settings = queries["query0"], SurgerySettings(max_epochs=3)
    backed = on_disk(query, tmp_path / "query.h5ad")
    # The product of the first layer is taken once in memory and in every step from disk.
    monkeypatch.setattr("atlasmap.mapping.query.with_product", lambda model, cells: cells)
    a, b = (map_query(deepcopy(scanvi), q, settings, "per_batch", 0) for q in (query, backed))
    assert states_equal(a.bundle.model.state_dict(), b.bundle.model.state_dict())
    assert np.array_equal(a.latent.obsm["X_latent"], b.latent.obsm["X_latent"])
    assert np.array_equal(a.latent.obs["misfit"], b.latent.obs["misfit"])
    assert b.certificate["training"].pop("streamed") and a.certificate == b.certificate


def test_blocks_train_as_well(reference, backed, scvi):
    registry = Registry.of(reference)
    settings = replace(SCVI, train=TrainSettings(max_epochs=40))
    elbo = [
        fit_scvi(cells, registry, settings, 0, CPU)[0].history.query(
            "split == 'validation' and metric == 'elbo'")["value"].iloc[-1]
        for cells in (reference, backed)
    ]  # fmt: skip
    assert abs(elbo[1] / elbo[0] - 1) < 0.01


def test_taken_up_again_the_same_bits(reference, backed, tmp_path, monkeypatch):
    registry = Registry.of(reference)
    settings = replace(SCVI, train=TrainSettings(max_epochs=6))

    def train(cells, checkpoints=None):
        return fit_scvi(cells, registry, settings, 0, CPU, checkpoints)[0]

    undisturbed, looks = train(backed), iter(range(100))
    with monkeypatch.context() as m, pytest.raises(stopping.Stopped):
        m.setattr(stopping.Watch, "reason", lambda self: stop if next(looks) == 8 else None)
        stop = stopping.Stopped("stopped by a test")
        train(backed, Checkpoints(tmp_path / "c", 0.0))
    again = train(backed, Checkpoints(tmp_path / "c", 1e9))
    assert states_equal(undisturbed.model.state_dict(), again.model.state_dict())
    in_memory = train(reference, Checkpoints(tmp_path / "c", 1e9))  # another order: begins anew
    assert not states_equal(in_memory.model.state_dict(), again.model.state_dict())
    assert states_equal(in_memory.model.state_dict(), train(reference).model.state_dict())


def test_a_job_knows_its_memory(tmp_path, monkeypatch):
    own = tmp_path / "cgroup"
    own.write_text("0::/slurm/job7/step\n5:memory:/user\n3:cpu:/user\n")
    for folder, file, said in (
        ("slurm/job7", "memory.max", "4000000000"), ("slurm/job7/step", "memory.max", "max"),
        ("memory/user", "memory.limit_in_bytes", "5000000000"),
    ):  # fmt: skip
        (tmp_path / "top" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / folder / file).write_text(said + "\n")
    found = memory.cgroup_limits(own, tmp_path / "top")
    assert sorted(found) == [4_000_000_000, 5_000_000_000]
    monkeypatch.setattr(memory, "cgroup_limits", lambda: found)
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    assert memory.job_memory() <= 4_000_000_000
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2000")
    assert memory.job_memory() == 2000 * 2**20
    assert memory.room_for_counts(None) == int(0.6 * 2000 * 2**20) - memory.LIBRARIES
    assert memory.room_for_counts(3) == 3_000_000_000 - memory.LIBRARIES
    assert memory.room_for_counts(NO_ROOM) == 0


def test_citeseq_from_disk_is_the_same(tmp_path):
    sheet = Dataset(id="d", path="c.h5ad", role="reference", batch_key="batch", label_key="label")
    cells = citeseq({"r0": 70, "r1": 60}, lacking={"r1": [2]})
    cells.obsm["protein_expression"] = pd.DataFrame(
        cells.obsm.pop(PROTEINS), cells.obs_names, list(cells.uns.pop(PROTEIN_NAMES))
    ).fillna(0)
    cells.write_h5ad(tmp_path / "c.h5ad")
    config = DataConfig(modality="citeseq", data=DataSettings(n_top_genes=None))
    sheet = replace(sheet, protein_zeros="missing")
    whole = prepare_reference([sheet], [tmp_path / "c.h5ad"], config)
    pieces = prepare_reference([sheet], [tmp_path / "c.h5ad"], with_no_room(config))
    write_h5ad(pieces.adata, tmp_path / "out.h5ad", None)
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    same_cells(whole.adata, found)
    assert np.array_equal(whole.adata.obsm[PROTEINS], found.obsm[PROTEINS], equal_nan=True)
    assert whole.facts == pieces.facts
    backed = anndata.read_h5ad(tmp_path / "out.h5ad", backed="r")
    assert fingerprint(backed) == fingerprint(whole.adata)
    registry = Registry.of(backed)
    few = replace(CITESEQ.train, max_epochs=2)
    bundle, _ = fit_totalvi(backed, registry, replace(CITESEQ, train=few), 0, CPU)
    assert bundle.about["training"]["streamed"] and registry.proteins
