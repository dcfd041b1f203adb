"""From a bundle to what scvi-tools 1.4.2 loads: model.pt, and a minified adata.h5ad beside it."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from atlasmap.bundle import Bundle, architecture
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.exchange.weights import unused, weights_out
from atlasmap.files import folder_aside
from atlasmap.mapping.latent import LIBRARY, MEAN, TYPE_KEY, VARIANCE
from atlasmap.models.scanvi import Scanvi

VERSION = "1.4.2"
TABLE = "protein_expression"  # obsm of prepared cells as scvi-tools takes them


def strings(values: list[str]) -> np.ndarray:
    """Text as scvi-tools keeps it."""
    return np.array(values, dtype=object)


def field(attribute: str, key: str, state: dict, stats: dict) -> dict:
    """A field's registry: where its data are, its state, its counts."""
    data = {"attr_name": attribute, "attr_key": key} if attribute else {}
    return {"data_registry": data, "state_registry": state, "summary_stats": stats}


def setup_args(bundle: Bundle) -> dict[str, Any]:
    """Arguments of setup_anndata: an imported model's own, else the columns of prepared files."""
    own = bundle.about.get("origin", {}).get("setup")
    registry, scanvi = bundle.registry, isinstance(bundle.model, Scanvi)
    if own:  # scVI makes no use of labels
        return own if scanvi or registry.proteins else own | {"labels_key": None}
    args = {
        "layer": None,
        "batch_key": "batch",
        "size_factor_key": None,
        "categorical_covariate_keys": list(registry.categorical) or None,
        "continuous_covariate_keys": list(registry.continuous) or None,
    }
    if registry.proteins:
        of_proteins = {"protein_expression_obsm_key": TABLE, "protein_names_uns_key": None}
        return args | of_proteins | {"panel_key": None}
    args["labels_key"] = "label" if scanvi else None
    return args | ({"unlabeled_category": registry.unlabeled_category} if scanvi else {})


def labels_field(registry: Registry, key: str | None, scanvi: bool) -> dict:
    """The labels' registry; without labels there is one category, 0."""
    known = strings([*registry.labels, registry.unlabeled_category]) if scanvi else np.array([0])
    state = {"categorical_mapping": known, "original_key": key or "_scvi_labels"}
    if scanvi:
        state["unlabeled_category"] = registry.unlabeled_category
    return field("obs", "_scvi_labels", state, {"n_labels": len(known)})


def covariate_fields(registry: Registry) -> dict[str, dict]:
    """Registries of further covariates, empty where there are none."""
    categorical, continuous = registry.categorical, registry.continuous
    joint = {
        "mappings": {key: strings(known) for key, known in categorical.items()},
        "field_keys": list(categorical),
        "n_cats_per_key": [len(known) for known in categorical.values()],
    }
    names = ("extra_categorical_covs", "extra_continuous_covs")
    return {
        names[0]: field(
            "obsm" if categorical else "", f"_scvi_{names[0]}", joint if categorical else {},
            {f"n_{names[0]}": len(categorical)},
        ),
        names[1]: field(
            "obsm" if continuous else "", f"_scvi_{names[1]}",
            {"columns": strings(continuous)} if continuous else {},
            {f"n_{names[1]}": len(continuous)},
        ),
    }  # fmt: skip


def protein_field(registry: Registry, key: str) -> dict:
    """The proteins' registry, with the mask of what batches lack, where one does."""
    state = {"column_names": list(registry.proteins)}
    measured = registry.measured()
    if not measured.all():
        state["protein_batch_mask"] = {str(k): mask for k, mask in enumerate(measured)}
    return field("obsm", key, state, {"n_proteins": len(registry.proteins)})


def kind_of(bundle: Bundle) -> str:
    """scvi, scanvi or totalvi: scvi-tools' class in small letters."""
    if isinstance(bundle.model, Scanvi):
        return "scanvi"
    return "totalvi" if bundle.registry.proteins else "scvi"


def registry_for(bundle: Bundle, n_cells: int, minified: bool) -> dict[str, Any]:
    """scvi-tools' registry of the data that the model was trained on."""
    registry, args = bundle.registry, setup_args(bundle)
    scanvi, layer = isinstance(bundle.model, Scanvi), args.get("layer")
    if scanvi:
        args = args | {"use_minified": minified}
    n_genes = len(registry.genes)
    shape = {"n_obs": n_cells, "n_vars": n_genes, "column_names": strings(registry.genes)}
    batches = strings(registry.batches)
    key = args.get("batch_key") or "_scvi_batch"
    fields = {
        "X": field(
            "layers" if layer else "X", layer, shape, {"n_vars": n_genes, "n_cells": n_cells}
        ),
        "batch": field(
            "obs", "_scvi_batch", {"categorical_mapping": batches, "original_key": key},
            {"n_batch": len(batches)},
        ),
        "labels": labels_field(registry, args.get("labels_key"), scanvi),
        "size_factor": field("", "", {}, {}),
        **covariate_fields(registry),
    }  # fmt: skip
    if registry.proteins:
        fields["proteins"] = protein_field(registry, args["protein_expression_obsm_key"])
    if minified:
        kind = kind_of(bundle)
        n_latent = architecture(bundle.about)["n_latent"]
        columns = {"column_names": np.arange(n_latent)}
        fields |= {
            "latent_qzm": field("obsm", kind + MEAN, columns, {"n_latent_qzm": n_latent}),
            "latent_qzv": field("obsm", kind + VARIANCE, columns, {"n_latent_qzv": n_latent}),
            "observed_lib_size": field("obs", LIBRARY, {}, {}),
            "minify_type": field("uns", TYPE_KEY, {}, {}),
        }
    return {
        "scvi_version": VERSION,
        "model_name": kind_of(bundle).upper(),
        "setup_args": args,
        "setup_method_name": "setup_anndata",
        "field_registries": fields,
    }


