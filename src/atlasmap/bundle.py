"""Bundles: trained models on disk, as folders without pickles that are written atomically.

Files: settings.json (settings, and checksums of the other files; written last), registry.json,
weights.safetensors, history.csv, golden.npz (outputs for synthetic cells, verified on loading). The
bundle of a mapping is a delta: the appended rows, and the hash of the parent reference.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired

import anndata
import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy import sparse
from typing_extensions import TypedDict

import atlasmap
from atlasmap.data.blocks import parts_of
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS, Registry
from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import folder_aside, sha256
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import shape_of
from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import append_categories, split_state, vae_of
from atlasmap.models.totalvi import Totalvi
from atlasmap.settings import ScanviSettings, ScviSettings, TotalviSettings, Variant
from atlasmap.training.cells import Cells, Counts
from atlasmap.training.checkpoint import weights_hash

FORMAT = 2  # increased, with a migration, if older versions could not read new bundles
CALIBRATION = "calibration.json"  # additional file in the bundle of a calibrated reference
FILES = ("registry.json", "weights.safetensors", "history.csv", "golden.npz")
N_GOLDEN = 8
GOLDEN_TOLERANCE = 1e-4  # relative; the order of summation differs between machines


@dataclass(frozen=True)
class Bundle:
    """A model, its registry, the content of settings.json (`about`), and its training history."""

    model: Scvi | Scanvi | Totalvi
    registry: Registry
    about: dict
    history: pd.DataFrame


def from_format_1(about: dict) -> dict:
    """Migrate from format 1: covariates entered every layer; weights had no hash of the genes."""
    scvi = {"deeply_inject_covariates": True} | about["scvi"]
    return about | {"scvi": scvi, "genes_unnamed": True}


MIGRATIONS = {1: from_format_1}  # format → function that migrates settings.json to the next format


def architecture(about: dict) -> dict:
    """Return the settings of the VAE (totalVI or scVI) in settings.json."""
    return about["totalvi" if "totalvi" in about else "scvi"]


def versions() -> dict[str, str]:
    """Return the versions of atlasmap, torch and Python."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"atlasmap": atlasmap.__version__, "torch": torch.__version__, "python": python}


def fingerprint(adata: anndata.AnnData) -> str:
    """Hash of counts, proteins, cell and gene names, and obs without `truth`."""
    digest = hashlib.sha256()
    for part in parts_of(adata.X):
        digest.update(part)
    if PROTEINS in adata.obsm:
        digest.update(np.ascontiguousarray(adata.obsm[PROTEINS]))
        digest.update("\n".join(adata.uns[PROTEIN_NAMES]).encode())
    for names in (adata.obs_names, adata.var_names):
        digest.update("\n".join(names).encode())
    seen = adata.obs.drop(columns=["truth"], errors="ignore")
    digest.update(seen.to_csv().encode())
    return digest.hexdigest()


def genes_hash(registry: Registry) -> str:
    """Hash of the ordered genes and proteins, stored in the metadata of weights.safetensors."""
    return hashlib.sha256("\n".join(registry.genes + registry.proteins).encode()).hexdigest()


def reference_hash(model: torch.nn.Module) -> str:
    """Hash of all weights except the rows that surgery appended."""
    return weights_hash(split_state(model)[0])


def golden_cells(registry: Registry, batches: list[str], device: torch.device) -> Cells:
    """Generate synthetic cells (Poisson counts, fixed seed), assigned to `batches` in turn."""
    rng = keyed_generator(0, "golden", len(registry.genes))
    counts = torch.poisson(torch.full((N_GOLDEN, len(registry.genes)), 0.5), generator=rng)
    counts[:, 0] += 1  # no empty cell
    codes = np.zeros((N_GOLDEN, len(registry.n_categories)), np.int64)
    codes[:, 0] = [registry.batches.index(batches[k % len(batches)]) for k in range(N_GOLDEN)]
    continuous = torch.zeros(N_GOLDEN, len(registry.continuous), device=device)
    return Cells(
        Counts.of(sparse.csr_matrix(counts.numpy()), device),
        torch.as_tensor(codes, device=device),
        continuous if registry.continuous else None,
        torch.full((N_GOLDEN,), -1, device=device),
        np.arange(N_GOLDEN).astype(str),
        golden_proteins(len(registry.proteins), device),
    )


