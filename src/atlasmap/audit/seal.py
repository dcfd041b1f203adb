"""One fingerprint over every file of a reference that a mapping reads: seal.json.

The bundle's own files, the reference's latent, what was learned of its labels, the fitted map and
denoised cells are made by different steps. The seal binds them to each other and to the weights:
where one was altered, taken from elsewhere or left out, it is named.
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
    """SHA-256 of each file that a mapping reads, of those that are there."""
    return {name: sha256(folder / name) for name in (*MODEL, *BESIDE) if (folder / name).is_file()}


def fingerprint(files: dict[str, str]) -> str:
    """One hash of all."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def seal(folder: Path) -> str:
    """Write seal.json into a reference's folder, after a look whether its files belong together;
    returns the fingerprint. Raises BUNDLE_* and what reading them raises."""
    check_belonging(folder)
    files = hashes(folder)
    said = {"format": FORMAT, "fingerprint": fingerprint(files), "files": files}
    with written_aside(folder / SEAL) as aside:
        aside.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return said["fingerprint"]


def check_seal(folder: Path) -> str | None:
    """The fingerprint of a reference whose files are as they were sealed.

    Raises BUNDLE_ALTERED, BUNDLE_INCOMPLETE, which name the file. Without a seal (a bundle of
    before) None, and a warning that says how to make one.
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
    """The files of a reference must be of one model, as far as that can be seen; raises BUNDLE_*
    and what reading them raises."""
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
    """What is wrong with a calibration."""
    strange = set(read_calibration(path).labels) - set(bundle.registry.labels)
    return f"labels that the model does not have: {listed(sorted(strange))}" if strange else None


def of_profiles(path: Path, bundle: Bundle, _latent) -> str | None:
    """What is wrong with profiles of labels: there is one for each view of the calibration."""
    registry = bundle.registry
    found = read_profiles(path, len(registry.labels), len(registry.genes))
    if not path.with_name(CALIBRATION).is_file():
        return None
    views = read_calibration(path.with_name(CALIBRATION)).views
    same = [view.depth for view in views] == [one.scale for one in found]
    return None if same else "profiles of another calibration"


def of_map(path: Path, _bundle: Bundle, latent: anndata.AnnData | None) -> str | None:
    """What is wrong with a fitted map: it is fitted on cells of the latent."""
    fitted = FittedMap.load(path)
    if latent is None:
        return None
    rows = {row.tobytes() for row in np.ascontiguousarray(latent_of(latent), np.float32)}
    own = [row.tobytes() in rows for row in np.ascontiguousarray(fitted.latent, np.float32)]
    return None if all(own) else "a map that was fitted on other cells"


def of_denoised(path: Path, _bundle: Bundle, latent: anndata.AnnData | None) -> str | None:
    """What is wrong with denoised cells."""
    cells = list(anndata.read_h5ad(path, backed="r").obs_names)
    same = latent is None or cells == list(latent.obs_names)
    return None if same else "other cells than those of the latent"
