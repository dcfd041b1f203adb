"""What a bundle says of itself, for its card."""

from typing import Any

import anndata

import atlasmap
from atlasmap.bundle import Bundle, architecture
from atlasmap.errors import listed
from atlasmap.labels.calibrated import Calibration
from atlasmap.settings import CardSettings


def facts_of(
    bundle: Bundle, latent: anndata.AnnData, settings: CardSettings, learned: Calibration | None
) -> dict[str, Any]:
    """What a bundle, its reference in latent space and what it learned of its labels say."""
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
    """What was learned of the labels, in words and numbers."""
    cuts = learned.cut_offs
    return {
        "learned from": f"{learned.n_cells} cells of {learned.scheme}"
        + (f": {listed(learned.batches, 10)}" if learned.batches else ""),
        "probabilities": f"mean of {learned.n_draws} draws from each cell's posterior, "
        f"{learned.scaling.method} (temperature {learned.scaling.temperature:.2f})",
        "prediction sets hold the label of": f"{learned.thresholds.coverage:.0%} of cells",
        "labels with a threshold of their own": f"{sum(learned.thresholds.own)} "
        f"of {len(learned.labels)}",
        "novel is what is": " or ".join(
            said
            for said, cut in (
                ("far from every reference cell", cuts.distance),
                ("poorly explained by the decoder", cuts.misfit),
            )
            if cut is not None
        )
        or "not told: nothing separated left-out labels from others",
    }


def training_of(about: dict) -> dict[str, Any]:
    """Settings and outcome of the training, where atlasmap trained it."""
    if "origin" in about:
        return {"trained by": f"scvi-tools {about['origin']['version']}; its history is not kept"}
    kind = "scanvi" if "variant" in about else about["kind"]
    return about[kind]["train"] | {"seed": about["seed"]} | about.get("training", {})
