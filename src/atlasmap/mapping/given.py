"""Existing reference bundles that a run uses instead of training: checks and facts."""

from pathlib import Path

import anndata
import numpy as np
import torch

from atlasmap.bundle import CALIBRATION, Bundle, architecture, load, read_about, read_registry
from atlasmap.data.proteins import panel_facts
from atlasmap.data.readers import read_any
from atlasmap.data.registry import UNLABELED
from atlasmap.errors import AtlasmapError, listed
from atlasmap.mapping.embed import soft_labels_at
from atlasmap.mapping.latent import latent_of, variance_of
from atlasmap.models.surgery import encoder_sees

SEEN = 200  # cells of the latent that are checked against the model
LEFT_OUT = {
    "scib-metrics": "they compare with the counts of the reference, which is not trained here",
    "loss curves": "the reference is trained already",
    "confusion on validation cells": "imported references may not say which those are",
    "posterior predictive checks": "they draw counts beside those of the reference",
}


def check_taken(
    folder: Path, variant: str | None, unlabeled: str, categorical: list[str],
    continuous: list[str], levels: list[str], *, frozen: bool = False,
) -> None:  # fmt: skip
    """Load and verify a bundle, and compare it with the config.

    `levels`: the config's label_levels; `frozen`: no strategy trains, so the encoder need not see
    the batch. Raises BUNDLE_* errors, SURGERY_NOOP, and REFERENCE_DIFFERS, which lists every key to
    correct.
    """
    bundle = load(folder, torch.device("cpu"))
    latent = read_latent(folder)
    registry, about = bundle.registry, bundle.about
    check_latent(bundle, latent, folder)
    if not frozen and not encoder_sees(bundle.model, {0: ["a new batch"]}):
        raise AtlasmapError(
            "SURGERY_NOOP",
            expected="a reference whose encoder sees the batch (encode_covariates)",
            found=f"{folder}: one that does not, so surgery could not move a query's latent",
            mend="take a reference that was trained with encode_covariates: true, or set "
            "strategies: [frozen]",
        )
    wrong = [
        f"{key} is {has!r}, the config says {said!r}"
        for key, has, said in (
            ("the classifier (variants)", about.get("variant"), variant),
            ("unlabeled_category", registry.unlabeled_category, unlabeled),
            ("categorical_covariates", list(registry.categorical), categorical),
            ("continuous_covariates", registry.continuous, continuous),
        )
        if has != said and not (key == "unlabeled_category" and not registry.labels)
    ]
    if (
        registry.labels
        and not (latent.obs["label"].astype(str) != registry.unlabeled_category).any()
    ):
        wrong.append("no cell of it has a label, so there is nothing to transfer")
    lacking = [level for level in levels if level not in latent.obs]
    if lacking:
        wrong.append(f"label_levels {listed(lacking)} are not among its columns")
    if wrong:
        raise AtlasmapError(
            "REFERENCE_DIFFERS",
            expected="the reference that the config describes",
            found=f"{folder}: " + "; ".join(wrong),
            mend="correct these keys of the config",
        )


def read_latent(folder: Path) -> anndata.AnnData:
    """Read reference_latent.h5ad of a bundle.

    Raises BUNDLE_LATENT_MISSING; BUNDLE_LATENT_DIFFERS for the wrong dimension or values that are
    not finite.
    """
    path, about = folder / "reference_latent.h5ad", read_about(folder)
    if not path.is_file():
        raise AtlasmapError(
            "BUNDLE_LATENT_MISSING",
            expected=f"{path}, the reference in latent space",
            found="no such file",
            mend="copy it from the run that trained this bundle; of a scvi-tools reference give "
            "the cells too (reference.adata, or --adata)",
        )
    latent = read_any(path)
    n_latent = architecture(about)["n_latent"]
    posterior = (latent_of(latent), variance_of(latent))
    if any(part.shape[1] != n_latent or not np.isfinite(part).all() for part in posterior):
        raise AtlasmapError(
            "BUNDLE_LATENT_DIFFERS",
            expected=f"{n_latent} finite latent dimensions, as this model has",
            found=f"{posterior[0].shape[1]} in {path}, or some that are not finite",
            mend="copy the file again from where this bundle came",
        )
    latent.uns.setdefault(UNLABELED, read_registry(folder).unlabeled_category)
    return latent


def read_reference(path: Path) -> anndata.AnnData:
    """Read a prepared reference, its latent or an atlas.

    Latents of older versions do not store the unlabeled category; it is then taken from
    registry.json in the same folder.
    """
    cells, registry = anndata.read_h5ad(path), path.with_name("registry.json")
    if UNLABELED not in cells.uns and registry.is_file():
        cells.uns[UNLABELED] = read_registry(path.parent).unlabeled_category
    return cells


def check_latent(bundle: Bundle, latent: anndata.AnnData, folder: Path) -> None:
    """Raise BUNDLE_LATENT_DIFFERS if the latent is of another model.

    The classifier's probabilities at the latent must equal the stored soft labels; without a
    classifier nothing is checked.
    """
    said = soft_labels_at(bundle.model, latent_of(latent)[:SEEN])
    stored = latent.obsm.get("soft_labels")
    if said is None:
        return
    if stored is None or not np.allclose(said, stored[:SEEN], atol=1e-3):
        raise AtlasmapError(
            "BUNDLE_LATENT_DIFFERS",
            expected="reference_latent.h5ad of this very model",
            found=f"{folder}: its soft labels are not what this classifier says",
            mend="copy both from where they came",
        )


def left_out(folder: Path) -> dict[str, str]:
    """Map each output that an existing reference cannot give to the reason."""
    if (folder / CALIBRATION).is_file():
        return LEFT_OUT
    why = "its bundle has no calibration.json (atlasmap calibrate makes one)"
    return LEFT_OUT | {"calibrated labels and verdicts": why}


def facts_of(folder: Path) -> dict:
    """Facts about an existing reference, for contract.json."""
    about, registry, latent = read_about(folder), read_registry(folder), read_latent(folder)

    def counted(key: str) -> dict[str, int]:
        sizes = latent.obs[key].astype(str).value_counts().sort_index()
        return {name: int(n) for name, n in sizes.items()}

    labels, panel = counted("label"), (registry.proteins, registry.proteins_missing)
    return {
        "taken_over": about.get("origin") or {"tool": "atlasmap", "versions": about["versions"]},
        "classifier": about.get("variant"),
        "weights": about["files"]["weights.safetensors"],
        "n_cells": latent.n_obs,
        "n_validation": int((latent.obs["split"] == "validation").sum()),
        "n_genes": len(registry.genes),
        **({"panel": panel_facts(*panel)} if registry.proteins else {}),
        "has_symbols": registry.symbols is not None,
        "batches": counted("batch"),
        "labels": {k: n for k, n in labels.items() if k != registry.unlabeled_category},
        "n_unlabelled": labels.get(registry.unlabeled_category, 0),
        "left_out": left_out(folder),
    }
