"""Paths of the files in a scvi-tools save. (The workflow includes this file: it imports the
standard library alone.)"""

from pathlib import Path


def model_file(folder: Path, prefix: str = "") -> Path:
    """Returns the path of the model file; `folder` may be that file, even before its download."""
    itself = folder.is_file() or (folder.suffix == ".pt" and not folder.is_dir())
    return folder if itself else folder / f"{prefix}model.pt"


def cells_file(model: Path) -> Path | None:
    """Returns the path of the AnnData saved beside a model file, or None."""
    beside = model.with_name(model.name.removesuffix("model.pt") + "adata.h5ad")
    return beside if beside.is_file() else None