def golden_proteins(n_proteins: int, device: torch.device) -> torch.Tensor | None:
    """Protein counts of the golden cells; the last protein is not measured in every other cell."""
    if not n_proteins:
        return None
    rng = keyed_generator(0, "golden proteins", n_proteins)
    counts = torch.poisson(torch.full((N_GOLDEN, n_proteins), 20.0), generator=rng)
    counts[::2, -1] = torch.nan
    return counts.to(device)


@torch.no_grad()
def golden_outputs(model, cells: Cells) -> dict[str, np.ndarray]:
    """Outputs of the model for the golden cells, by name: posterior, means, soft labels."""
    said, vae = embed(model, cells), vae_of(model)
    whole = cells.minibatch(np.arange(len(cells)))
    posterior = vae.inference(whole, None)
    at = (posterior.z, posterior.library, whole, None)
    found = {"px_mean": vae.generative(*at).mean}
    if isinstance(vae, Totalvi):
        py = vae.decode(*at).protein
        found |= {"py_back": py.background, "py_denoised": py.denoised}
    out = {"qz_mean": said.mean, "qz_var": said.var}
    out |= {name: value.cpu().numpy() for name, value in found.items()}
    return out if said.soft_labels is None else out | {"soft_labels": said.soft_labels}


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of a model's weights."""
    return next(model.parameters()).device


def write(bundle: Bundle, folder: Path, weights: dict, new_batches: list[str] | None) -> None:
    """Write all files of a bundle to a scratch folder, then move them, settings.json last.

    `new_batches`: batches of the golden cells of a delta (None: all of the registry).
    """
    cells = golden_cells(
        bundle.registry, new_batches or bundle.registry.batches, device_of(bundle.model)
    )
    outputs = golden_outputs(bundle.model, cells)
    with folder_aside(folder, last="settings.json") as scratch:
        registry = json.dumps(bundle.registry.as_dict(), indent=1, ensure_ascii=False)
        (scratch / "registry.json").write_text(registry + "\n", encoding="utf-8")
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        data = save_tensors(tensors, {"genes": genes_hash(bundle.registry)})
        (scratch / "weights.safetensors").write_bytes(data)
        bundle.history.to_csv(scratch / "history.csv", index=False)
        np.savez(scratch / "golden.npz", **outputs)
        files = {name: sha256(scratch / name) for name in FILES}
        about = bundle.about | {"format": FORMAT, "versions": versions(), "files": files}
        (scratch / "settings.json").write_text(json.dumps(about, indent=1) + "\n")


def save(bundle: Bundle, folder: Path) -> None:
    """Write a reference bundle."""
    reference, _ = split_state(bundle.model)
    write(bundle, folder, reference, None)


def save_delta(bundle: Bundle, folder: Path, new: dict[int, list[str]]) -> None:
    """Write a delta bundle: appended rows, new categories and the hash of the parent.

    `new`: covariate index → names of the new categories.
    """
    _, appended = split_state(bundle.model)
    appended = {name: value for name, value in appended.items() if len(value)}
    about = bundle.about | {
        "kind": "delta",
        "parent": reference_hash(bundle.model),
        "new_categories": {str(k): names for k, names in new.items()},
    }
    write(Bundle(bundle.model, bundle.registry, about, bundle.history), folder, appended, new[0])


def refuse(code: str, folder: Path, expected: str, found: str) -> AtlasmapError:
    """Return an error for a bundle that must not be used."""
    return AtlasmapError(
        code,
        expected=expected,
        found=f"{folder}: {found}",
        mend="make the bundle again, or copy it again from where it came",
    )


