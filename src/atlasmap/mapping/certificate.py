"""The surgery certificate: checks that the reference is unchanged, and how far the query moved.

Weights, outputs for the golden cells, and embeddings of some reference cells (if their counts are
available) are recorded before surgery and compared bit by bit after it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import torch

from atlasmap.bundle import Bundle, golden_cells, golden_outputs, reference_hash
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.mapping.embed import Embedding, embed
from atlasmap.mapping.encode import encode
from atlasmap.models.layers import CategoryTable
from atlasmap.models.random import keyed_seed
from atlasmap.training.cells import Cells

FILE = "certificate.json"
N_PROBE = 1000  # reference cells in the probe


def probe_cells(path: Path) -> anndata.AnnData:
    """Read a fixed random subset of N_PROBE cells of a prepared reference."""
    backed = anndata.read_h5ad(path, backed="r")
    rng = np.random.default_rng(keyed_seed(0, "probe", backed.n_obs))
    at = np.sort(rng.choice(backed.n_obs, min(N_PROBE, backed.n_obs), replace=False))
    cells = backed[at].to_memory()
    backed.file.close()
    return cells


@dataclass(frozen=True)
class Witness:
    """A model's state: hash of its reference weights, golden outputs, and embedding of the probe
    cells (None without a probe)."""

    weights: str
    golden: dict[str, np.ndarray]
    probe: Embedding | None


def witness(model: torch.nn.Module, registry: Registry, probe: anndata.AnnData | None) -> Witness:
    """Compute the witness of a model.

    `registry` is that of the reference, without categories of queries; `probe` has prepared
    reference cells.
    """
    device = next(model.parameters()).device
    golden = golden_outputs(model, golden_cells(registry, registry.batches, device))
    asked = None if probe is None else embed(model, encode(registry, probe, device))
    return Witness(reference_hash(model), golden, asked)


def unmoved(before: Witness, after: Witness) -> dict:
    """Compare two witnesses bit by bit; raises REFERENCE_MOVED if they differ.

    Returns for the certificate: unchanged, compared (what was compared), weights_sha256,
    n_golden_cells, n_probe_cells.
    """
    same = {"weights": before.weights == after.weights}
    for name, values in before.golden.items():
        same[f"golden_{name}"] = np.array_equal(values, after.golden[name])
    n_probe = 0
    if before.probe and after.probe:
        n_probe = len(before.probe.mean)
        same["latent"] = np.array_equal(before.probe.mean, after.probe.mean)
        if before.probe.soft_labels is not None:
            same["soft_labels"] = np.array_equal(before.probe.soft_labels, after.probe.soft_labels)
    moved = [name for name, is_same in same.items() if not is_same]
    if moved:
        raise AtlasmapError(
            "REFERENCE_MOVED",
            expected="the reference as it was before surgery, bit for bit",
            found=f"other {', '.join(moved)}",
            mend="this is a bug in atlasmap: please report it with settings.json",
        )
    return {
        "unchanged": True,
        "compared": list(same),
        "weights_sha256": before.weights,
        "n_golden_cells": len(before.golden["qz_mean"]),
        "n_probe_cells": n_probe,
    }


@contextlib.contextmanager
def frozen_rows(model: torch.nn.Module) -> Iterator[None]:
    """Set the rows of new categories to the mean of the reference's rows inside the context.

    This gives the encoder before surgery, applied to cells of an average reference batch.
    """
    tables = [m for m in model.modules() if isinstance(m, CategoryTable) and len(m.appended)]
    trained = [table.appended.data for table in tables]
    for table in tables:
        mean = table.mean_row().to(table.appended)
        table.appended.data = mean.expand_as(table.appended).clone()
    try:
        yield
    finally:
        for table, rows in zip(tables, trained, strict=True):
            table.appended.data = rows


def displacement(model: torch.nn.Module, cells: Cells, said: Embedding) -> dict:
    """Distance of the query's latent (`said`) from that of the frozen encoder, over cells.

    median, q90 and max in units of the latent; the median also in units of the cell's posterior
    standard deviation; labels_changed: fraction of cells whose most probable label changed.
    """
    with frozen_rows(model):
        frozen = embed(model, cells)
    distance = np.linalg.norm(said.mean - frozen.mean, axis=1)
    relative = distance / np.sqrt(said.var.sum(1))
    out = {
        "median": float(np.median(distance)),
        "q90": float(np.quantile(distance, 0.9)),
        "max": float(distance.max()),
        "median_in_posterior_sd": float(np.median(relative)),
    }
    if said.soft_labels is not None:
        changed = said.soft_labels.argmax(1) != frozen.soft_labels.argmax(1)
        out["labels_changed"] = float(changed.mean())
    return out


def certificate(before: Witness, after: Bundle, probe: anndata.AnnData | None,
                registry: Registry, cells: Cells, said: Embedding) -> dict:  # fmt: skip
    """Return the content of certificate.json for a mapping; raises REFERENCE_MOVED.

    `registry` is that of the reference; `cells` and `said` are the query's cells and embedding.
    """
    about, model = after.about, after.model
    return {
        "strategy": about["strategy"],
        "seed": about["seed"],
        "reference": unmoved(before, witness(model, registry, probe)),
        "query": {"n_cells": len(cells), "displacement": displacement(model, cells, said)},
        "training": about["training"],
    }
