"""Hashes of trained models, latents and mappings, to compare two commits on one machine:

    .venv/bin/python tests/bench/bits.py > before.txt

The same lines mean the same bits of training, surgery and inference on a CPU.
"""

import hashlib
import os
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("MKL_CBWR", "AUTO")  # as commands set it
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import numpy as np
import torch
from citeseq import SETTINGS, citeseq
from small import CONFIG, CPU, SCANVI, SCVI

from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.data.simulate import simulate
from atlasmap.mapping.query import map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, fit_totalvi
from atlasmap.settings import SimulateSettings, SurgerySettings, TotalviSurgerySettings

NORMS = {"use_layer_norm": "none", "use_batch_norm": "both"}
MODELS = {
    "nb": SCVI,
    "wide": replace(SCVI, n_hidden=128, n_latent=30),
    "batch norm": replace(SCVI, **NORMS),
    "no norm": replace(SCVI, use_layer_norm="none", use_batch_norm="none"),
    "zinb": replace(SCVI, gene_likelihood="zinb"),
    "poisson": replace(SCVI, gene_likelihood="poisson"),
    "gene-batch": replace(SCVI, dispersion="gene-batch"),
    "library": replace(SCVI, use_observed_lib_size=False),
}


def told(name: str, *parts) -> None:
    """One line: a name, and a hash of all tensors and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        tensors = part.state_dict().values() if hasattr(part, "state_dict") else [part]
        for values in tensors:
            digest.update(np.ascontiguousarray(torch.as_tensor(values)).tobytes())
    print(f"{name:40s} {digest.hexdigest()[:16]}", flush=True)


def mapped(name: str, reference, query, strategy: str = "per_batch", settings=None) -> None:
    """Surgery and what follows it."""
    settings = settings or SurgerySettings(max_epochs=3)
    found = map_query(deepcopy(reference), query, settings, strategy, 0)
    soft = found.latent.obsm.get("soft_labels", np.zeros(0))
    told(f"{name}, surgery", found.bundle.model, found.latent.obsm["X_latent"], np.asarray(soft))
    told(f"{name}, misfit", found.latent.obs["misfit"].to_numpy(float))


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    adata = simulate(
        SimulateSettings(
            n_cells=900, n_genes=150, n_reference_batches=4, n_query_batches=2, n_lineages=3,
            n_types_per_lineage=2, seed=1,
        )
    )  # fmt: skip
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"bits{os.getpid()}.h5ad"
    adata.write_h5ad(path)
    own = {"path": str(path), "batch_key": "batch"}
    row = Dataset(
        id="r", role="reference", label_key="cell_type", obs_filter="role == 'reference'", **own
    )
    of_query = Dataset(id="q", role="query", obs_filter="role == 'query'", **own)
    reference = prepare_reference([row], [path], CONFIG).adata
    registry = Registry.of(reference)
    whole = checked_dataset(of_query, path, CONFIG)
    query = prepare_query(whole, of_query, "query0", registry, CONFIG).adata
    path.unlink()
    for name, settings in MODELS.items():
        scvi = fit_scvi(reference, registry, settings, 0, CPU)[0]
        told(f"scVI {name}", scvi.model)
        mapped(f"scVI {name}", scvi, query)
        if name not in ("nb", "wide", "batch norm", "zinb"):
            continue
        for variant in ("fixed", "prefix", "linear") if name == "nb" else ("fixed",):
            scanvi = fit_scanvi(reference, deepcopy(scvi), SCANVI, variant, 0, CPU)[0]
            told(f"scANVI {variant} {name}", scanvi.model)
            mapped(f"scANVI {variant} {name}", scanvi, query)
            mapped(f"scANVI {variant} {name} frozen", scanvi, query, "frozen")
    cells, new = citeseq({"x": 200, "y": 150}), citeseq({"z": 120}, seed=2)
    registry = Registry.of(cells)
    for likelihood in ("nb", "zinb"):
        settings = replace(SETTINGS, gene_likelihood=likelihood)
        settings = replace(settings, train=replace(settings.train, max_epochs=10))
        totalvi = fit_totalvi(cells, registry, settings, 0, CPU)[0]
        told(f"totalVI {likelihood}", totalvi.model)
        mapped(f"totalVI {likelihood}", totalvi, new, settings=TotalviSurgerySettings(max_epochs=3))


if __name__ == "__main__":
    main()
