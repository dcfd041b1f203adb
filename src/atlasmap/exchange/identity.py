"""Which class and version of scvi-tools a save is of: asked before the rest of it is understood."""

import re
from pathlib import Path
from typing import Any

from atlasmap.errors import AtlasmapError, listed

CLASSES = ("SCVI", "SCANVI", "TOTALVI")
OLDEST, TOO_NEW = (0, 20), (2, 0)


def refuse(path: Path, code: str, *, expected: str, found: str, mend: str) -> AtlasmapError:
    """An error about a save."""
    return AtlasmapError(code, expected=expected, found=f"{path}: {found}", mend=mend)


def numbers(version: str) -> tuple[int, ...]:
    """Major, minor and, if it is there, third number of a version; (-1,) if it is none."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", version)
    return tuple(int(part) for part in found.groups() if part) if found else (-1,)


def registry_in(content: Any) -> dict[str, Any]:
    """The registry of a save (GIMVI has a list of them); empty if it has none."""
    attributes = content.get("attr_dict") if isinstance(content, dict) else None
    if not isinstance(attributes, dict):
        return {}
    several = attributes.get("registries_")
    found = [attributes.get("registry_"), *(several if isinstance(several, list) else [])]
    return next((registry for registry in found if isinstance(registry, dict)), {})


def check_identity(content: Any, path: Path) -> None:
    """Raise SAVE_CLASS or SAVE_VERSION for a save of scvi-tools that is not ours to read.

    What does not say its class and version is none of its saves: nothing is raised.
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
