# What a reference learns of its own labels, and who reads it.

import json
import os
from pathlib import Path

OF_FOLD = ("latent", "mapped")
# Keys of the config that decide what is learned of the held-out batches.
OF_CALIBRATION = ("folds", "n_draws", "risk", "coverage", "false_novel")
OF_CALIBRATION += ("min_cells", "min_cells_per_label")
HELD_OUT_NUMERICS = ["hold_out", "surgery"]
HELD_OUT_NUMERICS += ["totalvi"] if CITESEQ else ["scvi", "scanvi"]


def found_in_data(w):
    """What was checked and found in the data."""
    path = checkpoints.write_contract.get(atlas=w.atlas).output[0]
    return json.loads(Path(path).read_text())


def n_folds(n_batches, n_cells):
    """How often a reference is trained with some of its batches held out (of one batch: parts)."""
    if n_batches == 1:
        return 3
    return min(n_batches, CONFIG.calibration.folds or (4 if n_cells < 20_000 else 2))


def held_out_files(folder):
    """What is known of a fold's models: their own latents, and the held-out cells as mapped."""
    files = ("reference_latent.h5ad", "mapped.h5ad")
    return [
        f"results/{{atlas}}/{folder}/{model}/{file}"
        for model in MAPPED_ONTO
        for file in files
    ]


def held_out_models():
    """The classifiers that are trained in each fold, as flags."""
    blocks = {variant: variant_block(config, variant) for variant in MODELS}
    given = [dict(variant=variant, scanvi=block) for variant, block in blocks.items()]
    return "" if CITESEQ else repeated("models", map(json.dumps, given))


def held_out_runs(w):
    """Every fold, as calibrate is told; none where no batch is held out."""
    if CONFIG.calibration.scheme != "batches":
        return []
    found = found_in_data(w)["reference"]
    top = f"results/{w.atlas}/seed{w.seed}/held_out"
    return [
        dict(
            fold=fold,
            latent=f"{top}/{fold}/{w.folder}/reference_latent.h5ad",
            mapped=f"{top}/{fold}/{w.folder}/mapped.h5ad",
        )
        for fold in range(n_folds(len(found["batches"]), found["n_cells"]))
    ]


def reference_latent(w):
    """The reference's latent that a strategy's labels come from."""
    if w.strategy == "de_novo":
        return (
            f"{mapping_folder(w.seed, w.variant, 'de_novo')}/all/reference_latent.h5ad"
        )
    return reference_of(w, "reference_latent.h5ad")[-1]


def calibration_of(w):
    """What the reference that is mapped onto learned of itself, if it did."""
    if not CALIBRATED or w.variant == "scvi":
        return []
    top = f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}"
    return [f"{top}/{file}" for file in LEARNED]


def map_of_reference(w):
    """The map that a strategy's atlas is drawn on."""
    return reference_of(w, "umap.npz")[-1]


def denoised_reference(w):
    """Beside the latents, where their command finds it."""
    top = f"{TOP}/seed{w.seed}/reference/totalvi"
    return [f"{top}/{file}" for file in OF_REFERENCE]


def beside_reference(w):
    """What was learned of a reference and is sealed with its bundle."""
    top = f"results/{w.atlas}/seed{w.seed}/reference/{w.folder}"
    made = LEARNED if w.folder in MAPPED_ONTO and CALIBRATED else []
    made = [*made, *(OF_REFERENCE if w.folder == "totalvi" else [])]
    return [f"{top}/{file}" for file in made]
