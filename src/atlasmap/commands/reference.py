"""Commands that train a reference, or take one over, and complete its bundle."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import anndata
import numpy as np
from cyclopts import Parameter

from atlasmap.commands.parameters import NewBundle, OnDevice, Reference, Seed, Unlabeled
from atlasmap.commands.running import Running
from atlasmap.files import write_json, write_text, written_aside
from atlasmap.settings import (
    CardSettings,
    DenoiseSettings,
    ScanviSettings,
    ScviSettings,
    TotalviSettings,
    UmapSettings,
    Variant,
)


def train_scvi(
    reference: Reference,
    *,
    out: NewBundle,
    seed: Seed = 0,
    scvi: ScviSettings = ScviSettings(),
    running: Running = Running(),
) -> None:
    """Train scVI on a prepared reference.

    Example: atlasmap train-scvi reference.h5ad --out scvi --scvi.n_latent 20
    """
    from atlasmap.mapping.reference import fit_scvi

    train_on(reference, partial(fit_scvi, settings=scvi, seed=seed), out, running)


def train_on(reference: Path, fit: Callable, out: Path, running: Running) -> None:
    """Train a model by `fit` on a prepared reference, and write its bundle and latent."""
    from atlasmap.data.registry import Registry

    chosen, adata = running.pick_device(), running.open_cells(reference)
    checkpoints, registry = running.checkpoints(out), Registry.of(adata)
    fitted = fit(adata, registry, device=chosen, checkpoints=checkpoints)
    write_reference(out, adata, *fitted, chosen)
    checkpoints.remove()


def train_scanvi(
    reference: Path,
    *,
    scvi_bundle: Path,
    variant: Variant,
    out: NewBundle,
    seed: Seed = 0,
    scanvi: ScanviSettings = ScanviSettings(),
    running: Running = Running(),
) -> None:
    """Train scANVI from a trained scVI.

    Example: atlasmap train-scanvi reference.h5ad --scvi_bundle scvi --variant fixed --out
    scanvi_fixed

    Parameters
    ----------
    reference
        Prepared reference (.h5ad) that scVI was trained on.
    scvi_bundle
        Folder of the scVI bundle.
    variant
        Form of the classifier. fixed: as in scvi-tools since 1.1; prefix: as before, with the
        cross-entropy of probabilities instead of logits; linear: no hidden layers.
    """
    from atlasmap.bundle import load
    from atlasmap.mapping.reference import fit_scanvi

    chosen, adata = running.pick_device(), running.open_cells(reference)
    start, checkpoints = load(scvi_bundle, chosen), running.checkpoints(out)
    fitted = fit_scanvi(adata, start, scanvi, variant, seed, chosen, checkpoints)
    write_reference(out, adata, *fitted, chosen)
    checkpoints.remove()


def train_totalvi(
    reference: Reference,
    *,
    out: NewBundle,
    seed: Seed = 0,
    totalvi: TotalviSettings = TotalviSettings(),
    running: Running = Running(),
) -> None:
    """Train totalVI on a prepared CITE-seq reference, and a classifier on its latent.

    Example: atlasmap train-totalvi reference.h5ad --out totalvi
    """
    from atlasmap.mapping.reference import fit_totalvi

    train_on(reference, partial(fit_totalvi, settings=totalvi, seed=seed), out, running)


def denoise(
    cells: Path,
    *,
    bundle: Path,
    out: Path,
    denoise: DenoiseSettings = DenoiseSettings(),
    device: OnDevice = "auto",
) -> None:
    """Denoise the genes and proteins of a CITE-seq reference with totalVI.

    Example: atlasmap denoise reference.h5ad --bundle totalvi --out denoised.h5ad

    Parameters
    ----------
    cells
        Prepared reference (.h5ad).
    bundle
        Folder of the totalVI bundle.
    out
        File to write: denoised cells (.h5ad). Other commands look for denoised.h5ad in the bundle's
        folder.
    """
    from atlasmap.bundle import load
    from atlasmap.device import pick_device
    from atlasmap.mapping.denoise import denoise as denoised

    found = denoised(load(bundle, pick_device(device)), anndata.read_h5ad(cells), denoise)
    write_denoised(found, out)


def write_denoised(cells: anndata.AnnData | None, out: Path) -> None:
    """Write denoised cells (.h5ad); nothing if `cells` is None, as for models other than
    totalVI."""
    if cells is not None:
        with written_aside(out) as aside:
            cells.write_h5ad(aside, compression="lzf")


def write_reference(out: Path, adata, bundle, split, device) -> None:
    """Write the bundle into `out`, and beside it reference_latent.h5ad."""
    from atlasmap.bundle import save
    from atlasmap.mapping.reference import reference_latent

    save(bundle, out)
    latent = reference_latent(adata, bundle, split, device)
    with written_aside(out / "reference_latent.h5ad") as aside:
        latent.write_h5ad(aside)


def take_reference(
    source: Path,
    *,
    out: NewBundle,
    scvi_tools: bool = False,
    adata: Path | None = None,
    counts: Literal["integer", "corrected_float"] = "integer",
    variant: Variant | None = None,
    unlabeled: Unlabeled = "Unknown",
    categorical: list[str] | None = None,
    continuous: list[str] | None = None,
    levels: list[str] | None = None,
    frozen: bool = False,
) -> None:
    """Take over a trained reference: verify and copy a bundle, or import a model of scvi-tools.
    Check that it agrees with the config.

    Example: atlasmap take-reference their_bundle --out bundle

    Parameters
    ----------
    source
        Folder of a bundle; or, with --scvi_tools, a folder or model.pt saved by scvi-tools.
    scvi_tools
        Whether `source` was saved by scvi-tools.
    adata
        Cells of a reference saved by scvi-tools (.h5ad). Default: adata.h5ad beside the model.
    counts
        Counts of `adata`; corrected_float admits non-integer counts (SoupX, CellBender).
    variant
        Classifier variant that the config expects; none for scVI.
    categorical, continuous
        Names of the covariates that the config expects.
    levels
        Further label columns that the reference must have.
    frozen
        Queries are only embedded, without surgery, so that a model whose encoder does not see the
        batch is accepted.
    """
    from atlasmap.audit.seal import check_seal
    from atlasmap.bundle import CALIBRATION
    from atlasmap.commands.exchange import GivenCells, import_scvi
    from atlasmap.labels.calibrated import read_calibration
    from atlasmap.mapping.given import check_taken

    if scvi_tools:
        import_scvi(source, out=out, cells=GivenCells(adata, counts=counts))
    else:
        check_seal(source)
        if (source / CALIBRATION).is_file():
            read_calibration(source / CALIBRATION)
    check_taken(
        out if scvi_tools else source, variant, unlabeled, categorical or [], continuous or [],
        levels or [], frozen=frozen,
    )  # fmt: skip
    if not scvi_tools:
        copy_bundle(source, out)


def copy_bundle(source: Path, out: Path) -> None:
    """Copy a bundle with its latent, calibration and denoised cells; not the map, which is fitted
    again."""
    from atlasmap.bundle import CALIBRATION, FILES
    from atlasmap.files import folder_aside
    from atlasmap.labels.calibrated import PROFILES

    with folder_aside(out, last="settings.json") as scratch:
        optional = (CALIBRATION, PROFILES, "denoised.h5ad")
        for name in (*FILES, "settings.json", "reference_latent.h5ad", *optional):
            if name not in optional or (source / name).is_file():
                shutil.copyfile(source / name, scratch / name)


def seal(bundle: Path, *, check: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Seal a reference: one fingerprint over every file that a mapping onto it reads.

    A mapping onto a sealed reference names any file that was altered, replaced or left out. Two
    references with the same fingerprint are the same.

    Example: atlasmap seal results/ATLAS/seed0/reference/scanvi_fixed

    Parameters
    ----------
    bundle
        Folder of a reference's bundle; all files of the reference in it are sealed.
    check
        Write nothing; check that the files are as they were when sealed.
    """
    from atlasmap.audit.seal import check_seal, seal

    said = check_seal(bundle) if check else seal(bundle)
    print(said or "not sealed")


