"""Map query batches onto a frozen reference by surgery: prepared AnnData in, delta bundle out."""

from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from torch import nn

from atlasmap.bundle import Bundle, device_of, fingerprint, read_about, reference_hash
from atlasmap.data.registry import PROTEINS, Registry, lacking
from atlasmap.errors import AtlasmapError
from atlasmap.files import recorded, sha256
from atlasmap.mapping.certificate import FILE, certificate, witness
from atlasmap.mapping.embed import Embedding, embed, posterior_soft_labels, with_product
from atlasmap.mapping.encode import encode
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.protein_background import background_prior
from atlasmap.mapping.reference import library_moments, outcome_facts, warmed_by_step
from atlasmap.mapping.residuals import residual_score, residual_score_if_missing
from atlasmap.models.surgery import NewCategories, append_categories, encoder_sees, vae_of
from atlasmap.models.totalvi import Totalvi
from atlasmap.settings import (
    NUMERICS,
    Surgery,
    SurgerySettings,
    TotalviSurgerySettings,
    TrainSettings,
)
from atlasmap.training.cells import Cells
from atlasmap.training.checkpoint import Checkpoints
from atlasmap.training.history import History
from atlasmap.training.loop import fit
from atlasmap.training.objectives import Unsupervised
from atlasmap.training.split import split_cells

# Per-batch tables that surgery in scvi-tools does not train.
LEFT_BY_SCVI_TOOLS = ("log_efficiency", "log_theta", "protein_log_theta")


@dataclass(frozen=True)
class Mapping:
    """Result of mapping a query: the model with appended rows, the new categories (covariate index
    → names), the query's latent, and the surgery certificate."""

    bundle: Bundle
    new: dict[int, list[str]]
    latent: anndata.AnnData
    certificate: dict


def query_latent(
    adata: anndata.AnnData, said: Embedding, labels: list[str], keep: list[str]
) -> anndata.AnnData:
    """Build the latent AnnData of a query, without counts: obs columns `keep`; obsm X_latent,
    latent_var, soft_labels (names of its columns in uns soft_label_names)."""
    obs = adata.obs[[key for key in keep if key in adata.obs]].copy()
    out = anndata.AnnData(obs=obs, obsm={"X_latent": said.mean, "latent_var": said.var})
    if said.soft_labels is not None:
        out.obsm["soft_labels"] = said.soft_labels
        out.uns["soft_label_names"] = np.array(labels, dtype=object)
    return out


def as_train_settings(settings: SurgerySettings, n_cells: int) -> TrainSettings:
    """Convert surgery settings to settings of the training loop; weight decay is always 0."""
    shared = asdict(settings)
    for name in ("surgery_dropout", "as_scvi_tools"):
        shared.pop(name, None)
    train = TrainSettings(**shared, weight_decay=0.0)
    return warmed_by_step(train, n_cells) if isinstance(settings, TotalviSurgerySettings) else train


def check_query(
    reference: Bundle, query: anndata.AnnData, new: dict[int, list[str]], strategy: Surgery
) -> None:
    """Raise QUERY_BATCH_IS_REFERENCE if a batch is in the reference, SURGERY_NOOP if the encoder
    does not see the batch and `strategy` is not `frozen`."""
    clash = sorted(set(query.obs["batch"].astype(str)) & set(reference.registry.batches))
    if clash:
        raise AtlasmapError(
            "QUERY_BATCH_IS_REFERENCE",
            expected="query batches that are not in the reference",
            found=f"{clash}",
            mend="rename these batches",
        )
    if strategy != "frozen" and not encoder_sees(reference.model, new):
        raise AtlasmapError(
            "SURGERY_NOOP",
            expected="an encoder that sees the batch",
            found="scvi.encode_covariates is false: nothing that surgery trains reaches the latent",
            mend="train the reference with scvi.encode_covariates: true, or set strategies: "
            "[frozen], which takes the encoder as it is",
        )


