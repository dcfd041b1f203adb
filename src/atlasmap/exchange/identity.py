"""Check the class and scvi-tools version of a save, before the rest of it is parsed."""

import re
from pathlib import Path
from typing import Any

from atlasmap.errors import AtlasmapError, listed

CLASSES = ("SCVI", "SCANVI", "TOTALVI")
OLDEST, TOO_NEW = (0, 20), (2, 0)


def refuse(path: Path, code: str, *, expected: str, found: str, mend: str) -> AtlasmapError:
    """Returns an error about the save at `path`."""
    return AtlasmapError(code, expected=expected, found=f"{path}: {found}", mend=mend)


def numbers(version: str) -> tuple[int, ...]:
    """Returns (major, minor[, patch]) of a version; (-1,) if it cannot be parsed."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", version)
    return tuple(int(part) for part in found.groups() if part) if found else (-1,)


def registry_in(content: Any) -> dict[str, Any]:
    """Returns the registry of a save (the first one for GIMVI, which has several), or {}."""
    attributes = content.get("attr_dict") if isinstance(content, dict) else None
    if not isinstance(attributes, dict):
        return {}
    several = attributes.get("registries_")
    found = [attributes.get("registry_"), *(several if isinstance(several, list) else [])]
    return next((registry for registry in found if isinstance(registry, dict)), {})


def check_identity(content: Any, path: Path) -> None:
    """Raise SAVE_CLASS or SAVE_VERSION for a scvi-tools save that cannot be imported.

    Content without class and version is not from scvi-tools; it passes this check.
    """
    registry = registry_in(content)
    name, version = registry.get("model_name"), registry.get("scvi_version")
    if not isinstance(name, str) or not isinstance(version, str):
        return
    found = f"{name[:100]} of scvi-tools {version[:100]}"
    if name not in CLASSES:
        raise refuse(
            path, "SAVE_CLASS", expected=f"a model of class {listed(CLASSES)}, of an AnnData",
            found=found, mend="import one of these",
        )  # fmt: skip
    method = registry.get("setup_method_name")
    if isinstance(content.get("var_names"), dict) or (
        isinstance(method, str) and method == "setup_mudata"
    ):
        raise refuse(
            path, "SAVE_CLASS", expected=f"{name} of an AnnData", found=f"{found}, of a MuData",
            mend="train it on an AnnData with the protein counts in obsm (setup_anndata)",
        )  # fmt: skip
    if not OLDEST <= numbers(version) < TOO_NEW:
        raise refuse(
            path, "SAVE_VERSION", expected="a save of scvi-tools 0.20 to 1.x", found=found,
            mend="load one of before 0.20 with scvi-tools 1.2 and save it again; of later ones "
            "give a save of 1.x",
        )  # fmt: skip