def fit_umap(latent: Path, out: Path, seed: int, settings: UmapSettings) -> None:
    """Fit the map on a reference's latent (reference_latent.h5ad) and write it (.npz)."""
    from atlasmap.labels.umap import fit_map
    from atlasmap.mapping.latent import latent_of

    fitted = fit_map(np.asarray(latent_of(anndata.read_h5ad(latent))), settings, seed)
    with written_aside(out) as aside:
        fitted.save(aside)


def complete_reference(
    bundle: Path,
    *,
    map: Path | None = None,
    counts: Path | None = None,
    seed: Seed = 0,
    umap: UmapSettings = UmapSettings(),
    card: CardSettings = CardSettings(),
) -> None:
    """Complete a reference's bundle: fit UMAP, write the model card, and last the seal over all
    files.

    Example: atlasmap complete-reference scanvi_fixed --map scanvi_fixed/umap.npz --counts
    reference.h5ad

    Parameters
    ----------
    bundle
        Folder of a reference's bundle, with reference_latent.h5ad and, if it was calibrated,
        calibration.json.
    map
        File to write: the fitted UMAP (.npz). Default: none, for a model onto which no query is
        mapped.
    counts
        The reference with its counts (.h5ad), for the posterior predictive checks of the card.
        Default: none, and the checks are left out.
    """
    if map:
        fit_umap(bundle / "reference_latent.h5ad", map, seed, umap)
    write_card(bundle, counts=counts, card=card)
    seal(bundle)


