"""Convert a scvi-tools save to a bundle: the same model and its reference in latent space."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import pandas as pd
import torch

from atlasmap.bundle import Bundle, device_of
from atlasmap.data.counts import as_csr, check_cells_not_empty, checked_counts
from atlasmap.data.genes import gene_symbols, places
from atlasmap.data.obs import column
from atlasmap.data.proteins import put, table_of
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.errors import AtlasmapError, listed
from atlasmap.exchange.identity import numbers, refuse
from atlasmap.exchange.saves import SCALED, Save, latent_bias, registry_of, settings_of, variant_of
from atlasmap.exchange.weights import Weights, differences, weights_in
from atlasmap.files import sha256
from atlasmap.mapping.embed import Embedding, embed, soft_labels_at
from atlasmap.mapping.encode import encode, shape_of
from atlasmap.mapping.latent import LIBRARY, MEAN, TYPE_KEY, VARIANCE, minified
from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.totalvi import Totalvi
from atlasmap.settings import NUMERICS, RESERVED
from atlasmap.training.history import History


def weights_of(save: Save) -> Weights:
    """Returns the save's weights.

    For TOTALVI before 1.3.1, which had no per-batch efficiencies, log-efficiencies of 0 are added;
    they have no effect.
    """
    if save.model != "TOTALVI" or numbers(save.version) >= SCALED:
        return save.weights
    zeros = torch.zeros(len(save.proteins), len(save.batches))
    return {"log_per_batch_efficiency": zeros} | save.weights


def library_of(save: Save) -> tuple[tuple[float, ...], ...] | None:
    """Returns (prior means, prior variances) of the log library size per batch.

    None if the library size is observed.
    """
    if "library_log_means" not in save.weights:
        return None
    moments = (save.weights["library_log_means"], save.weights["library_log_vars"])
    return tuple(tuple(values[0].tolist()) for values in moments)


def bundle_of(save: Save, path: Path, symbols: list[str] | None) -> Bundle:
    """Returns a bundle with the model of a SCVI, SCANVI or TOTALVI save and its weights.

    `symbols`: gene symbols in the model's order, if known. Raises SAVE_UNSUPPORTED, SAVE_WEIGHTS.
    """
    settings, registry = settings_of(save, path), registry_of(save, symbols)
    rng = keyed_generator(0, "import")
    library = library_of(save)
    shape = shape_of(registry, library)
    kind = "totalvi" if save.model == "TOTALVI" else "scvi"
    model = Totalvi(settings, shape, 0, rng) if kind == "totalvi" else Scvi(settings, shape, rng)
    about = {
        "kind": kind,
        "seed": 0,
        kind: asdict(settings),
        "numerics": NUMERICS[kind],
        "library": library,
        "origin": {
            "tool": "scvi-tools",
            "version": save.version,
            "class": save.model,
            "sha256": sha256(path),
            "setup": save.setup,
            "init": save.init,
        },
    }
    if save.model == "SCANVI":
        variant = variant_of(save)
        model = Scanvi(model, variant, len(registry.labels), rng)
        about |= {"kind": "scanvi", "variant": variant}
    weights = weights_of(save)
    prior = weights.get("y_prior")
    wrong = differences(model, weights)
    if prior is not None and not torch.allclose(prior, torch.full_like(prior, 1 / prior.numel())):
        wrong.append("y_prior is not uniform")
    if wrong:
        raise refuse(
            path, "SAVE_WEIGHTS", expected=f"the weights of {save.model} with these settings",
            found=listed(wrong),
            mend="save it again with the scvi-tools that trained it, or report this version",
        )  # fmt: skip
    weights_in(model, weights)
    return Bundle(model.eval(), registry, about, History().table())


def posterior_in(adata: anndata.AnnData, save: Save, kind: str) -> dict[str, np.ndarray] | None:
    """Returns posterior mean and variance (cells × latent) and library size (cells).

    None if `adata` is not minified. Keys are those named in the save, else those that versions of
    scvi-tools use for this class. Raises LATENT_MISSING, LATENT_WIDTH.
    """
    if TYPE_KEY not in adata.uns:
        return None
    found = {}
    for name, place, endings in (
        ("latent_qzm", adata.obsm, (kind + MEAN, f"_{kind}{MEAN}", f"X{MEAN}")),
        ("latent_qzv", adata.obsm, (kind + VARIANCE, f"_{kind}{VARIANCE}", f"X{VARIANCE}")),
        ("observed_lib_size", adata.obs, (LIBRARY, f"_{kind}_{LIBRARY}")),
    ):
        known = [save.posterior[name]] if name in save.posterior else endings
        key = next((key for key in known if key in place), None)
        if key is None:
            raise AtlasmapError(
                "LATENT_MISSING",
                expected=f"{listed(known)} of minified data",
                found=f"obsm: {listed(adata.obsm)}; obs: {listed(adata.obs.columns, 40)}",
                mend="give the minified data of this very model, or its cells with counts",
            )
        found[name] = np.asarray(place[key], np.float32)
    width = len(save.weights[latent_bias(save)])
    if found["latent_qzm"].shape[1] != width or not np.isfinite(found["latent_qzm"]).all():
        raise AtlasmapError(
            "LATENT_WIDTH",
            expected=f"{width} finite latent dimensions, as the model has",
            found=f"{found['latent_qzm'].shape[1]}, or some that are not finite",
            mend="give the minified data of this very model",
        )
    return found


AS_SAVED = "the model was saved with this one: give its cells with all their columns"


def texts(adata: anndata.AnnData, key: str, what: str, name: str) -> pd.Series:
    """Returns a column of obs as text, "" where it is missing. Raises OBS_KEY_MISSING."""
    values = column(adata, key, what, name, AS_SAVED)
    known = values.notna().to_numpy()
    spelt = np.array([str(value) for value in values.astype(object)], object)
    return pd.Series(np.where(known, spelt, ""), index=adata.obs_names)


def reference_obs(
    adata: anndata.AnnData, registry: Registry, save: Save, split: bool, name: str
) -> pd.DataFrame:
    """Returns obs with atlasmap's columns (batch, label, dataset, split) and the other own ones.

    `split`: whether the cells are in the save's order, so that its split applies; else all are
    training cells. Test cells count as validation. Raises OBS_KEY_MISSING, BATCH_UNKNOWN.
    """
    keep = [key for key in adata.obs if key not in RESERVED and not key.startswith("_scvi")]
    out = adata.obs[keep].copy()
    if len(registry.batches) == 1:
        out["batch"] = pd.Categorical([registry.batches[0]] * len(out))
    else:
        batch = texts(adata, save.keys["batch"], "the batch", name)
        lost = ~batch.isin(registry.batches)
        if lost.any():
            raise AtlasmapError(
                "BATCH_UNKNOWN",
                expected=f"batches that the model knows: {listed(registry.batches)}",
                found=f"{int(lost.sum())} cells of {name} with others: "
                f"{listed(batch[lost].unique())}",
                mend="give the cells that the model was trained on",
            )
        out["batch"] = pd.Categorical(batch)
    label = pd.Series(registry.unlabeled_category, index=out.index)
    if registry.labels:
        label = texts(adata, save.keys["label"], "the label", name)
        label = label.where(label.isin(registry.labels), registry.unlabeled_category)
    out["label"] = pd.Categorical(label)
    for key, known in registry.categorical.items():
        out[key] = pd.Categorical(texts(adata, key, "a covariate", name), known)
    for key in registry.continuous:
        out[key] = pd.to_numeric(column(adata, key, "a covariate", name, AS_SAVED))
    out["dataset"] = pd.Categorical(["reference"] * len(out))
    part = np.full(len(out), "train", dtype=object)
    if split and sum(map(len, save.split.values())) == len(out):
        for other in ("validation", "test"):
            part[save.split.get(other, np.array([], int))] = "validation"
    out["split"] = pd.Categorical(part)
    return out


@dataclass(frozen=True)
class Cells:
    """The reference's cells as the user gives them.

    `name` is used in messages. `layer`: "" for the layer named in the save. `own`: the cells are
    in the save's order, because the file was saved with the model.
    """

    adata: anndata.AnnData
    name: str
    layer: str = ""
    counts: Literal["integer", "corrected_float"] = "integer"
    own: bool = False


def latent_in(cells: Cells, bundle: Bundle, save: Save) -> anndata.AnnData:
    """Returns the reference in latent space.

    A minified file provides the posterior; otherwise the counts are encoded. Raises GENES_DIFFER,
    OBS_KEY_MISSING, BATCH_UNKNOWN, COUNTS_*, CATEGORY_UNKNOWN, LATENT_*.
    """
    adata, registry, kind = cells.adata, bundle.registry, bundle.about["kind"]
    found = posterior_in(adata, save, kind)
    obs = reference_obs(adata, registry, save, cells.own or found is not None, cells.name)
    if found:
        mean, var = found["latent_qzm"], found["latent_qzv"]
        said = Embedding(mean, var, soft_labels_at(bundle.model, mean))
        return minified(obs, said, found["observed_lib_size"], kind, registry)
    layer, loose = cells.layer or save.setup.get("layer") or "X", cells.counts != "integer"
    counts = checked_counts(adata, layer, cells.name, corrected_float=loose)
    at = places(adata.var_names, pd.Index(registry.genes))
    if (at < 0).any():
        lost = np.asarray(registry.genes)[at < 0]
        raise AtlasmapError(
            "GENES_DIFFER",
            expected=f"the model's {len(registry.genes)} genes in {cells.name}, each once",
            found=f"{len(lost)} are not: {listed(lost)}",
            mend="give the data that the model was trained on",
        )
    var = pd.DataFrame(index=pd.Index(registry.genes))
    prepared = anndata.AnnData(as_csr(counts[:, at]), obs=obs, var=var)
    check_cells_not_empty(prepared.X, prepared.obs_names, cells.name, " among the model's genes")
    if registry.proteins:
        put(prepared, proteins_in(adata, obs, registry, save, cells.name))
    said = embed(bundle.model, encode(registry, prepared, device_of(bundle.model)))
    return minified(obs, said, np.asarray(prepared.X.sum(1)).ravel(), kind, registry)


def proteins_in(
    adata: anndata.AnnData, obs: pd.DataFrame, registry: Registry, save: Save, name: str
) -> pd.DataFrame:
    """Returns counts of the model's proteins (cells × proteins), NaN where a batch lacks one.

    Raises PROTEINS_MISSING, PROTEIN_NAMES_MISSING, PROTEINS_DIFFER.
    """
    key = str(save.setup.get("protein_expression_obsm_key") or "")
    names = str(save.setup.get("protein_names_uns_key") or "")
    row = Dataset(id="reference", path=name, role="reference", proteins=key, protein_names=names)
    table = table_of(adata, row)
    lost = [protein for protein in registry.proteins if protein not in table]
    if lost:
        raise AtlasmapError(
            "PROTEINS_DIFFER",
            expected=f"the model's {len(registry.proteins)} proteins in {name}",
            found=f"{len(lost)} are not: {listed(lost)}",
            mend="give the data that the model was trained on",
        )
    table = table[registry.proteins].astype(np.float32)
    for batch, missing in registry.proteins_missing.items():
        table.loc[(obs["batch"] == batch).to_numpy(), missing] = np.nan
    return table


def symbols_in(adata: anndata.AnnData, genes: list[str]) -> list[str] | None:
    """Returns symbols of the model's genes, or None if `adata` has none beside the ids."""
    found = gene_symbols(adata)
    if found is None:
        return None
    at = places(adata.var_names, pd.Index(genes))
    return [str(found[k]) if k >= 0 else gene for k, gene in zip(at, genes, strict=True)]