class Said(TypedDict):
    """Schema of settings.json; other keys are allowed."""

    __pydantic_config__ = ConfigDict(extra="allow", allow_inf_nan=False)  # type: ignore
    kind: Literal["scvi", "scanvi", "totalvi", "delta"]
    seed: int
    versions: dict[str, str]
    files: dict[str, str]
    numerics: NotRequired[int]
    library: NotRequired[list[list[float]] | None]
    scvi: NotRequired[ScviSettings]
    scanvi: NotRequired[ScanviSettings]
    totalvi: NotRequired[TotalviSettings]
    variant: NotRequired[Variant]
    data: NotRequired[dict[str, int | str]]
    training: NotRequired[dict[str, int | float | str]]
    parent: NotRequired[str]
    new_categories: NotRequired[dict[str, list[str]]]


def fitting(schema: type, content: dict, name: str, folder: Path) -> None:
    """Raise BUNDLE_ALTERED if the content of a file does not match its schema."""
    try:
        TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f"{where} is {first['input']!r:.80}: {first['msg']}"
        raise refuse("BUNDLE_ALTERED", folder, f"{name} as it was written", found) from error


def read_about(folder: Path) -> dict:
    """Read settings.json and verify the checksums of all files; raises BUNDLE_* errors."""
    if not (folder / "settings.json").is_file():
        raise refuse("BUNDLE_MISSING", folder, "a bundle: a folder with settings.json", "none")
    about = migrated(read_json(folder / "settings.json", folder), folder)
    fitting(Said, about, "settings.json", folder)
    if set(about["files"]) != set(FILES):
        found = f"checksums of {listed(about['files'])}"
        raise refuse("BUNDLE_ALTERED", folder, f"checksums of {listed(FILES)}", found)
    for name, expected in about["files"].items():
        if not (folder / name).is_file():
            raise refuse("BUNDLE_INCOMPLETE", folder, f"the file {name}", "it is not there")
        if sha256(folder / name) != expected:
            raise refuse("BUNDLE_ALTERED", folder, f"{name} as it was written", "other contents")
    return about


@contextlib.contextmanager
def readable(folder: Path, name: str) -> Iterator[None]:
    """Turn any exception while reading a file of a bundle into BUNDLE_ALTERED."""
    try:
        yield
    except AtlasmapError:
        raise
    except Exception as error:  # numpy, safetensors and pandas raise many types
        expected, found = f"{name} as it was written", f"{type(error).__name__} {error}"
        raise refuse("BUNDLE_ALTERED", folder, expected, found) from error


def read_history(folder: Path) -> pd.DataFrame:
    """Read history.csv; raises BUNDLE_ALTERED."""
    with readable(folder, "history.csv"):
        return pd.read_csv(folder / "history.csv")


def migrated(about: dict, folder: Path) -> dict:
    """Migrate settings.json to the current format; raises BUNDLE_FORMAT, BUNDLE_NEWER."""
    found = about.get("format")
    if not isinstance(found, int) or found < 1:
        raise refuse("BUNDLE_FORMAT", folder, f"a format up to {FORMAT}", f"format {found}")
    if found > FORMAT:
        raise AtlasmapError(
            "BUNDLE_NEWER",
            expected=f"a bundle of format {FORMAT} or older",
            found=f"{folder}: format {found}, written by atlasmap "
            f"{about.get('versions', {}).get('atlasmap', 'of a later version')}",
            mend="install that version of atlasmap, or a later one",
        )
    while about["format"] < FORMAT:
        about = MIGRATIONS[about["format"]](about) | {"format": about["format"] + 1}
    return about


