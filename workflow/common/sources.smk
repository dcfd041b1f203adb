# Paths of the user's own files, including those that are yet to be downloaded.

import os
from pathlib import Path
from types import SimpleNamespace


def named_input(path, key):
    """Returns a path given by the user; absolute in a module with `prefix:`, which would change it
    otherwise."""
    check_input(path, key)
    return str(path) if placed("x") == "x" else os.path.abspath(path)


def taken_file(path, name):
    """Returns the path of a trained reference's file, or where its download goes (`name`)."""
    if "://" in path:
        return f"{TOP}/data/sources/{name}"
    return named_input(found_beside(path), "`reference`")


def taken_folder():
    """Returns the path of the trained reference: a bundle's folder, or a scvi-tools save."""
    if CONFIG.reference.bundle:
        return taken_file(CONFIG.reference.bundle, "")
    return taken_file(CONFIG.reference.scvi_tools, "reference_model.pt")


def taken_source():
    """Returns the files of the trained reference, as inputs."""
    path = Path(taken_folder())
    if CONFIG.reference.bundle:
        learned = [file for file in LEARNED if (path / file).is_file()]
        files = [*BUNDLE, "reference_latent.h5ad", *learned, *OF_REFERENCE]
        return [str(path / file) for file in files]
    return str(model_file(path))


def taken_adata():
    """Returns the cells of a reference saved by scvi-tools; [] for a bundle, which contains its
    latent, and if there are none."""
    if CONFIG.reference.bundle:
        return []
    if CONFIG.reference.adata:
        return taken_file(CONFIG.reference.adata, "reference_cells.h5ad")
    beside = cells_file(model_file(Path(taken_folder())))
    return str(beside) if beside else []


def source_path(dataset, column="path"):
    """Returns the path of a file named in the sheet, or where its download goes."""
    named = getattr(dataset, column)
    for name, first in SOURCES.items():
        if first.path == named:
            return f"{TOP}/data/sources/{name}"
    key = f"`{column}` of {dataset.id} in {SHEET}"
    return named_input(DATA_DIR / from_home(named), key)


def sources():
    """Returns sources to download or simulate: file name → the first row that names the source."""
    found = {}
    for dataset in ROWS:
        if is_remote(dataset.path) and dataset.path not in {
            d.path for d in found.values()
        }:
            found[fetched_as(dataset)] = dataset
        if "://" in dataset.gene_lengths:
            found[f"{dataset.id}.gene_lengths.txt"] = SimpleNamespace(
                path=dataset.gene_lengths, sha256=""
            )
    # files of a reference at a URL are downloaded, too
    of_reference = {
        "reference_model.pt": CONFIG.reference.scvi_tools,
        "reference_cells.h5ad": CONFIG.reference.adata,
    }
    return found | {
        name: SimpleNamespace(path=path, sha256="")
        for name, path in of_reference.items()
        if "://" in (path or "")
    }


def gene_lengths(datasets):
    """Returns the tables of gene lengths by which counts of data sets are divided."""
    return [source_path(d, "gene_lengths") for d in datasets if d.gene_lengths]


def label_tree():
    """Returns the sheet of the label tree (labels and their parents); [] if there is none."""
    if CONFIG.label_tree in (None, "none"):
        return []
    return named_input(found_beside(CONFIG.label_tree), "`label_tree`")


def prepared_reference():
    """Returns the file whose genes and categories queries are aligned to: the prepared reference,
    or the registry of a given one."""
    return f"{FIRST_REFERENCE}/registry.json" if TAKEN else f"{TOP}/data/reference.h5ad"


SOURCES = sources()
# The folder of a given bundle; which optional files it has depends on what its owner shared.
GIVEN = Path(taken_folder()) if CONFIG.reference.bundle else None
# LEARNS: the reference is calibrated here. CALIBRATED: a calibration exists, perhaps in the bundle.
LEARNS = CONFIG.calibration.scheme != "none" and not TAKEN
CALIBRATED = LABELLED and ((GIVEN / LEARNED[0]).is_file() if GIVEN else LEARNS)
# The reference's denoised proteins (totalVI).
OF_REFERENCE = DENOISED
if TAKEN and not (GIVEN and (GIVEN / "denoised.h5ad").is_file()):
    OF_REFERENCE = []
