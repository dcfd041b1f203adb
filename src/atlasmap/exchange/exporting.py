"""Export a bundle for scvi-tools 1.4.2: model.pt and, beside it, a minified adata.h5ad."""

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
TABLE = "protein_expression"  # obsm key of protein counts in the exported setup arguments


def strings(values: list[str]) -> np.ndarray:
    """Returns texts as an object array, the form in which scvi-tools stores them."""
    return np.array(values, dtype=object)


def field(attribute: str, key: str, state: dict, stats: dict) -> dict:
    """Returns a field registry of scvi-tools: location of the data, state, summary statistics."""
    data = {"attr_name": attribute, "attr_key": key} if attribute else {}
    return {"data_registry": data, "state_registry": state, "summary_stats": stats}


def setup_args(bundle: Bundle) -> dict[str, Any]:
    """Returns the arguments of setup_anndata.

    Those that an imported model was saved with, else the columns of prepared files.
    """
    own = bundle.about.get("origin", {}).get("setup")
    registry, scanvi = bundle.registry, isinstance(bundle.model, Scanvi)
    if own:  # scVI does not use labels
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
    """Returns the field registry of the labels; scVI gets a single category, 0."""
    known = strings([*registry.labels, registry.unlabeled_category]) if scanvi else np.array([0])
    state = {"categorical_mapping": known, "original_key": key or "_scvi_labels"}
    if scanvi:
        state["unlabeled_category"] = registry.unlabeled_category
    return field("obs", "_scvi_labels", state, {"n_labels": len(known)})


def covariate_fields(registry: Registry) -> dict[str, dict]:
    """Returns the field registries of covariates other than the batch; empty if there are none."""
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
    """Returns the field registry of the proteins.

    If any batch lacks a protein, it holds a mask per batch of the proteins that were measured.
    """
    state = {"column_names": list(registry.proteins)}
    measured = registry.measured()
    if not measured.all():
        state["protein_batch_mask"] = {str(k): mask for k, mask in enumerate(measured)}
    return field("obsm", key, state, {"n_proteins": len(registry.proteins)})


def kind_of(bundle: Bundle) -> str:
    """Returns the name of the scvi-tools class in lower case: scvi, scanvi or totalvi."""
    if isinstance(bundle.model, Scanvi):
        return "scanvi"
    return "totalvi" if bundle.registry.proteins else "scvi"


def registry_for(bundle: Bundle, n_cells: int, minified: bool) -> dict[str, Any]:
    """Returns scvi-tools' registry of the training data; `minified` adds posterior fields."""
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
    """Returns constructor arguments of the scvi-tools class.

    They include arguments of the classifier if it is not the default one.
    """
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
    """Returns constructor arguments of TOTALVI.

    `override_missing_proteins` is False: the registry's mask says which proteins a batch lacks.
    """
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
    """Returns the training history as scvi-tools stores it: {metric}_{split} → table by epoch."""
    out = {}
    for (split, metric), rows in bundle.history.groupby(["split", "metric"]):
        name = f"{metric}_{split}"
        out[name] = rows.set_index("epoch")[["value"]].rename(columns={"value": name})
    return out


def save_for_scvi_tools(bundle: Bundle, latent: anndata.AnnData | None) -> dict[str, Any]:
    """Returns the content of model.pt; `latent`: the minified reference written beside it."""
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
    """Returns the minified reference with the columns and layer that the setup arguments name."""
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
    """Raise EXPORT_UNSUPPORTED for a TOTALVI without input scaling.

    scvi-tools 1.4.2 would scale the encoder's input and so compute another latent.
    """
    if bundle.about["totalvi"].get("input_scaling", "mean") != "mean":
        raise AtlasmapError(
            "EXPORT_UNSUPPORTED",
            expected=f"a TOTALVI whose encoder sees what scvi-tools {VERSION} gives it",
            found="input_scaling: none, as in scvi-tools before 1.3.1",
            mend="map with the bundle, or with scvi-tools before 1.3.1 and the model's own save",
        )


def write_save(bundle: Bundle, folder: Path, latent: anndata.AnnData | None) -> None:
    """Write `folder`/model.pt, and adata.h5ad if there is a latent, atomically.

    For TOTALVI no latent is written: scvi-tools 1.4.2 cannot use minified TOTALVI data, not even
    its own, because it encodes their empty counts. Raises EXPORT_UNSUPPORTED.
    """
    if bundle.registry.proteins:
        check_input(bundle)
        latent = None
    with folder_aside(folder, last="model.pt") as scratch:
        if latent is not None:
            minified_beside(bundle, latent).write_h5ad(scratch / "adata.h5ad")
        torch.save(save_for_scvi_tools(bundle, latent), scratch / "model.pt")