def read_json(path: Path, folder: Path) -> dict:
    """Read a file of a bundle that holds a JSON object; raises BUNDLE_ALTERED."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        found = f"no JSON ({error})"
        raise refuse("BUNDLE_ALTERED", folder, f"{path.name} as it was written", found) from error
    if not isinstance(content, dict):
        raise refuse("BUNDLE_ALTERED", folder, f"{path.name} as it was written", "other JSON")
    return content


def read_registry(folder: Path) -> Registry:
    """Read registry.json; raises BUNDLE_ALTERED."""
    content = read_json(folder / "registry.json", folder)
    fitting(Registry, content, "registry.json", folder)
    try:
        return Registry(**content)
    except TypeError as error:
        expected = "registry.json as it was written"
        raise refuse("BUNDLE_ALTERED", folder, expected, f"{error}") from error


def read_weights(folder: Path, registry: Registry, about: dict) -> dict[str, torch.Tensor]:
    """Read weights.safetensors; raises BUNDLE_GENES if they are of other genes, BUNDLE_ALTERED."""
    path = folder / "weights.safetensors"
    with readable(folder, path.name), safe_open(path, "pt") as file:
        genes = (file.metadata() or {}).get("genes")
    if genes != genes_hash(registry) and not (genes is None and about.get("genes_unnamed")):
        raise refuse("BUNDLE_GENES", folder, "the genes that the weights belong to", "other genes")
    return load_tensors(path.read_bytes())


def fill(model: torch.nn.Module, weights: dict, folder: Path) -> None:
    """Load weights into a model; raises BUNDLE_WEIGHTS if names or shapes differ."""
    state = model.state_dict()
    wrong = [
        name
        for name in weights.keys() | {k for k in state if not k.endswith(".appended")}
        if name not in state or name not in weights or state[name].shape != weights[name].shape
    ]
    if wrong:
        found = f"missing, unknown or of another shape: {listed(sorted(wrong))}"
        raise refuse("BUNDLE_WEIGHTS", folder, "the weights of this architecture", found)
    model.load_state_dict(state | weights)


def verify_golden(bundle: Bundle, folder: Path, batches: list[str]) -> None:
    """Raise BUNDLE_GOLDEN if the golden outputs differ from those stored with the bundle."""
    cells = golden_cells(bundle.registry, batches, device_of(bundle.model))
    with readable(folder, "golden.npz"), np.load(folder / "golden.npz") as expected:
        for name, said in golden_outputs(bundle.model, cells).items():
            scale = np.maximum(np.abs(expected[name]), 1)
            worst = float(np.max(np.abs(said - expected[name]) / scale))
            if not worst < GOLDEN_TOLERANCE:
                found = f"{name} is off by {worst:.2g}"
                raise refuse("BUNDLE_GOLDEN", folder, "the golden outputs", found)


def build(about: dict, registry: Registry) -> Scvi | Scanvi | Totalvi:
    """Build an untrained model of the bundle's architecture."""
    rng = keyed_generator(0, "build")
    library = tuple(map(tuple, about["library"])) if about.get("library") else None
    shape = shape_of(registry, library)
    if about["kind"] == "totalvi":
        settings = TypeAdapter(TotalviSettings).validate_python(about["totalvi"])
        return Totalvi(settings, shape, len(registry.labels), rng)
    settings = TypeAdapter(ScviSettings).validate_python(about["scvi"])
    scvi = Scvi(settings, shape, rng)
    if about["kind"] == "scvi":
        return scvi
    return Scanvi(scvi, about["variant"], len(registry.labels), rng)


def load(folder: Path, device: torch.device) -> Bundle:
    """Load and verify a reference bundle; raises BUNDLE_* errors."""
    folder = Path(folder)
    about, registry = read_about(folder), read_registry(folder)
    if about["kind"] == "delta":
        raise refuse("BUNDLE_IS_DELTA", folder, "a reference bundle", "a mapping's delta")
    model = build(about, registry)
    fill(model, read_weights(folder, registry, about), folder)
    bundle = Bundle(model.to(device), registry, about, read_history(folder))
    verify_golden(bundle, folder, registry.batches)
    return bundle


def load_delta(folder: Path, parent: Bundle) -> Bundle:
    """Load and verify a mapping's delta bundle into `parent`, whose model is modified.

    Raises BUNDLE_* errors.
    """
    folder = Path(folder)
    about, registry = read_about(folder), read_registry(folder)
    if about.get("parent") != reference_hash(parent.model):
        raise refuse("BUNDLE_PARENT", folder, "the reference this mapping was made on", "another")
    new = {int(k): names for k, names in about["new_categories"].items()}
    weights = read_weights(folder, registry, about)
    append_categories(parent.model, new, 0)
    parent.model.load_state_dict(weights, strict=False)
    bundle = Bundle(parent.model, registry, about, read_history(folder))
    verify_golden(bundle, folder, new[0])
    return bundle
