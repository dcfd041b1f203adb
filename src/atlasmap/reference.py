"""Train a reference: prepared AnnData in, bundle out."""

from dataclasses import asdict, replace

import anndata
import numpy as np
import pandas as pd
import torch

from atlasmap.bundle import Bundle, fingerprint
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.inference import embed
from atlasmap.minified import minified
from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.vae import Shape
from atlasmap.settings import NUMERICS, ScanviSettings, ScviSettings, TrainSettings, Variant
from atlasmap.training.checkpoint import Checkpoints
from atlasmap.training.loop import Outcome, epochs_by_size, fit
from atlasmap.training.objectives import SemiSupervised, Unsupervised
from atlasmap.training.split import Split, split_by_labels, split_cells

SCANVI_EPOCHS = 100
LEAST_LIBRARY_VARIANCE = 1e-4  # cells of one depth would make the prior a point


def library_moments(adata: anndata.AnnData, batches: list[str]) -> np.ndarray:
    """Mean and variance of log library size of each batch (batches × 2)."""
    logs = np.log(np.asarray(adata.X.sum(1)).ravel())
    by_batch = pd.Series(logs).groupby(adata.obs["batch"].astype(str).to_numpy())
    variance = by_batch.var(ddof=0)[batches].clip(lower=LEAST_LIBRARY_VARIANCE)
    return np.stack([by_batch.mean()[batches], variance], 1)


def with_epochs(settings: TrainSettings, default: int) -> TrainSettings:
    """Settings with `max_epochs` chosen."""
    return replace(settings, max_epochs=settings.max_epochs or default)


def outcome_facts(outcome: Outcome, split: Split) -> dict:
    """What training left behind, for settings.json."""
    return {
        "n_epochs": outcome.n_epochs,
        "n_steps": outcome.n_steps,
        "stopped": outcome.stopped,
        "n_train": len(split.train),
        "n_validation": len(split.validation),
    }


def fit_scvi(
    adata: anndata.AnnData, registry: Registry, settings: ScviSettings, seed: int,
    device: torch.device, checkpoints: Checkpoints | None = None,
) -> tuple[Bundle, Split]:  # fmt: skip
    """Train scVI on a prepared reference (X counts, obs batch); all randomness by `seed`."""
    cells = registry.encode(adata, device)
    library = None
    if not settings.use_observed_lib_size:
        library = tuple(map(tuple, library_moments(adata, registry.batches).T.tolist()))
    shape = Shape(len(registry.genes), registry.n_categories, len(registry.continuous), library)
    model = Scvi(settings, shape, keyed_generator(seed, "scvi", "weights")).to(device)
    train = with_epochs(settings.train, epochs_by_size(len(cells)))
    split = split_cells(np.arange(len(cells)), train.train_size, seed, train.batch_size)
    objective = Unsupervised(model, cells, split, train.batch_size, seed, "scvi")
    about = {
        "kind": "scvi",
        "seed": seed,
        "scvi": asdict(settings),
        "numerics": NUMERICS["scvi"],
        "library": library,
        "data": {"n_cells": len(cells), "sha256": fingerprint(adata)},
    }
    outcome = fit(objective, train, "scVI", checkpoints=checkpoints, identity=about)
    about["training"] = outcome_facts(outcome, split)
    return Bundle(model, registry, about, outcome.history.table()), split


def fit_scanvi(
    adata: anndata.AnnData, scvi: Bundle, settings: ScanviSettings, variant: Variant, seed: int,
    device: torch.device, checkpoints: Checkpoints | None = None,
) -> tuple[Bundle, Split]:  # fmt: skip
    """Train scANVI from scVI's weights on the same cells; raises REFERENCE_DIFFERS."""
    if scvi.about["data"]["sha256"] != fingerprint(adata):
        raise AtlasmapError(
            "REFERENCE_DIFFERS",
            expected="the cells that this scVI was trained on",
            found="other cells, genes, counts or metadata",
            mend="train scVI again on this reference",
        )
    cells = scvi.registry.encode(adata, device)
    rng = keyed_generator(seed, "scanvi", variant, "weights")
    model = Scanvi(scvi.model.cpu(), variant, len(scvi.registry.labels), rng).to(device)
    train = with_epochs(settings.train, SCANVI_EPOCHS)
    labels = cells.labels.cpu().numpy()
    split = split_by_labels(labels, train.train_size, seed)
    objective = SemiSupervised(
        model, cells, split, train.batch_size, seed, f"scanvi_{variant}",
        settings.classification_ratio, settings.n_samples_per_label,
    )  # fmt: skip
    about = scvi.about | {
        "kind": "scanvi",
        "seed": seed,
        "variant": variant,
        "scanvi": asdict(settings),
        "numerics": NUMERICS["scanvi"],
    }
    name = f"scANVI {variant}"
    outcome = fit(objective, train, name, checkpoints=checkpoints, identity=about)
    about["training"] = outcome_facts(outcome, split)
    return Bundle(model, scvi.registry, about, outcome.history.table()), split


def reference_latent(
    adata: anndata.AnnData, bundle: Bundle, split: Split, device: torch.device
) -> anndata.AnnData:
    """The reference in latent space: what sharing, transfer, maps and metrics need of it."""
    said = embed(bundle.model, bundle.registry.encode(adata, device))
    obs = adata.obs.copy()
    part = np.full(adata.n_obs, "train", dtype=object)
    part[split.validation] = "validation"
    obs["split"] = pd.Categorical(part)
    library = np.asarray(adata.X.sum(1)).ravel()
    return minified(obs, said, library, bundle.about["kind"], bundle.registry)