def describe_reference(folder: Path, *, out: Path) -> None:
    """Write the facts of a reference that was taken over, for contract.json.

    Example: atlasmap describe-reference bundle --out reference.json

    Parameters
    ----------
    folder
        Folder of the reference's bundle, with reference_latent.h5ad.
    out
        File to write: facts (.json).
    """
    from atlasmap.mapping.given import facts_of

    write_json(out, facts_of(folder))


def write_card(
    bundle: Path,
    *,
    out: Path | None = None,
    counts: Path | None = None,
    layer: str = "X",
    card: CardSettings = CardSettings(),
) -> None:
    """Write a bundle's model card: card.md (with front matter), card.json, card.html.

    Example: atlasmap card results/ATLAS/seed0/reference/scanvi_fixed --counts
    results/ATLAS/data/reference.h5ad

    Parameters
    ----------
    bundle
        Folder of a reference's bundle, with reference_latent.h5ad; if it has a calibration.json,
        the card shows it.
    out
        Output folder. Default: the folder of the bundle.
    counts
        The reference with its counts (.h5ad). Default: none, and the posterior predictive checks
        are left out.
    layer
        Where the counts are: X, the name of a layer, or raw (raw.X).
    card
        Entries of the card that cannot be read from the data.
    """
    from atlasmap.bundle import CALIBRATION, load
    from atlasmap.card.checks import tables_of
    from atlasmap.card.facts import facts_of
    from atlasmap.card.page import as_json, as_markdown
    from atlasmap.data.readers import Wanted, read_any
    from atlasmap.device import pick_device
    from atlasmap.errors import said_as_flags
    from atlasmap.labels.calibrated import read_calibration
    from atlasmap.mapping.given import read_latent
    from atlasmap.report.pages import as_html

    model, latent = load(bundle, pick_device("cpu")), read_latent(bundle)
    learned = read_calibration(bundle / CALIBRATION) if (bundle / CALIBRATION).is_file() else None
    facts = facts_of(model, latent, card, learned)
    with said_as_flags("--", counts="layer"):
        cells = read_any(counts, Wanted(layer)) if counts else None
        tables = tables_of(model, latent, cells, layer, card)
    out, text = out or bundle, as_markdown(facts, tables, bundle)
    write_json(out / "card.json", as_json(facts, tables))
    page = as_html(text.split("---\n", 2)[2])  # without the front matter
    write_text(out / "card.md", text)
    write_text(out / "card.html", page)
    print(out / "card.md")
