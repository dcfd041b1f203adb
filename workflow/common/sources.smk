# Where a user's own files are, or will be once they are fetched.

import os
from pathlib import Path
from types import SimpleNamespace


def named_input(path, key):
    """A file or folder that somebody named, which no `prefix:` of a module moves."""
    check_input(path, key)
    return str(path) if placed("x") == "x" else os.path.abspath(path)


def taken_file(path, name):
    """A file of a trained reference: where it is, or will be once it is fetched."""
    if "://" in path:
        return f"{TOP}/data/sources/{name}"
    return named_input(found_beside(path), "`reference`")


def taken_folder():
    """Where a trained reference is, as its command is told."""
    if CONFIG.reference.bundle:
        return taken_file(CONFIG.reference.bundle, "")
    return taken_file(CONFIG.reference.scvi_tools, "reference_model.pt")


def taken_source():
    """The files that a trained reference consists of."""
    path = Path(taken_folder())
    if CONFIG.reference.bundle:
        learned = [file for file in LEARNED if (path / file).is_file()]
        files = [*BUNDLE, "reference_latent.h5ad", *learned, *OF_REFERENCE]
        return [str(path / file) for file in files]
    return str(model_file(path))


def taken_adata():
    """Cells of a reference that scvi-tools saved; a bundle has its latent."""
    if CONFIG.reference.bundle:
        return []
    if CONFIG.reference.adata:
        return taken_file(CONFIG.reference.adata, "reference_cells.h5ad")
    model = model_file(Path(taken_folder()))
    beside = model.with_name(model.name.removesuffix("model.pt") + "adata.h5ad")
    return str(beside) if beside.is_file() else []


def source_path(dataset, column="path"):
    """Where a file that the sheet names is, or will be once it is fetched."""
    named = getattr(dataset, column)
    for name, first in SOURCES.items():
        if first.path == named:
            return f"{TOP}/data/sources/{name}"
    key = f"`{column}` of {dataset.id} in {SHEET}"
    return named_input(DATA_DIR / from_home(named), key)


def sources():
    """Data sets that are fetched or made: file name → the row that names the source first."""
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
    # so are the files of a reference at a URL
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
    """Tables that counts of data sets are divided by."""
    return [source_path(d, "gene_lengths") for d in datasets if d.gene_lengths]


def label_tree():
    """The sheet of labels and their parents, if there is one."""
    if CONFIG.label_tree in (None, "none"):
        return []
    return named_input(found_beside(CONFIG.label_tree), "`label_tree`")


def prepared_reference():
    """What a query is aligned to: the prepared reference, or the registry of a trained one."""
    return f"{FIRST_REFERENCE}/registry.json" if TAKEN else f"{TOP}/data/reference.h5ad"


SOURCES = sources()
# Of a bundle: what its owner let out of the house.
GIVEN = Path(taken_folder()) if CONFIG.reference.bundle else None
# Whether labels are weighed by what the reference learned of itself; a bundle brings that along.
LEARNS = CONFIG.calibration.scheme != "none" and not TAKEN
CALIBRATED = LABELLED and ((GIVEN / LEARNED[0]).is_file() if GIVEN else LEARNS)
# What totalVI says of the reference's own proteins.
OF_REFERENCE = DENOISED
if TAKEN and not (GIVEN and (GIVEN / "denoised.h5ad").is_file()):
    OF_REFERENCE = []
