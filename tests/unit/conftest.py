"""A tiny simulated atlas, and a reference trained on it, shared by the tests."""

import os
import shutil
from copy import deepcopy
from dataclasses import replace

# One thread, numba's too: it sets the number for torch's OpenMP as well, and a forked child of a
# process with idle threads waits for them for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO")  # as commands set it

import numpy as np
import pytest
import torch
from small import CONFIG, CPU, SCANVI, SCVI

from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.data.simulate import simulate
from atlasmap.mapping.reference import fit_scanvi, fit_scvi
from atlasmap.models import ops
from atlasmap.settings import SimulateSettings

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made_atlas(tmp_path_factory):
    """The atlas that tests are given copies of, and its file."""
    adata = simulate(
        SimulateSettings(
            n_cells=600, n_genes=80, n_reference_batches=4, n_query_batches=2, n_lineages=3,
            n_types_per_lineage=2, seed=1,
        )
    )  # fmt: skip
    path = tmp_path_factory.mktemp("made") / "atlas.h5ad"
    adata.write_h5ad(path)
    return adata, path


def rows_of(path) -> tuple[Dataset, Dataset]:
    """Sheet rows of the atlas in a file."""
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


@pytest.fixture(scope="session")
def made_reference(made_atlas):
    """The prepared reference that tests are given copies of."""
    row, _ = rows_of(made_atlas[1])
    return prepare_reference([row], [row.path], CONFIG).adata


@pytest.fixture(scope="session")
def made_queries(made_atlas, made_reference):
    """The prepared query batches that tests are given copies of."""
    _, row = rows_of(made_atlas[1])
    registry = Registry.of(made_reference)
    whole = checked_dataset(row, row.path, CONFIG)
    return {
        name: prepare_query(whole, row, name, registry, CONFIG).adata
        for name in ("query0", "query1")
    }


@pytest.fixture(scope="session")
def made_scvi(made_reference):
    """The trained scVI that tests are given copies of."""
    registry = Registry.of(made_reference)
    return fit_scvi(made_reference.copy(), registry, SCVI, 0, CPU)[0]


@pytest.fixture(scope="session")
def made_scanvi(made_reference, made_scvi):
    """The trained scANVI that tests are given copies of."""
    scvi = deepcopy(made_scvi)
    return fit_scanvi(made_reference.copy(), scvi, SCANVI, "fixed", 0, CPU)[0]


@pytest.fixture
def simulated(made_atlas):
    """600 cells × 80 genes: batch0–3 are reference, query0–1 query."""
    return made_atlas[0].copy()


@pytest.fixture
def rows(made_atlas, tmp_path):
    """Sheet rows and the file they name."""
    return rows_of(shutil.copy(made_atlas[1], tmp_path / "atlas.h5ad"))


@pytest.fixture
def reference(made_reference):
    """The prepared reference."""
    return made_reference.copy()


@pytest.fixture
def queries(made_queries):
    """Prepared query batches by name."""
    return {name: adata.copy() for name, adata in made_queries.items()}


@pytest.fixture
def scvi(made_scvi):
    """A trained scVI bundle."""
    return deepcopy(made_scvi)


@pytest.fixture
def scanvi(made_scanvi):
    """A trained scANVI bundle (fixed)."""
    return deepcopy(made_scanvi)


@pytest.fixture(params=[None, 0.1], ids=["in memory", "from disk"])
def prepare(simulated, tmp_path, request):
    """Change the simulated file, then prepare its reference (or a query batch)."""

    def run(change=None, settings=CONFIG, role="reference", registry=None, **given):
        settings = replace(settings, data=replace(settings.data, memory_gb=request.param))
        adata = simulated.copy()
        adata.obs = adata.obs.astype(str)
        adata = (change(adata) or adata) if change else adata
        path = tmp_path / "in.h5ad"
        adata.write_h5ad(path)
        key = "label_key" if role == "reference" else "truth_key"
        row = {
            "id": "d", "path": str(path), "role": role, "batch_key": "batch", key: "cell_type",
            "obs_filter": f"role == '{role}'",
        } | given  # fmt: skip
        dataset = Dataset(**row)
        if role == "reference":
            return prepare_reference([dataset], [path], settings)
        plain = simulated[simulated.obs["role"] == "reference"].copy()
        plain.obs["label"] = plain.obs["cell_type"].astype(str)
        registry = registry or Registry.of(plain)
        lazily = request.param is not None
        cells = checked_dataset(dataset, path, settings, lazily=lazily, batch="query0")
        return prepare_query(cells, dataset, "query0", registry, settings)

    return run


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=ops.CHOICES)
def bodies(request):
    """The test runs on the faster bodies of operations, and on the plain ones."""
    ops.use(request.param)
    yield request.param
    ops.use("auto")


@pytest.fixture
def threads():
    """Torch's number of threads may be changed."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
