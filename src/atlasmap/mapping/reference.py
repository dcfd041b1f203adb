"""Train a reference: prepared AnnData in, bundle out."""

from dataclasses import asdict, replace

import anndata
import numpy as np
import pandas as pd
import torch

from atlasmap.bundle import Bundle, fingerprint
from atlasmap.data.blocks import depths
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode, shape_of
from atlasmap.mapping.latent import minified
from atlasmap.mapping.protein_background import background_prior
from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.totalvi import Totalvi
from atlasmap.settings import (
    NUMERICS,
    HeadTrainSettings,
    ScanviSettings,
    ScviSettings,
    TotalviSettings,
    TrainSettings,
    Variant,
)
from atlasmap.training.adversary import Adversarial
from atlasmap.training.cells import Cells
from atlasmap.training.checkpoint import Checkpoints
from atlasmap.training.head import ClassifierHead
from atlasmap.training.loop import Outcome, epochs_by_size, fit
from atlasmap.training.objectives import SemiSupervised, Unsupervised
from atlasmap.training.split import Split, split_by_labels, split_cells

SCANVI_EPOCHS = 100
LEAST_LIBRARY_VARIANCE = 1e-4  # equal library sizes would give a prior of zero variance


def library_moments(adata: anndata.AnnData, batches: list[str]) -> np.ndarray:
    """Mean and variance of log library size of each batch (batches × 2)."""
    logs = np.log(depths(adata.X))
    by_batch = pd.Series(logs).groupby(adata.obs["batch"].astype(str).to_numpy())
    variance = by_batch.var(ddof=0)[batches].clip(lower=LEAST_LIBRARY_VARIANCE)
    return np.stack([by_batch.mean()[batches], variance], 1)


def inferred_library(
    adata: anndata.AnnData, registry: Registry, settings: ScviSettings | TotalviSettings
) -> tuple[tuple[float, ...], ...] | None:
    """Return `library_moments`, transposed (2 × batches), for the model's shape; None if the model
    uses observed library sizes."""
    if settings.use_observed_lib_size:
        return None
    return tuple(map(tuple, library_moments(adata, registry.batches).T.tolist()))


def warmed_by_step(settings: TrainSettings, n_cells: int) -> TrainSettings:
    """Set the KL warm-up of totalVI to 0.75 steps per cell, as in scvi-tools, unless its epochs or
    steps are set."""
    if settings.n_epochs_kl_warmup or settings.n_steps_kl_warmup:
        return settings
    return replace(settings, n_steps_kl_warmup=max(1, int(0.75 * n_cells)))


def with_epochs(settings: TrainSettings, default: int) -> TrainSettings:
    """Set `max_epochs` to `default` if it is not set."""
    return replace(settings, max_epochs=settings.max_epochs or default)


def outcome_facts(outcome: Outcome, split: Split) -> dict:
    """Facts about a training run, for settings.json."""
    return {
        "n_epochs": outcome.n_epochs,
        "n_steps": outcome.n_steps,
        "stopped": outcome.stopped,
        "n_train": len(split.train),
        "n_validation": len(split.validation),
        "ops": outcome.ops,
        **({"streamed": True} if outcome.streamed else {}),
    }


def fit_scvi(
    adata: anndata.AnnData, registry: Registry, settings: ScviSettings, seed: int,
    device: torch.device, checkpoints: Checkpoints | None = None,
) -> tuple[Bundle, Split]:  # fmt: skip
    """Train scVI on a prepared reference (X counts, obs batch); `seed` fixes all randomness."""
    cells = encode(registry, adata, device)
    library = inferred_library(adata, registry, settings)
    rng = keyed_generator(seed, "scvi", "weights")
    model = Scvi(settings, shape_of(registry, library), rng).to(device)
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
    """Train scANVI from the weights of a scVI model of the same cells.

    Raises REFERENCE_DIFFERS if `scvi` was trained on other data.
    """
    if scvi.about["data"]["sha256"] != fingerprint(adata):
        raise AtlasmapError(
            "REFERENCE_DIFFERS",
            expected="the cells that this scVI was trained on",
            found="other cells, genes, counts or metadata",
            mend="train scVI again on this reference",
        )
    cells = encode(scvi.registry, adata, device)
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


