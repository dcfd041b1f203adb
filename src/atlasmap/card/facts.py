"""Facts about a bundle, for its card."""

from typing import Any

import anndata
import numpy as np

import atlasmap
from atlasmap.bundle import Bundle, architecture
from atlasmap.errors import listed
from atlasmap.labels.calibrated import Calibration
from atlasmap.settings import CardSettings


def facts_of(
    bundle: Bundle, latent: anndata.AnnData, settings: CardSettings, learned: Calibration | None
) -> dict[str, Any]:
    """Facts about a bundle, its reference (`latent`) and the calibration of its labels (`learned`,
    if any)."""
    about, registry = bundle.about, bundle.registry
    origin = about.get("origin", {})
    return {
        "model": "SCANVI" if "variant" in about else about["kind"].upper(),
        "classifier": about.get("variant"),
        "tool": origin.get("tool", "atlasmap"),
        "version": origin.get("version", about["versions"]["atlasmap"]),
        "description": settings.description,
        "license": settings.license,
        "tissue": list(settings.tissue),
        "modality": "citeseq" if registry.proteins else "rna",
        "annotated": bool((latent.obs["label"].astype(str) != registry.unlabeled_category).any()),
        "architecture": {
            key: value for key, value in architecture(about).items() if key != "train"
        },
        "setup": origin.get("setup")
        or {
            "batch_key": "batch",
            "labels_key": "label",
            "unlabeled_category": registry.unlabeled_category,
            "categorical_covariate_keys": list(registry.categorical),
            "continuous_covariate_keys": registry.continuous,
        },
        "training": training_of(about),
        "trust": trust_of(learned) if learned else None,
        "left_out": learned.left_out if learned else [],
        "summary": {
            "n_cells": latent.n_obs,
            "n_genes": len(registry.genes),
            "n_batches": len(registry.batches),
            "n_labels": len(registry.labels),
            "n_latent": architecture(about)["n_latent"],
            **({"n_proteins": len(registry.proteins)} if registry.proteins else {}),
            "n_extra_categorical_covariates": len(registry.categorical),
            "n_extra_continuous_covariates": len(registry.continuous),
        },
        "registry": {
            "genes": listed(registry.genes, 5),
            **({"proteins": listed(registry.proteins, 20)} if registry.proteins else {}),
            "gene symbols": "yes" if registry.symbols else "no",
            "batches": listed(registry.batches, 20),
            "labels": listed(registry.labels, 60),
            "unlabelled cells are called": registry.unlabeled_category,
        },
        "fingerprint": {
            "weights (SHA-256)": about["files"]["weights.safetensors"],
            "data (SHA-256)": about.get("data", {}).get("sha256") or "not known (imported)",
        },
        "versions": about["versions"] | {"atlasmap of this card": atlasmap.__version__},
    }


def trust_of(learned: Calibration) -> dict[str, Any]:
    """Summary of the calibration: description → value."""
    view = learned.views[0]
    depths = listed(f"{one.depth:.0f}" for one in learned.views)
    weights = " and ".join(f"{weight:.2f}" for weight in view.confidence.weights)
    told = "; ".join(
        f"{score} {np.mean(list(of_labels.values())):.3f}"
        for score, of_labels in learned.told_apart.items()
    )
    return {
        "learned from": f"{view.n_cells} cells, {learned.scheme}: {listed(learned.batches, 10)}",
        "for queries of a median depth of about": depths,
        "probabilities": f"classifier (mean of {learned.n_draws} draws from each cell's posterior) "
        f"and genes, pooled with weights {weights}",
        "confident cells that may be wrong": f"{learned.risk:.0%}",
        "other cells whose prediction set holds the label": f"{learned.coverage:.0%}",
        "novelty is told by": view.cut_offs.score,
        "labels that are left out, told apart (mean AUROC)": told or "too few cells to say",
        "cut-offs": f"by label, {learned.false_novel:.0%} of known cells of a held-out batch"
        if view.cut_offs.by_label
        else "one for all labels, as no whole batch could be held out: be careful",
    }


def training_of(about: dict) -> dict[str, Any]:
    """Settings and outcome of the training, or its origin if the model was imported."""
    if "origin" in about:
        return {"trained by": f"scvi-tools {about['origin']['version']}; its history is not kept"}
    kind = "scanvi" if "variant" in about else about["kind"]
    return about[kind]["train"] | {"seed": about["seed"]} | about.get("training", {})
