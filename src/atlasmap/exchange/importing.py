"""From a save of scvi-tools to a bundle: the same model, and its reference in latent space."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from atlasmap.bundle import Bundle, device_of
from atlasmap.config import RESERVED
from atlasmap.data.counts import as_csr, checked_counts
from atlasmap.data.genes import gene_symbols, without_versions
from atlasmap.data.obs import as_text
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError, listed
from atlasmap.exchange.saves import Save, refuse, registry_of, settings_of, variant_of
from atlasmap.exchange.weights import differences, weights_in
from atlasmap.files import sha256
from atlasmap.inference import Embedding, embed
from atlasmap.minified import LIBRARY, MEAN, TYPE_KEY, VARIANCE, minified
from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi, Shape
from atlasmap.settings import NUMERICS, ScanviSettings
from atlasmap.training.history import History


def as_json(value: Any) -> Any:
    """Settings of a save in the types that JSON has."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def library_of(save: Save) -> tuple[tuple[float, ...], ...] | None:
    """Prior mean and variance of log library size a batch, where it is inferred."""
    if "library_log_means" not in save.weights:
        return None
    moments = (save.weights["library_log_means"], save.weights["library_log_vars"])
    return tuple(tuple(values[0].tolist()) for values in moments)


def bundle_of(save: Save, path: Path, symbols: list[str] | None) -> Bundle:
    """The model of a save of SCVI or SCANVI, its weights in ours.

    Raises SAVE_CLASS, SAVE_UNSUPPORTED, SAVE_WEIGHTS.
    """
    if save.model == "TOTALVI":
        raise refuse(
            path, "SAVE_CLASS", "a model of class SCVI or SCANVI", save.model,
            "totalVI is not there yet: map with scvi-tools",
        )  # fmt: skip
    settings, registry = settings_of(save, path), registry_of(save, symbols)
    rng = keyed_generator(0, "import")
    library = library_of(save)
    shape = Shape(len(registry.genes), registry.n_categories, len(registry.continuous), library)
    model: Scvi | Scanvi = Scvi(settings, shape, rng)
    about = {
        "kind": "scvi",
        "seed": 0,
        "scvi": asdict(settings),
        "numerics": NUMERICS["scvi"],
        "library": library,
        "origin": {
            "tool": "scvi-tools",
            "version": save.version,
            "class": save.model,
            "sha256": sha256(path),
            "setup": as_json(save.setup),
            "init": as_json(save.init),
        },
    }
    if save.model == "SCANVI":
        variant = variant_of(save)
        model = Scanvi(model, variant, len(registry.labels), rng)
        about |= {"kind": "scanvi", "variant": variant, "scanvi": asdict(ScanviSettings())}
    prior = save.weights.get("y_prior")
    wrong = differences(model, save.weights)
    if prior is not None and not torch.allclose(prior, torch.full_like(prior, 1 / prior.numel())):
        wrong.append("y_prior is not uniform")
    if wrong:
        raise refuse(
            path, "SAVE_WEIGHTS", f"the weights of {save.model} with these settings",
            listed(wrong), "save it again with scvi-tools 1.x, or report this version",
        )  # fmt: skip
    weights_in(model, save.weights)
    return Bundle(model.eval(), registry, about, History().table())


def posterior_in(adata: anndata.AnnData, save: Save) -> tuple[str, str] | None:
    """The obsm names of a minified reference's posterior, None if it holds counts."""
    if TYPE_KEY not in adata.uns:
        return None
    keys = []
    for field, ending in (("latent_qzm", MEAN), ("latent_qzv", VARIANCE)):
        told = save.fields.get(field, {}).get("data_registry", {}).get("attr_key")
        keys.append(told or next((key for key in adata.obsm if key.endswith(ending)), ""))
    return (keys[0], keys[1]) if all(key in adata.obsm for key in keys) else None


