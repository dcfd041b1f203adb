"""Map query batches onto a frozen reference by surgery: prepared AnnData in, delta bundle out."""

from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
import torch

from atlasmap.bundle import Bundle, device_of, fingerprint, read_about, reference_hash
from atlasmap.errors import AtlasmapError
from atlasmap.files import recorded, sha256
from atlasmap.inference import Embedding, embed
from atlasmap.minified import latent_of
from atlasmap.models.surgery import append_categories, encoder_sees, scvi_of
from atlasmap.reference import library_moments, outcome_facts
from atlasmap.settings import NUMERICS, Strategy, SurgerySettings, TrainSettings
from atlasmap.training.checkpoint import Checkpoints
from atlasmap.training.loop import fit
from atlasmap.training.objectives import Unsupervised
from atlasmap.training.split import split_cells
from atlasmap.trust.misfit import misfit, misfit_if_missing


@dataclass(frozen=True)
class Mapping:
    """A query on the reference: the operated model, what was appended, the query's latent."""

    bundle: Bundle
    new: dict[int, list[str]]
    latent: anndata.AnnData


def query_latent(
    adata: anndata.AnnData, said: Embedding, labels: list[str], keep: list[str]
) -> anndata.AnnData:
    """Latent and soft labels without counts: obs columns `keep`, obsm X_latent, latent_var,
    soft_labels (columns in uns soft_label_names)."""
    obs = adata.obs[[key for key in keep if key in adata.obs]].copy()
    out = anndata.AnnData(obs=obs, obsm={"X_latent": said.mean, "latent_var": said.var})
    if said.soft_labels is not None:
        out.obsm["soft_labels"] = said.soft_labels
        out.uns["soft_label_names"] = np.array(labels, dtype=object)
    return out


def as_train_settings(settings: SurgerySettings) -> TrainSettings:
    """Surgery's settings for the loop; weight decay is 0, not an option."""
    shared = asdict(settings)
    shared.pop("surgery_dropout")
    return TrainSettings(**shared, weight_decay=0.0)


def check_query(reference: Bundle, query: anndata.AnnData, new: dict[int, list[str]]) -> None:
    """Raise QUERY_BATCH_IS_REFERENCE or SURGERY_NOOP."""
    clash = sorted(set(query.obs["batch"].astype(str)) & set(reference.registry.batches))
    if clash:
        raise AtlasmapError(
            "QUERY_BATCH_IS_REFERENCE",
            expected="query batches that are not in the reference",
            found=f"{clash}",
            mend="rename these batches",
        )
    if not encoder_sees(reference.model, new):
        raise AtlasmapError(
            "SURGERY_NOOP",
            expected="an encoder that sees the batch",
            found="scvi.encode_covariates is false: nothing that surgery trains reaches the latent",
            mend="train the reference with scvi.encode_covariates: true",
        )


def inputs(
    query: anndata.AnnData, settings: SurgerySettings, strategy: Strategy, seed: int
) -> dict:
    """What a mapping is made of besides its reference, as settings.json has it."""
    return {
        "seed": seed,
        "strategy": strategy,
        "surgery": asdict(settings),
        "numerics": NUMERICS["surgery"],
        "query": {"n_cells": query.n_obs, "sha256": fingerprint(query)},
    }


def is_mapped(
    folder: Path, reference: Bundle, query: anndata.AnnData, settings: SurgerySettings,
    strategy: Strategy, seed: int,
) -> bool:  # fmt: skip
    """Whether `folder` has this very mapping, whole: delta bundle and latent, by their hashes."""
    try:
        about, records = read_about(folder), recorded(folder)
    except (AtlasmapError, ValueError, KeyError, OSError):  # missing, altered, cut short
        return False
    made_of = inputs(query, settings, strategy, seed) | {"parent": reference_hash(reference.model)}
    latent = folder / "latent.h5ad"
    whole = latent.exists() and records.get(latent) == sha256(latent)
    return whole and all(about.get(key) == value for key, value in made_of.items())


def map_query(
    reference: Bundle, query: anndata.AnnData, settings: SurgerySettings, strategy: Strategy,
    seed: int, checkpoints: Checkpoints | None = None,
) -> Mapping:  # fmt: skip
    """Operate on `reference` (consumed) for all batches in `query` at once.

    Start values are keyed by each batch's name, minibatches and noise by the batch's name
    (`per_batch`: one batch in `query`) or by `joint`. The reference's weights are compared bit by
    bit before and after: raises REFERENCE_MOVED.
    """
    device = device_of(reference.model)
    new = reference.registry.new_categories(query.obs)
    check_query(reference, query, new)
    before = reference_hash(reference.model)
    library = None
    if not scvi_of(reference.model).settings.use_observed_lib_size:
        library = torch.tensor(library_moments(query, new[0]), dtype=torch.float32)
    append_categories(reference.model, new, seed, library)
    registry = reference.registry.extended(new)
    cells = registry.encode(query, device)
    split = split_cells(np.arange(len(cells)), settings.train_size, seed)
    what = new[0][0] if strategy == "per_batch" else "all"
    purpose = f"surgery {strategy} {what}"
    objective = Unsupervised(reference.model, cells, split, settings.batch_size, seed, purpose)
    train = as_train_settings(settings)
    about = reference.about | inputs(query, settings, strategy, seed)
    outcome = fit(
        objective, train, f"surgery {what}",
        dropout=settings.surgery_dropout, batch_statistics=False,
        checkpoints=checkpoints, identity=about,
    )  # fmt: skip
    if reference_hash(reference.model) != before:
        raise AtlasmapError(
            "REFERENCE_MOVED",
            expected="every reference weight as it was before surgery",
            found="another hash",
            mend="this is a bug in atlasmap: please report it with settings.json",
        )
    n_trainable = sum(p.numel() for p in objective.parameters())
    about["training"] = outcome_facts(outcome, split) | {"n_trainable": n_trainable}
    bundle = Bundle(reference.model, registry, about, outcome.history.table())
    keep = ["batch", "dataset", *registry.categorical, *registry.continuous]
    said = embed(bundle.model, cells)
    latent = query_latent(query, said, registry.labels, keep)
    latent.obs["misfit"] = misfit(bundle.model, cells, said.mean)
    return Mapping(bundle, new, latent)


def map_held_out(
    twin: Bundle, cells: anndata.AnnData, reference: anndata.AnnData, settings: SurgerySettings,
    seed: int, checkpoints: Checkpoints | None = None,
) -> anndata.AnnData:  # fmt: skip
    """A reference batch that `twin` (consumed) was not trained on, mapped as a query is.

    Its latent, with obs label, misfit, and misfit_if_missing: if the twin lacked the cell's label.
    `reference` is the twin's own latent.
    """
    mapping = map_query(twin, cells, settings, "per_batch", seed, checkpoints)
    latent, labels = mapping.latent, cells.obs["label"].astype(str).to_numpy()
    latent.obs["label"] = labels
    latent.obs["misfit_if_missing"] = misfit_if_missing(
        mapping.bundle.model,
        mapping.bundle.registry.encode(cells, device_of(mapping.bundle.model)),
        latent.obsm["X_latent"],
        labels,
        latent_of(reference),
        reference.obs["label"].astype(str).to_numpy(),
    )
    return latent


def joined(queries: list[anndata.AnnData]) -> anndata.AnnData:
    """Prepared query batches as one; cells keep their names, which batches may share."""
    return queries[0] if len(queries) == 1 else anndata.concat(queries, join="outer", merge="same")