def init_params(bundle: Bundle) -> dict[str, dict]:
    """Arguments of the model's class; where the classifier is not the default one, its own too."""
    if kind_of(bundle) == "totalvi":
        return totalvi_params(bundle)
    settings = dict(bundle.about["scvi"])
    settings.pop("train", None)
    inner = {
        key: settings.pop(key)
        for key in (
            "encode_covariates",
            "deeply_inject_covariates",
            "use_batch_norm",
            "use_layer_norm",
        )
    }
    if not isinstance(bundle.model, Scanvi):
        inner["use_observed_lib_size"] = settings.pop("use_observed_lib_size")
        settings["latent_distribution"] = "normal"
        return {"non_kwargs": settings, "kwargs": {"kwargs": inner}}
    settings["linear_classifier"] = bundle.model.variant == "linear"
    if bundle.model.variant == "prefix":
        inner["classifier_parameters"] = {"logits": False}
    return {"non_kwargs": settings, "kwargs": {"model_kwargs": inner}}


def totalvi_params(bundle: Bundle) -> dict[str, dict]:
    """The same of TOTALVI; what is left out of the mask is told by the registry."""
    settings = {
        key: value
        for key, value in bundle.about["totalvi"].items()
        if key not in ("train", "classifier", "adversarial", "input_scaling")
    }
    named = ("n_latent", "gene_dispersion", "protein_dispersion", "gene_likelihood")
    named += ("latent_distribution", "empirical_protein_background_prior")
    outer = {key: settings.pop(key) for key in named} | {"override_missing_proteins": False}
    if settings.pop("background_activation") == "exp":
        settings["extra_decoder_kwargs"] = {"activation_function_bg": "exp"}
    return {"non_kwargs": outer, "kwargs": {"model_kwargs": settings}}


def history_of(bundle: Bundle) -> dict[str, pd.DataFrame]:
    """Training history under scvi-tools' names."""
    out = {}
    for (split, metric), rows in bundle.history.groupby(["split", "metric"]):
        name = f"{metric}_{split}"
        out[name] = rows.set_index("epoch")[["value"]].rename(columns={"value": name})
    return out


def save_for_scvi_tools(bundle: Bundle, latent: anndata.AnnData | None) -> dict[str, Any]:
    """The content of model.pt; `latent` is the minified reference that goes beside it, if any."""
    n_cells = latent.n_obs if latent is not None else bundle.about.get("data", {}).get("n_cells", 0)
    used = weights_out(bundle.model)
    attributes = {
        "registry_": registry_for(bundle, n_cells, latent is not None),
        "init_params_": init_params(bundle),
        "is_trained_": True,
        "history_": history_of(bundle),
        "train_indices_": None,
        "validation_indices_": None,
        "test_indices_": None,
    }
    if latent is not None and "split" in latent.obs:
        for part in ("train", "validation"):
            attributes[f"{part}_indices_"] = np.flatnonzero(latent.obs["split"] == part)
    if isinstance(bundle.model, Scanvi):
        attributes["unlabeled_category_"] = bundle.registry.unlabeled_category
    return {
        "model_state_dict": {**unused(bundle.model), **used},
        "var_names": np.array(bundle.registry.genes),
        "attr_dict": attributes,
    }


def minified_beside(bundle: Bundle, latent: anndata.AnnData) -> anndata.AnnData:
    """The minified reference with the columns and layers that the model's setup names."""
    out, args = latent.copy(), setup_args(bundle)
    for key, ours in ((args.get("batch_key"), "batch"), (args.get("labels_key"), "label")):
        if key:
            out.obs[key] = out.obs[ours]
    if args.get("layer"):
        out.layers[args["layer"]] = sparse.csr_matrix(out.shape, dtype=np.float32)
    for key in [key for key in out.obsm if not key.endswith((MEAN, VARIANCE))]:
        del out.obsm[key]
    return out


def check_input(bundle: Bundle) -> None:
    """Raise EXPORT_UNSUPPORTED for a TOTALVI whose latent scvi-tools 1.4.2 would get wrong."""
    if bundle.about["totalvi"].get("input_scaling", "mean") != "mean":
        raise AtlasmapError(
            "EXPORT_UNSUPPORTED",
            expected=f"a TOTALVI whose encoder sees what scvi-tools {VERSION} gives it",
            found="input_scaling: none, as in scvi-tools before 1.3.1",
            mend="map with the bundle, or with scvi-tools before 1.3.1 and the model's own save",
        )


def write_save(bundle: Bundle, folder: Path, latent: anndata.AnnData | None) -> None:
    """Write `folder`/model.pt, and adata.h5ad where there is a latent, whole or not at all.

    Of TOTALVI there is none: scvi-tools 1.4.2 does not read minified data of it (not even its own:
    it encodes the empty counts). Raises EXPORT_UNSUPPORTED.
    """
    if bundle.registry.proteins:
        check_input(bundle)
        latent = None
    with folder_aside(folder, last="model.pt") as scratch:
        if latent is not None:
            minified_beside(bundle, latent).write_h5ad(scratch / "adata.h5ad")
        torch.save(save_for_scvi_tools(bundle, latent), scratch / "model.pt")