def inputs(query: anndata.AnnData, settings: SurgerySettings, strategy: Surgery, seed: int) -> dict:
    """Return the inputs of a mapping besides its reference, as settings.json records them."""
    return {
        "seed": seed,
        "strategy": strategy,
        "surgery": asdict(settings),
        "numerics": NUMERICS["surgery"],
        "query": {"n_cells": query.n_obs, "sha256": fingerprint(query)},
    }


def is_mapped(
    folder: Path, reference: Bundle, query: anndata.AnnData, settings: SurgerySettings,
    strategy: Surgery, seed: int, denoise: dict | None = None,
) -> bool:  # fmt: skip
    """Whether `folder` has a complete mapping of these inputs: delta bundle, latent, certificate,
    and with `denoise` (settings) the denoised cells."""
    try:
        about, records = read_about(folder), recorded(folder)
    except (AtlasmapError, ValueError, KeyError, OSError):  # missing, altered, cut short
        return False
    made_of = inputs(query, settings, strategy, seed) | {"parent": reference_hash(reference.model)}
    beside = [folder / "latent.h5ad", folder / FILE]
    if denoise is not None:
        made_of, beside = made_of | {"denoise": denoise}, [*beside, folder / "denoised.h5ad"]
    whole = all(path.exists() and records.get(path) == sha256(path) for path in beside)
    return whole and all(about.get(key) == value for key, value in made_of.items())


def without_unknown(query: anndata.AnnData, reference: Registry) -> anndata.AnnData:
    """Set proteins that no reference batch has to NaN (not measured): the model never saw them.

    This occurs in models trained without the held-out batches.
    """
    if not reference.proteins or reference.measured().any(0).all():
        return query
    out = query.copy()
    out.obsm[PROTEINS] = np.where(reference.measured().any(0), query.obsm[PROTEINS], np.nan)
    return out


def map_query(
    reference: Bundle, query: anndata.AnnData, settings: SurgerySettings, strategy: Surgery,
    seed: int, checkpoints: Checkpoints | None = None, probe: anndata.AnnData | None = None,
) -> Mapping:  # fmt: skip
    """Map all batches in `query` onto `reference` by one surgery; `reference` is modified.

    `per_batch` takes one batch, `joint` any number, `frozen` trains nothing. `probe`: reference
    cells for the certificate. The latent has the residual score in obs misfit.

    Initial rows are seeded by the name of the batch; minibatches and noise are seeded by the name
    of the batch (`per_batch`) or by "all". Raises QUERY_BATCH_IS_REFERENCE, SURGERY_NOOP, and
    REFERENCE_MOVED if the reference is not bitwise the same afterwards.
    """
    device, own = device_of(reference.model), reference.registry
    new = own.new_categories(query.obs)
    check_query(reference, query, new, strategy)
    query = without_unknown(query, own)
    before = witness(reference.model, own, probe)
    append_rows(reference.model, query, new, settings, seed, frozen=strategy == "frozen")
    registry = own.extended(new, lacking(query) if own.proteins else {})
    cells = encode(registry, query, device)
    about = reference.about | inputs(query, settings, strategy, seed)
    history = History().table()
    if strategy == "frozen":
        about["training"] = {
            "n_epochs": 0, "n_steps": 0, "stopped": "nothing trains", "n_trainable": 0,
        }  # fmt: skip
    else:
        what = new[0][0] if strategy == "per_batch" else "all"
        history, about["training"] = trained_rows(
            reference, cells, settings, f"surgery {strategy} {what}", seed, checkpoints, about
        )
    bundle = Bundle(reference.model, registry, about, history)
    keep = ["batch", "dataset", "barcode", *registry.categorical, *registry.continuous]
    said = embed(bundle.model, cells)
    latent = query_latent(query, said, registry.labels, keep)
    latent.obs["misfit"] = residual_score(bundle.model, cells, said.mean)
    proof = certificate(before, bundle, probe, own, cells, said)
    return Mapping(bundle, new, latent, proof)


