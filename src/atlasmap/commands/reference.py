"""Commands that train the reference."""

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
    """Train a model of the counts and write it."""
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
        scVI's bundle.
    variant
        Classifier: prefix, fixed or linear.
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
    """What totalVI says of genes and proteins of a reference's cells.

    Example: atlasmap denoise reference.h5ad --bundle totalvi --out denoised.h5ad

    Parameters
    ----------
    cells
        Prepared reference (.h5ad).
    bundle
        totalVI's bundle.
    out
        Denoised cells (.h5ad); beside the bundle as denoised.h5ad it is found by others.
    """
    from atlasmap.bundle import load
    from atlasmap.device import pick_device
    from atlasmap.mapping.denoise import denoise as denoised

    found = denoised(load(bundle, pick_device(device)), anndata.read_h5ad(cells), denoise)
    write_denoised(found, out)


def write_denoised(cells: anndata.AnnData | None, out: Path) -> None:
    """What totalVI says of genes and proteins (.h5ad); of other models nothing."""
    if cells is not None:
        with written_aside(out) as aside:
            cells.write_h5ad(aside, compression="lzf")


def write_reference(out: Path, adata, bundle, split, device) -> None:
    """The bundle, and beside it the reference's latent."""
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
    """Take over a trained reference: a bundle, verified and copied, or a save of scvi-tools.

    Example: atlasmap take-reference their_bundle --out bundle

    Parameters
    ----------
    source
        Folder of a bundle, or of what scvi-tools saved.
    scvi_tools
        Whether scvi-tools saved it.
    adata
        Cells of a reference that scvi-tools saved (.h5ad).
    counts
        What these cells' counts are.
    variant
        Classifier that the config counts on; none for scVI.
    categorical, continuous
        Covariates that the config counts on.
    levels
        Further label columns that the reference must have.
    frozen
        Queries are only embedded, not operated on: the encoder need not see the batch.
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
    """A bundle and what was learned of it; the map is fitted anew."""
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

    Whoever maps onto it is told which file was altered, taken from elsewhere or left out. Two
    references are the same where their fingerprints are.

    Example: atlasmap seal results/ATLAS/seed0/reference/scanvi_fixed

    Parameters
    ----------
    bundle
        Folder of a reference's bundle, with whatever lies beside it.
    check
        Write nothing: say whether its files are as they were sealed.
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
    """Beside a reference's bundle: the map, the model card, and last the seal over all of it.

    Example: atlasmap complete-reference scanvi_fixed --map scanvi_fixed/umap.npz --counts
    reference.h5ad

    Parameters
    ----------
    bundle
        Folder of a reference's bundle, with reference_latent.h5ad and what was learned of it.
    map
        The fitted map (.npz); none: no query is mapped onto this model.
    counts
        The reference with its counts (.h5ad), for the card's posterior predictive checks.
    """
    if map:
        fit_umap(bundle / "reference_latent.h5ad", map, seed, umap)
    write_card(bundle, counts=counts, card=card)
    seal(bundle)


def describe_reference(folder: Path, *, out: Path) -> None:
    """Facts of a reference that was taken over, for contract.json.

    Example: atlasmap describe-reference bundle --out reference.json

    Parameters
    ----------
    folder
        Its bundle, with reference_latent.h5ad.
    out
        Facts (.json).
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
        Folder of a reference's bundle, with reference_latent.h5ad; calibration.json is shown where
        it is there.
    out
        Folder of the card; none: the bundle's own.
    counts
        The reference with its counts (.h5ad); without it the posterior predictive checks are left
        out.
    layer
        Where the counts are: X, a layer, or raw (raw.X).
    card
        What the data do not say.
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
