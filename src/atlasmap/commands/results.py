"""Commands that assemble, publish and check results."""

import shutil
import sys
from pathlib import Path

import anndata
import pandas as pd

from atlasmap.commands.opinions import second_opinions, trust_of
from atlasmap.commands.parameters import Latents, ReferenceLatent, Seed, TreeFile, WithTruth
from atlasmap.files import MANIFEST, recorded, write_table, write_text, written_aside
from atlasmap.settings import TransferSettings


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
    opinions: Path | None = None,
    seconds: Path | None = None,
    seed: Seed = 0,
) -> None:
    """Join reference and mapped query batches in one atlas, and label the query cells.

    Example: atlasmap assemble a.h5ad --reference_latent b.h5ad --umap c.npz --queries d --out e

    Parameters
    ----------
    umap
        The fitted UMAP of the reference (.npz).
    out
        Output folder: atlas.h5ad and, if the reference has labels, labels.csv and
        soft_labels.parquet; with `bundle` also soft_labels_calibrated.parquet and shifts.csv.
    transfer
        Settings of the kNN label transfer.
    levels
        Further label columns of the reference, each transferred by kNN.
    bundle
        The reference's bundle, with calibration.json and profiles.npz; adds pooled labels, their
        probabilities, and verdicts.
    opinions, seconds
        If both are given, also label the cells by the classifiers of second-opinions. Files to
        write: the labels (.parquet), and the seconds that each method took (.csv).
    """
    from atlasmap.data.label_tree import read_levels
    from atlasmap.labels.atlas import assemble
    from atlasmap.labels.gathered import read_latents, read_truth, with_proteins
    from atlasmap.labels.umap import FittedMap

    reference = with_proteins(reference_latent)
    names = [str(name) for name in reference.uns.get("soft_label_names", [])]
    atlas = assemble(
        reference,
        read_latents(latents, reference),
        read_truth(queries),
        FittedMap.load(umap),
        transfer,
        levels or [],
        trust_of(bundle, queries),
        read_levels(label_tree, names) if label_tree and names else None,
    )
    write_atlas(atlas, out)
    if opinions and seconds:
        second_opinions(
            *latents, reference_latent=reference_latent, queries=queries, opinions=opinions,
            seconds=seconds, bundle=bundle, seed=seed, transfer=transfer,
        )  # fmt: skip


def write_atlas(atlas, out: Path) -> None:
    """Write atlas.h5ad; with labels also labels.csv and soft_labels.parquet; with a calibration
    also soft_labels_calibrated.parquet and shifts.csv."""
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


def gather(
    *histories: Path,
    out: Path,
    mapped: list[Path] | None = None,
    certificates: list[Path] | None = None,
    scib: list[Path] | None = None,
) -> None:
    """Concatenate tables of an atlas: training histories, surgery certificates, scib-metrics.

    Example: atlasmap gather results/ATLAS/seed0/reference/scvi/history.csv --out
    results/ATLAS/benchmark

    Parameters
    ----------
    histories
        Files history.csv of reference bundles.
    out
        Output folder: history.csv (seed, model, variant, strategy, batch, epoch, split, metric,
        value), certificates.csv with certificates.html, and scib.csv.
    mapped
        Files history.csv of mappings.
    certificates
        Files certificate.json of mappings. Default: none, and certificates.csv is not written.
    scib
        Tables of score-embeddings. Default: none, and scib.csv is not written.
    """
    from atlasmap.report.certificates import certificates_page
    from atlasmap.report.gathered import read_certificates, read_histories
    from atlasmap.report.pages import as_html

    if every := [*histories, *(mapped or [])]:
        write_table(out / "history.csv", read_histories(every))
    if certificates:
        table = read_certificates(certificates)
        write_table(out / "certificates.csv", table)
        write_text(out / "certificates.html", as_html(certificates_page(table)))
    if scib:
        as_written = {"dtype": str, "keep_default_na": False}
        tables = [pd.read_csv(path, **as_written) for path in scib]
        write_table(out / "scib.csv", pd.concat(tables))


def publish(final: Path, *, out: Path, seeds: list[Path] | None = None) -> None:
    """Copy the atlas and the labels of the final mapping to the top folder of the results.

    Example: atlasmap publish results/ATLAS/seed0/mapping/fixed/per_batch --out results/ATLAS

    Parameters
    ----------
    final
        Folder of the final mapping.
    out
        Output folder: atlas.h5ad and, if the reference has labels, labels.csv.
    seeds
        labels.csv of the same mapping with each seed, the final one first. Query cells then get
        seed_agreement, the fraction of seeds that give the cell the same label.
    """
    if not seeds:
        for name in ("atlas.h5ad", "labels.csv"):
            if (final / name).is_file():
                with written_aside(out / name) as aside:
                    shutil.copyfile(final / name, aside)
        return
    from atlasmap.labels.gathered import agreement

    # Read all as text: a batch called 007 keeps its name, and numbers keep their digits.
    labels = [pd.read_csv(path, keep_default_na=False, dtype=str) for path in seeds]
    agree = agreement(labels)
    with written_aside(out / "labels.csv") as aside:
        labels[0].assign(seed_agreement=agree).to_csv(aside, index=False)
    atlas = anndata.read_h5ad(final / "atlas.h5ad")
    of_query = (atlas.obs["role"] == "query").to_numpy()
    atlas.obs["seed_agreement"] = 1.0
    atlas.obs.loc[of_query, "seed_agreement"] = agree  # both are in the order of the mapping
    with written_aside(out / "atlas.h5ad") as aside:
        atlas.write_h5ad(aside, compression="gzip")


def show_results(folder: Path, *, partial: bool = False) -> None:
    """Print the accuracy table and the paths of the results, and record which results exist.

    Example: atlasmap show-results results/ATLAS

    Parameters
    ----------
    folder
        Folder results/{atlas}.
    partial
        The run made only some of the results: keep the recorded list of all results.
    """
    from atlasmap.report.summary import summary

    print(summary(folder), end="")
    if not partial:
        names = [path.relative_to(folder) for path in recorded(folder) if path.exists()]
        (folder / MANIFEST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def check_results(folder: Path | None = None) -> None:
    """List results that are missing or altered, each with the command that makes it again.

    Exits with 1 if there are any.

    Example: atlasmap check-results results/ATLAS

    Parameters
    ----------
    folder
        Folder results/{atlas}. Default: the atlas below results that ran last.
    """
    from atlasmap.forecast.status import latest_atlas
    from atlasmap.report.altered import noted, wrong

    folder = (folder or latest_atlas()).absolute()
    entries = noted(folder)
    bad = list(wrong(entries, folder))
    print("\n".join([*bad, f"{len(entries)} results checked, {len(bad)} missing or altered"]))
    if bad:
        sys.exit(1)