def start_values(
    model: nn.Module, query: anndata.AnnData, batches: list[str], seed: int
) -> dict[str, torch.Tensor]:
    """Return initial rows that are computed from the query's cells, by name of the table.

    Moments of log library size (batches × 2) if the model infers it; totalVI's background prior
    (batches × proteins).
    """
    vae, out = vae_of(model), {}
    if not vae.settings.use_observed_lib_size:
        out["library_prior"] = torch.tensor(library_moments(query, batches), dtype=torch.float32)
    if isinstance(vae, Totalvi):
        out |= background_prior(query, batches, vae.settings, seed)
    return out


def append_rows(
    model: nn.Module, query: anndata.AnnData, new: NewCategories, settings: SurgerySettings,
    seed: int, *, frozen: bool = False,
) -> None:  # fmt: skip
    """Freeze the reference and append rows for the query's categories, which can be trained."""
    starts = start_values(model, query, new[0], seed)
    append_categories(model, new, seed, starts, frozen=frozen)
    if isinstance(settings, TotalviSurgerySettings) and settings.as_scvi_tools:
        for name in LEFT_BY_SCVI_TOOLS:
            getattr(model, name).appended.requires_grad_(False)


def trained_rows(
    reference: Bundle, cells: Cells, settings: SurgerySettings, purpose: str, seed: int,
    checkpoints: Checkpoints | None, about: dict,
) -> tuple[pd.DataFrame, dict]:  # fmt: skip
    """Train the appended rows; returns the history and facts about the training."""
    split = split_cells(np.arange(len(cells)), settings.train_size, seed)
    cells = with_product(reference.model, cells)
    objective = Unsupervised(reference.model, cells, split, settings.batch_size, seed, purpose)
    name = "surgery " + purpose.split(" ", 2)[2]
    outcome = fit(
        objective, as_train_settings(settings, len(cells)), name,
        dropout=settings.surgery_dropout, batch_statistics=False,
        checkpoints=checkpoints, identity=about,
    )  # fmt: skip
    n_trainable = sum(p.numel() for p in objective.parameters())
    facts = outcome_facts(outcome, split) | {"n_trainable": n_trainable}
    return outcome.history.table(), facts


def map_held_out(
    bundle: Bundle, cells: anndata.AnnData, reference: anndata.AnnData, settings: SurgerySettings,
    strategy: Surgery, seed: int, checkpoints: Checkpoints | None = None, n_draws: int = 32,
) -> anndata.AnnData:  # fmt: skip
    """Map a held-out reference batch onto a model trained without it (`bundle`, modified).

    Returns its latent with obsm averaged (label probabilities averaged over `n_draws` posterior
    samples), and obs label, misfit (the residual score) and misfit_if_missing (the residual score
    if the model lacked the cell's label). `reference` is the latent of the training cells.
    """
    mapping = map_query(bundle, cells, settings, strategy, seed, checkpoints)
    latent, labels = mapping.latent, cells.obs["label"].astype(str).to_numpy()
    latent.obs["label"] = labels
    posterior = latent.obsm["X_latent"], latent.obsm["latent_var"]
    latent.obsm["averaged"] = posterior_soft_labels(mapping.bundle.model, *posterior, n_draws)
    latent.obs["misfit_if_missing"] = residual_score_if_missing(
        mapping.bundle.model,
        encode(mapping.bundle.registry, cells, device_of(mapping.bundle.model)),
        latent.obsm["X_latent"],
        labels,
        latent_of(reference),
        reference.obs["label"].astype(str).to_numpy(),
    )
    return latent


def joined(queries: list[anndata.AnnData]) -> anndata.AnnData:
    """Concatenate prepared query batches. Cell names are kept and may repeat across batches."""
    if len(queries) == 1:
        return queries[0]
    return anndata.concat(queries, join="outer", merge="same", uns_merge="same")
