# Calibration of the reference's labels: held-out batches, its files, and the jobs that read them.

import json
from pathlib import Path

OF_FOLD = ("latent", "mapped")
# Config keys on which the calibration depends.
OF_CALIBRATION = ("folds", "n_draws", "risk", "coverage", "false_novel")
OF_CALIBRATION += ("min_cells", "min_cells_per_label")
HELD_OUT_NUMERICS = ["hold_out", "surgery"]
HELD_OUT_NUMERICS += ["totalvi"] if CITESEQ else ["scvi", "scanvi"]


def found_in_data(w):
    """Returns the content of contract.json; known once the checkpoint has run."""
    path = checkpoints.write_contract.get(atlas=w.atlas).output[0]
    return json.loads(Path(path).read_text())


def n_folds(n_batches, n_cells):
    """Returns the number of folds: models trained without some batches (without some cells, if the
    reference has a single batch)."""
    if n_batches == 1:
        return 3
    return min(n_batches, CONFIG.calibration.folds or (4 if n_cells < 20_000 else 2))


def held_out_files(folder):
    """Returns the files of a fold's models: latent of training cells, mapped held-out cells."""
    files = ("reference_latent.h5ad", "mapped.h5ad")
    return [
        f"results/{{atlas}}/{folder}/{model}/{file}"
        for model in MAPPED_ONTO
        for file in files
    ]


def held_out_models():
    """Returns the classifiers that are trained in each fold, as flags."""
    blocks = {variant: variant_block(config, variant) for variant in MODELS}
    given = [dict(variant=variant, scanvi=block) for variant, block in blocks.items()]
    return "" if CITESEQ else repeated("models", map(json.dumps, given))


def held_out_runs(w):
    """Returns all folds, as passed to calibrate; empty if no batches are held out."""
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
    """Returns the latent of the reference that a strategy's labels are transferred from."""
    if w.strategy == "de_novo":
        return (
            f"{mapping_folder(w.seed, w.variant, 'de_novo')}/all/reference_latent.h5ad"
        )
    return reference_of(w, "reference_latent.h5ad")[-1]


def calibration_of(w):
    """Returns the calibration files of the reference that is mapped onto; empty if it has none."""
    if not CALIBRATED or w.variant == "scvi":
        return []
    top = f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}"
    return [f"{top}/{file}" for file in LEARNED]


def map_of_reference(w):
    """Returns the reference's UMAP, on which atlases are drawn."""
    return reference_of(w, "umap.npz")[-1]


def denoised_reference(w):
    """Returns the reference's denoised proteins, if it has them."""
    top = f"{TOP}/seed{w.seed}/reference/totalvi"
    return [f"{top}/{file}" for file in OF_REFERENCE]


def beside_reference(w):
    """Returns the calibration and denoised proteins that are sealed with a reference's bundle."""
    top = f"results/{w.atlas}/seed{w.seed}/reference/{w.folder}"
    made = LEARNED if w.folder in MAPPED_ONTO and CALIBRATED else []
    made = [*made, *(OF_REFERENCE if w.folder == "totalvi" else [])]
    return [f"{top}/{file}" for file in made]