def fit_totalvi(
    adata: anndata.AnnData, registry: Registry, settings: TotalviSettings, seed: int,
    device: torch.device, checkpoints: Checkpoints | None = None,
) -> tuple[Bundle, Split]:  # fmt: skip
    """Train totalVI on a prepared CITE-seq reference, and if there are labels, a classifier on its
    latent; `seed` fixes all randomness."""
    cells = encode(registry, adata, device)
    library = inferred_library(adata, registry, settings)
    rng = keyed_generator(seed, "totalvi", "weights")
    model = Totalvi(settings, shape_of(registry, library), len(registry.labels), rng)
    for name, rows in background_prior(adata, registry.batches, settings, seed).items():
        getattr(model, name).reference.data.copy_(rows)
    train = warmed_by_step(with_epochs(settings.train, epochs_by_size(len(cells))), len(cells))
    split = split_cells(np.arange(len(cells)), train.train_size, seed, train.batch_size)
    adversarial = settings.adversarial
    if adversarial is None:
        adversarial = bool(cells.proteins.isnan().any())
    kind = Adversarial if adversarial and len(registry.batches) > 1 else Unsupervised
    objective = kind(model.to(device), cells, split, train.batch_size, seed, "totalvi")
    about = {
        "kind": "totalvi",
        "seed": seed,
        "totalvi": asdict(settings),
        "numerics": NUMERICS["totalvi"],
        "library": library,
        "adversarial": kind is Adversarial,
        "data": {"n_cells": len(cells), "sha256": fingerprint(adata)},
    }
    outcome = fit(objective, train, "totalVI", checkpoints=checkpoints, identity=about)
    about["training"], history = outcome_facts(outcome, split), outcome.history.table()
    if registry.labels:
        of_head, about["classifier"] = fit_head(model, cells, split, settings.classifier, seed)
        history = pd.concat([history, of_head], ignore_index=True)
    return Bundle(model, registry, about, history), split


def fit_head(
    model: Totalvi, cells: Cells, split: Split, settings: HeadTrainSettings, seed: int
) -> tuple[pd.DataFrame, dict]:
    """Train the classifier on the fixed latent; returns the history and facts about training."""
    split = of_labelled(cells.labels.cpu().numpy(), split)
    if not len(split.validation):
        settings = replace(settings, early_stopping=False)
    said = embed(model, cells)
    posterior = (torch.as_tensor(x, device=cells.device) for x in (said.mean, said.var))
    purpose, size = "totalvi classifier", settings.batch_size
    objective = ClassifierHead(model, cells, split, size, seed, purpose, *posterior)
    outcome = fit(objective, TrainSettings(**asdict(settings)), "classifier")
    history = outcome.history.table()
    own = history["metric"].isin(
        ["classification_loss", "accuracy"]
    )  # others: totalVI has them too
    return history[own], outcome_facts(outcome, split)


def of_labelled(labels: np.ndarray, split: Split) -> Split:
    """Restrict a split to labelled cells; validation cells of labels without training cells move to
    training."""
    train, validation = (part[labels[part] >= 0] for part in (split.train, split.validation))
    unseen = ~np.isin(labels[validation], labels[train])
    return Split(np.concatenate([train, validation[unseen]]), validation[~unseen])


def reference_latent(
    adata: anndata.AnnData, bundle: Bundle, split: Split, device: torch.device
) -> anndata.AnnData:
    """Embed the reference and return its minified AnnData, with the split in obs."""
    said = embed(bundle.model, encode(bundle.registry, adata, device))
    obs = adata.obs.copy()
    part = np.full(adata.n_obs, "train", dtype=object)
    part[split.validation] = "validation"
    obs["split"] = pd.Categorical(part)
    return minified(obs, said, depths(adata.X), bundle.about["kind"], bundle.registry)
