"""Where scvi-tools puts the files of a save. Light: the Snakefile asks, too."""

from pathlib import Path


def model_file(folder: Path, prefix: str = "") -> Path:
    """The file with the model; `folder` may be that file itself, also before it is fetched."""
    itself = folder.is_file() or (folder.suffix == ".pt" and not folder.is_dir())
    return folder if itself else folder / f"{prefix}model.pt"


def cells_file(model: Path) -> Path | None:
    """The cells that were saved beside a model file, if they were."""
    beside = model.with_name(model.name.removesuffix("model.pt") + "adata.h5ad")
    return beside if beside.is_file() else None
