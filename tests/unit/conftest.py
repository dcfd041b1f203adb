"""A tiny simulated atlas, and a reference trained on it, shared by the tests."""

import os

# One thread, numba's too: it sets the number for torch's OpenMP as well, and a forked child of a
# process with idle threads waits for them for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.data.simulate import simulate
from atlasmap.reference import fit_scanvi, fit_scvi
from atlasmap.settings import (
    DataConfig,
    DataSettings,
    ScanviSettings,
    ScviSettings,
    SimulateSettings,
    TrainSettings,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")
CONFIG = DataConfig(data=DataSettings(n_top_genes=None))


def of_rate(rate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and log library size that give these means (cells × genes)."""
    return rate.log(), rate.sum(-1, keepdim=True).log()


SCVI = ScviSettings(n_hidden=16, n_latent=5, n_layers=2, train=TrainSettings(max_epochs=3))
SCANVI = ScanviSettings(train=TrainSettings(max_epochs=3))


@pytest.fixture(scope="session")
def simulated():
    """600 cells × 80 genes: batch0–3 are reference, query0–1 query."""
    return simulate(
        SimulateSettings(
            n_cells=600, n_genes=80, n_reference_batches=4, n_query_batches=2, n_lineages=3,
            n_types_per_lineage=2, seed=1,
        )
    )  # fmt: skip


@pytest.fixture
def rows(simulated, tmp_path):
    """Sheet rows and the file they name."""
    path = tmp_path / "atlas.h5ad"
    simulated.write_h5ad(path)
    shared = {"path": str(path), "batch_key": "batch"}
    reference = Dataset(
        id="ref",
        role="reference",
        label_key="cell_type",
        obs_filter="role == 'reference'",
        **shared,
    )
    query = Dataset(
        id="query", role="query", truth_key="cell_type", obs_filter="role == 'query'", **shared
    )
    return reference, query


@pytest.fixture
def reference(rows):
    """The prepared reference."""
    return prepare_reference([rows[0]], [rows[0].path], CONFIG).adata


@pytest.fixture
def queries(rows, reference):
    """Prepared query batches by name."""
    registry = Registry.of(reference, "Unknown", [], [])
    whole = checked_dataset(rows[1], rows[1].path, CONFIG)
    return {
        name: prepare_query(whole, rows[1], name, registry, CONFIG).adata
        for name in ("query0", "query1")
    }


@pytest.fixture
def scvi(reference):
    """A trained scVI bundle."""
    return fit_scvi(reference, Registry.of(reference, "Unknown", [], []), SCVI, 0, CPU)[0]


@pytest.fixture
def scanvi(reference, scvi):
    """A trained scANVI bundle (fixed)."""
    return fit_scanvi(reference, scvi, SCANVI, "fixed", 0, CPU)[0]


def states_equal(a: dict, b: dict) -> bool:
    """Whether two states have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def threads():
    """Torch's number of threads may be changed."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