def in_gene_order(adata: anndata.AnnData, registry: Registry, name: str) -> np.ndarray:
    """Where the model's genes are in `adata`; raises GENES_DIFFER unless all are there."""
    at = without_versions(adata.var_names).get_indexer(without_versions(pd.Index(registry.genes)))
    if (at < 0).any():
        lost = np.asarray(registry.genes)[at < 0]
        raise AtlasmapError(
            "GENES_DIFFER",
            expected=f"the model's {len(registry.genes)} genes in {name}",
            found=f"{len(lost)} are missing: {listed(lost)}",
            mend="give the data that the model was trained on",
        )
    return at


def reference_obs(adata: anndata.AnnData, bundle: Bundle, save: Save) -> pd.DataFrame:
    """Metadata under our names (batch, label, dataset, split) beside the columns as they were."""
    obs = adata.obs.copy()
    keep = {key: obs[key] for key in obs if key not in RESERVED and not key.startswith("_scvi")}
    registry = bundle.registry
    out = pd.DataFrame(keep, index=obs.index)
    for name, field, none in (
        ("batch", "batch", registry.batches[0]),
        ("label", "labels", registry.unlabeled_category),
    ):
        key = save.state(field).get("original_key")
        values = as_text(obs[key]) if key in obs else pd.Series(none, index=obs.index)
        out[name] = pd.Categorical(values.replace("", none))
    out["dataset"] = pd.Categorical(["reference"] * len(out))
    part = np.full(len(out), "train", dtype=object)
    validation = save.split.get("validation", np.array([], int))
    if sum(map(len, save.split.values())) == len(out):
        part[validation] = "validation"
    out["split"] = pd.Categorical(part)
    return out


def latent_in(adata: anndata.AnnData, bundle: Bundle, save: Save, name: str) -> anndata.AnnData:
    """The reference in latent space, from the posterior in a minified file or from its counts.

    Raises GENES_DIFFER, OBS_KEY_MISSING, COUNTS_*, CATEGORY_UNKNOWN.
    """
    obs, kind = reference_obs(adata, bundle, save), bundle.about["kind"]
    found = posterior_in(adata, save)
    if found:
        mean, var = (np.asarray(adata.obsm[key], np.float32) for key in found)
        library = adata.obs.get(LIBRARY, pd.Series(np.nan, index=adata.obs_names)).to_numpy()
        said = Embedding(mean, var, soft_labels_at(bundle, mean))
        return minified(obs, said, library, kind, bundle.registry)
    layer = save.setup.get("layer") or "X"
    counts = checked_counts(adata, layer, name, corrected_float=True)
    at = in_gene_order(adata, bundle.registry, name)
    prepared = anndata.AnnData(
        as_csr(counts[:, at]), obs=obs, var=pd.DataFrame(index=pd.Index(bundle.registry.genes))
    )
    said = embed(bundle.model, bundle.registry.encode(prepared, device_of(bundle.model)))
    library = np.asarray(prepared.X.sum(1)).ravel()
    return minified(obs, said, library, kind, bundle.registry)


@torch.no_grad()
def soft_labels_at(bundle: Bundle, latent: np.ndarray) -> np.ndarray | None:
    """Label probabilities (cells × labels) at positions of the latent space."""
    if not isinstance(bundle.model, Scanvi):
        return None
    z = torch.as_tensor(latent, device=device_of(bundle.model))
    classifier = bundle.model.classifier
    return classifier.probabilities(classifier(z, None)).cpu().numpy()


def symbols_in(adata: anndata.AnnData, genes: list[str]) -> list[str] | None:
    """Symbols of the model's genes, where `adata` has them beside the ids."""
    found = gene_symbols(adata)
    if found is None:
        return None
    at = without_versions(adata.var_names).get_indexer(without_versions(pd.Index(genes)))
    return [str(found[k]) if k >= 0 else gene for k, gene in zip(at, genes, strict=True)]
