"""Commands that put results together and look after them."""

import shutil
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.commands.parameters import Latents, ReferenceLatent, Table, TreeFile, WithTruth
from atlasmap.files import MANIFEST, recorded, unslug, write_table, write_text, written_aside
from atlasmap.settings import TransferSettings, UmapSettings


def fit_umap(
    reference_latent: Path, *, out: Path, seed: int = 0, umap: UmapSettings = UmapSettings()
) -> None:
    """Fit the map on the reference's latent.

    Example: atlasmap fit-umap scanvi_fixed/reference_latent.h5ad --out umap.npz --umap.min_dist 0.3

    Parameters
    ----------
    reference_latent
        reference_latent.h5ad of a bundle.
    out
        The fitted map (.npz).
    seed
        Seed.
    """
    from atlasmap.labels.umap import fit_map
    from atlasmap.mapping.latent import latent_of

    latent = latent_of(anndata.read_h5ad(reference_latent))
    fitted = fit_map(np.asarray(latent), umap, seed)
    with written_aside(out) as aside:
        fitted.save(aside)


def assemble(
    *latents: Latents,
    reference_latent: ReferenceLatent,
    umap: Path,
    queries: WithTruth,
    out: Path,
    transfer: TransferSettings = TransferSettings(),
    levels: list[str] | None = None,
    bundle: Path | None = None,
    label_tree: TreeFile = None,
) -> None:
    """Put reference and mapped query batches together and name the query's cells.

    Example: atlasmap assemble a.h5ad --reference_latent b.h5ad --umap c.npz --queries d --out e

    Parameters
    ----------
    umap
        The fitted map (.npz).
    out
        Folder: atlas.h5ad and, where there are labels, labels.csv and soft_labels.parquet.
    transfer
        Settings of the second opinion.
    levels
        Further label columns of the reference.
    bundle
        The reference's bundle with calibration.json and profiles.npz: adds pooled labels and their
        probabilities, and verdicts.
    """
    from atlasmap.api import trust_in
    from atlasmap.bundle import load
    from atlasmap.data.label_tree import read_levels
    from atlasmap.device import pick_device
    from atlasmap.labels.atlas import assemble
    from atlasmap.labels.gathered import read_latents, read_truth, with_proteins
    from atlasmap.labels.umap import FittedMap

    of_batch = {unslug(path.stem): path for path in queries}

    def cells(batch: str) -> anndata.AnnData:
        return anndata.read_h5ad(of_batch[batch])

    reference = with_proteins(reference_latent)
    names = [str(name) for name in reference.uns.get("soft_label_names", [])]
    atlas = assemble(
        reference,
        read_latents(latents, reference),
        read_truth(queries),
        FittedMap.load(umap),
        transfer,
        levels or [],
        trust_in(bundle, load(bundle, pick_device("cpu")), cells) if bundle else None,
        read_levels(label_tree, names) if label_tree and names else None,
    )
    write_atlas(atlas, out)


def write_atlas(atlas, out: Path) -> None:
    """atlas.h5ad and, where there are labels, labels.csv and soft_labels.parquet, where there is a
    calibration soft_labels_calibrated.parquet and shifts.csv."""
    tables = {"soft_labels": atlas.soft_labels, "soft_labels_calibrated": atlas.calibrated}
    for name, table in tables.items():
        if table is not None:
            with written_aside(out / f"{name}.parquet") as aside:
                table.to_parquet(aside)
    if atlas.labels is not None:
        with written_aside(out / "labels.csv") as aside:
            atlas.labels.to_csv(aside)
    if atlas.shifts is not None:
        write_table(out / "shifts.csv", atlas.shifts)
    with written_aside(out / "atlas.h5ad") as aside:
        atlas.adata.write_h5ad(aside, compression="gzip")


