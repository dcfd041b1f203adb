"""seal.json: a fingerprint of all files of a reference that a mapping reads.

The bundle's files, the reference's latent, its calibration, the fitted map and denoised cells are
made by different steps. The seal binds them to each other and to the weights: a file that was
altered, replaced or left out is reported by name.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import torch

from atlasmap.bundle import CALIBRATION, FILES, Bundle, load, read_json, refuse
from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import sha256, written_aside
from atlasmap.labels.calibrated import PROFILES, read_calibration, read_profiles
from atlasmap.labels.umap import FittedMap
from atlasmap.mapping.denoise import FILE as DENOISED
from atlasmap.mapping.given import check_latent, read_latent
from atlasmap.mapping.latent import latent_of

log = logging.getLogger("atlasmap")
SEAL, FORMAT = "seal.json", 1
MODEL = ("settings.json", *FILES)
LATENT, MAP = "reference_latent.h5ad", "umap.npz"
BESIDE = (LATENT, CALIBRATION, PROFILES, MAP, DENOISED)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each existing file that a mapping reads."""
    return {name: sha256(folder / name) for name in (*MODEL, *BESIDE) if (folder / name).is_file()}


def fingerprint(files: dict[str, str]) -> str:
    """SHA-256 over all names and hashes of files."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def seal(folder: Path) -> str:
    """Check that the files of a reference belong together, write seal.json into its folder, and
    return the fingerprint.

    Raises BUNDLE_* and the errors of reading the files.
    """
    check_belonging(folder)
    files = hashes(folder)
    said = {"format": FORMAT, "fingerprint": fingerprint(files), "files": files}
    with written_aside(folder / SEAL) as aside:
        aside.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return said["fingerprint"]


def check_seal(folder: Path) -> str | None:
    """Check that a reference's files are as they were sealed, and return the fingerprint.

    Raises BUNDLE_ALTERED, BUNDLE_INCOMPLETE, which name the file. A folder without a seal (from an
    older version) gives None, and a warning that says how to make one.
    """
    if not (folder / SEAL).exists():
        log.warning(
            "%s is not sealed: nothing tells whether its latent, calibration and map are as they "
            "were made. If you trust them: atlasmap seal %s", folder, folder,
        )  # fmt: skip
        return None
    said = read_json(folder / SEAL, folder)
    known, found = said.get("files"), hashes(folder)
    if said.get("format") != FORMAT or not isinstance(known, dict):
        raise refuse("BUNDLE_ALTERED", folder, f"{SEAL} of format {FORMAT}", "another")
    if said.get("fingerprint") != fingerprint(known):
        raise refuse("BUNDLE_ALTERED", folder, f"{SEAL} as it was written", "other contents")
    for name in sorted({*MODEL, *known, *found}):
        if name not in known:
            found = "a file that was not there when the folder was sealed"
            raise refuse("BUNDLE_ALTERED", folder, f"no {name}, or {name} in {SEAL}", found)
        if name not in found:
            raise AtlasmapError(
                "BUNDLE_INCOMPLETE",
                expected=f"the file {name}, which {SEAL} names",
                found=f"{folder}: it is not there",
                mend="copy it from where the bundle came; if it is left out on purpose: "
                f"atlasmap seal {folder}",
            )
        if found[name] != known[name]:
            raise refuse("BUNDLE_ALTERED", folder, f"{name} as it was sealed", "other contents")
    return said["fingerprint"]


def check_belonging(folder: Path) -> None:
    """Check, as far as possible, that all files of a reference are of the same model.

    Raises BUNDLE_* and the errors of reading the files.
    """
    bundle, latent = load(folder, torch.device("cpu")), None
    if (folder / LATENT).is_file():
        latent = read_latent(folder)
        check_latent(bundle, latent, folder)
    checks: dict[str, Callable] = {
        CALIBRATION: of_labels, PROFILES: of_profiles, MAP: of_map, DENOISED: of_denoised,
    }  # fmt: skip
    for name, wrong_with in checks.items():
        if (folder / name).is_file() and (wrong := wrong_with(folder / name, bundle, latent)):
            raise refuse("BUNDLE_ALTERED", folder, f"{name} of this very model", wrong)


def of_labels(path: Path, bundle: Bundle, _latent) -> str | None:
    """Return what is wrong with a calibration, or None: its labels must be the model's."""
    strange = set(read_calibration(path).labels) - set(bundle.registry.labels)
    return f"labels that the model does not have: {listed(sorted(strange))}" if strange else None


def of_profiles(path: Path, bundle: Bundle, _latent) -> str | None:
    """Return what is wrong with label profiles, or None: there must be one per view of the
    calibration."""
    registry = bundle.registry
    found = read_profiles(path, len(registry.labels), len(registry.genes))
    if not path.with_name(CALIBRATION).is_file():
        return None
    views = read_calibration(path.with_name(CALIBRATION)).views
    same = [view.depth for view in views] == [one.scale for one in found]
    return None if same else "profiles of another calibration"


def of_map(path: Path, _bundle: Bundle, latent: anndata.AnnData | None) -> str | None:
    """Return what is wrong with a fitted map, or None: it must be fitted on cells of the latent."""
    fitted = FittedMap.load(path)
    if latent is None:
        return None
    rows = {row.tobytes() for row in np.ascontiguousarray(latent_of(latent), np.float32)}
    own = [row.tobytes() in rows for row in np.ascontiguousarray(fitted.latent, np.float32)]
    return None if all(own) else "a map that was fitted on other cells"


def of_denoised(path: Path, _bundle: Bundle, latent: anndata.AnnData | None) -> str | None:
    """Return what is wrong with denoised cells, or None: they must be those of the latent."""
    cells = list(anndata.read_h5ad(path, backed="r").obs_names)
    same = latent is None or cells == list(latent.obs_names)
    return None if same else "other cells than those of the latent"
