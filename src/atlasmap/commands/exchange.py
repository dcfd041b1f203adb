"""Commands that import models of scvi-tools, export models to it, and compare with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from atlasmap.commands.parameters import NewBundle
from atlasmap.files import write_table, write_text, written_aside
from atlasmap.settings import Device


@Parameter(name="*")
@dataclass(frozen=True)
class GivenCells:
    """The cells on which a model saved by scvi-tools was trained."""

    adata: Path | None = None
    """The reference cells, with counts or minified (.h5ad). Default: adata.h5ad beside the model,
    if it exists. Without cells the bundle has no latent, and so mappings have no kNN labels and no
    map."""
    layer: str = ""
    """Where the counts are: X, the name of a layer, or raw (raw.X). Empty: as recorded in the
    model."""
    counts: Literal["integer", "corrected_float"] = "integer"
    """corrected_float admits non-integer counts (SoupX, CellBender)."""
    in_order: bool = False
    """The cells are in the order in which the model was trained on them, as adata.h5ad beside the
    model always is. Only then is it known which of them are validation cells."""


def read_cells(given: GivenCells, model: Path):
    """Read the given cells, or adata.h5ad beside the model; None if there is neither."""
    from atlasmap.data.readers import Wanted, read_any
    from atlasmap.exchange.files import cells_file
    from atlasmap.exchange.importing import Cells

    beside = cells_file(model)
    path = given.adata or beside
    if path is None:
        return None
    own = given.in_order or path == beside
    adata = read_any(path, Wanted(given.layer or None))
    return Cells(adata, str(path), given.layer, given.counts, own)


def import_scvi(
    path: Path,
    *,
    out: NewBundle,
    prefix: str = "",
    cells: GivenCells = GivenCells(),
    device: Device = "cpu",
) -> None:
    """Import a model saved by scvi-tools as a bundle. No code in its files is executed.

    Example: atlasmap import-scvi their_model --adata their_cells.h5ad --out bundle

    Parameters
    ----------
    path
        Folder that model.save() wrote (SCVI, SCANVI or TOTALVI of an AnnData, scvi-tools
        0.20 to 1.x), or its model.pt.
    prefix
        Prefix of the file names, if model.save() was called with one.
    device
        Where to compute the latent, if the cells have counts.
    """
    from atlasmap.bundle import save
    from atlasmap.device import pick_device
    from atlasmap.errors import said_as_flags
    from atlasmap.exchange.files import model_file
    from atlasmap.exchange.importing import bundle_of, latent_in, symbols_in
    from atlasmap.exchange.saves import read_save
    from atlasmap.files import sha256

    read, file = read_save(path, prefix), model_file(path, prefix)
    with said_as_flags("--", counts="layer"):
        found = read_cells(cells, file)
    bundle = bundle_of(read, file, symbols_in(found.adata, read.genes) if found else None)
    bundle.model.to(pick_device(device))
    with said_as_flags("--", counts="layer"):
        latent = latent_in(found, bundle, read) if found else None
    save(bundle, out)
    variant = f", classifier {bundle.about['variant']}" if "variant" in bundle.about else ""
    print(f"{read.model} of scvi-tools {read.version}{variant}: {out}")
    print(f"SHA-256 of {file.name}: {sha256(file)}")
    if latent is None:
        print("no reference cells (--adata): labels by the classifier alone, no kNN, no map")
        return
    with written_aside(out / "reference_latent.h5ad") as aside:
        latent.write_h5ad(aside)
    if not (latent.obs["split"] == "validation").any():
        print("which cells validated is not known (--in_order?): all count as training cells")


def export_scvi(bundle: Path, *, out: Path, reference: Path | None = None) -> None:
    """Export a bundle as a folder that scvi-tools 1.4.2 loads with SCVI.load(OUT, adata), or with
    SCANVI or TOTALVI.

    A TOTALVI imported from scvi-tools before 1.3.1 is refused, because 1.4.2 would compute another
    latent.

    Example: atlasmap export-scvi bundle --out for_scvi_tools

    Parameters
    ----------
    bundle
        Bundle of a reference; or, with --reference, of a mapping.
    out
        Folder to write: model.pt and, if the bundle has a reference_latent.h5ad, adata.h5ad: the
        minified reference, without counts (not for TOTALVI, whose minified data scvi-tools does not
        read).
    reference
        Bundle of the reference, if `bundle` is that of a mapping.
    """
    import anndata

    from atlasmap.bundle import load, load_delta
    from atlasmap.device import pick_device
    from atlasmap.exchange.exporting import kind_of, write_save

    whole = load(reference or bundle, pick_device("cpu"))
    if reference:
        whole = load_delta(bundle, whole)
    latent = (reference or bundle) / "reference_latent.h5ad"
    cells = anndata.read_h5ad(latent) if latent.is_file() else None
    write_save(whole, out, cells)
    name = kind_of(whole).upper()
    print(f"scvi.model.{name}.load({str(out)!r}, adata)")


def compare_scvi(results: Path, *, out: Path, cores: int = -1) -> None:
    """Train scvi-tools on the cells, splits, settings and seeds of a finished run, and compare
    results.

    Needs scvi-tools 1.4.2 in the same environment, as `make parity` sets it up.

    Example: atlasmap compare-scvi results/ATLAS --out parity

    Parameters
    ----------
    results
        Folder of a finished run: results/ATLAS.
    out
        Output folder: pairs.csv (one row per seed, model and metric), summary.csv, report.md.
    cores
        Number of seeds to train at the same time; −1: one per CPU core.
    """
    from atlasmap.parity.compare import compare
    from atlasmap.parity.pairs import as_markdown, summary

    pairs = compare(results, cores)
    table = summary(pairs)
    for name, frame in (("pairs", pairs), ("summary", table)):
        write_table(out / f"{name}.csv", frame)
    write_text(out / "report.md", as_markdown(table) + "\n")
    print(as_markdown(table))
    print(f"{int(table['within'].sum())} of {len(table)} within; {out}")