def gather_history(*histories: Path, out: Path) -> None:
    """Gather training histories into one tidy table.

    Example: atlasmap gather-history results/ATLAS/seed0/reference/scvi/history.csv --out
    history.csv

    Parameters
    ----------
    histories
        history.csv of bundles.
    out
        Table: seed, model, variant, strategy, batch, epoch, split, metric, value.
    """
    from atlasmap.report.gathered import read_histories

    write_table(out, read_histories(histories))


def gather_tables(*tables: Path, out: Table) -> None:
    """Concatenate tables.

    Example: atlasmap gather-tables a.csv b.csv --out both.csv

    Parameters
    ----------
    tables
        Tables with the same columns (.csv).
    """
    as_written = {"dtype": str, "keep_default_na": False}
    write_table(out, pd.concat([pd.read_csv(path, **as_written) for path in tables]))


def gather_certificates(*certificates: Path, out: Path) -> None:
    """Gather surgery certificates into one table.

    Example: atlasmap gather-certificates
    results/ATLAS/seed0/mapping/fixed/per_batch/donor1/certificate.json --out certificates.csv

    Parameters
    ----------
    certificates
        certificate.json of mappings.
    out
        Table (.csv): a row a mapping. Beside it a page (.html).
    """
    from atlasmap.report.certificates import certificates_page
    from atlasmap.report.gathered import read_certificates
    from atlasmap.report.pages import as_html

    table = read_certificates(certificates)
    write_table(out, table)
    write_text(out.with_suffix(".html"), as_html(certificates_page(table)))


def publish(source: Path, *, out: Path, seeds: list[Path] | None = None) -> None:
    """Put a file of the final mapping where the answer is looked for.

    Example: atlasmap publish results/ATLAS/seed0/mapping/fixed/per_batch/atlas.h5ad --out
    results/ATLAS/atlas.h5ad

    Parameters
    ----------
    source
        labels.csv or atlas.h5ad of the final mapping.
    out
        Where to.
    seeds
        labels.csv of the same mapping with each seed, the final one first: query cells are given
        seed_agreement, the share of seeds that name the cell alike.
    """
    if not seeds:
        with written_aside(out) as aside:
            shutil.copyfile(source, aside)
        return
    from atlasmap.labels.gathered import agreement

    # all as text: a batch called 007 stays so, and numbers keep their digits
    labels = [pd.read_csv(path, keep_default_na=False, dtype=str) for path in seeds]
    agree = agreement(labels)
    with written_aside(out) as aside:
        if source.suffix == ".csv":
            labels[0].assign(seed_agreement=agree).to_csv(aside, index=False)
            return
        atlas = anndata.read_h5ad(source)
        of_query = (atlas.obs["role"] == "query").to_numpy()
        atlas.obs["seed_agreement"] = 1.0
        atlas.obs.loc[of_query, "seed_agreement"] = agree  # both are in the order of the mapping
        atlas.write_h5ad(aside, compression="gzip")


def show_results(folder: Path, *, partial: bool = False) -> None:
    """Print the accuracy table and where things are; note what results there are.

    Example: atlasmap show-results results/ATLAS

    Parameters
    ----------
    folder
        results/{atlas}.
    partial
        The run made some results only: keep the list of all there should be.
    """
    from atlasmap.report.summary import summary

    print(summary(folder), end="")
    if not partial:
        names = [path.relative_to(folder) for path in recorded(folder) if path.exists()]
        (folder / MANIFEST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def check_results(folder: Path | None = None) -> None:
    """List results that are missing or altered, with the command that remakes each.

    Exits with 1 if there are any.

    Example: atlasmap check-results results/ATLAS

    Parameters
    ----------
    folder
        results/{atlas}; otherwise the one below results that ran last.
    """
    from atlasmap.forecast.status import latest_atlas
    from atlasmap.report.altered import noted, wrong

    folder = (folder or latest_atlas()).absolute()
    entries = noted(folder)
    bad = list(wrong(entries, folder))
    print("\n".join([*bad, f"{len(entries)} results checked, {len(bad)} missing or altered"]))
    if bad:
        sys.exit(1)
