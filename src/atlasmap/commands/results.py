"""Commands that put results together and look after them."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.commands.parameters import (
    LabelTree,
    Latents,
    ReferenceLatent,
    Table,
    Unlabeled,
    WithTruth,
)
from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import MANIFEST, recorded, sha256, unslug, written_aside
from atlasmap.report.found import VERDICTS
from atlasmap.settings import TransferSettings, UmapSettings

SHOWN = {"report": "report.html", "explorer": "explorer.html", "figures": "figures",
         "atlas": "atlas.h5ad", "labels": "labels.csv"}  # fmt: skip


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


def read_truth(queries: list[Path]) -> pd.Series | None:
    """Known labels of query cells by (batch, cell), from prepared query files; None if no file
    has any."""
    import h5py
    from anndata.io import read_elem

    parts = []
    for path in queries:
        with h5py.File(path) as file:
            obs = read_elem(file["obs"])
        if "truth" in obs:
            keys = pd.MultiIndex.from_arrays([obs["batch"].astype(str), obs.index])
            parts.append(pd.Series(obs["truth"].astype(str).to_numpy(), index=keys))
    return pd.concat(parts) if parts else None


def check_mapped(latents: tuple[Path, ...]) -> None:
    """Raise MAPPING_MISSING for latents (or what lies beside them) that are not there."""
    missing = [str(path) for path in latents if not path.is_file()]
    if missing:
        raise AtlasmapError(
            "MAPPING_MISSING",
            expected="the latent of every query batch",
            found=f"no {listed(missing, 4)}",
            mend=f"snakemake … -- {' '.join(missing)}",
        )


def with_proteins(latent: Path) -> anndata.AnnData:
    """A latent with what totalVI says of the proteins, where that lies beside it."""
    from atlasmap.mapping.denoise import FILE, take_proteins

    out, beside = anndata.read_h5ad(latent), latent.parent / FILE
    if beside.is_file():
        denoised = anndata.read_h5ad(beside, backed="r")
        if list(denoised.obs_names) != list(out.obs_names):
            raise AtlasmapError(
                "CELLS_DIFFER",
                expected=f"the cells of {latent} in {beside}, in their order",
                found="others",
                mend="map these batches again",
            )
        take_proteins(out, denoised)
        denoised.file.close()
    return out


def read_latents(latents: tuple[Path, ...], reference: anndata.AnnData) -> list[anndata.AnnData]:
    """Latents of mappings, with proteins if the reference has them; raises MAPPING_MISSING."""
    from atlasmap.mapping.denoise import FILE, OF_PROTEINS

    check_mapped(latents)
    if OF_PROTEINS[0] in reference.obsm:
        check_mapped(tuple(path.parent / FILE for path in latents))
    return [with_proteins(path) for path in latents]


def assemble(
    *latents: Latents,
    reference_latent: ReferenceLatent,
    umap: Path,
    queries: WithTruth,
    out: Path,
    unlabeled: Unlabeled = "Unknown",
    transfer: TransferSettings = TransferSettings(),
    levels: list[str] | None = None,
    bundle: Path | None = None,
    tree: LabelTree = None,
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
        The reference's bundle with calibration.json: adds calibrated probabilities and verdicts.
    """
    from atlasmap.api import trust_in
    from atlasmap.bundle import load
    from atlasmap.device import pick_device
    from atlasmap.labels.atlas import assemble
    from atlasmap.labels.tree import read_levels
    from atlasmap.labels.umap import FittedMap

    reference = with_proteins(reference_latent)
    names = [str(name) for name in reference.uns.get("soft_label_names", [])]
    atlas = assemble(
        reference,
        read_latents(latents, reference),
        read_truth(queries),
        FittedMap.load(umap),
        unlabeled,
        transfer,
        levels or [],
        trust_in(bundle, load(bundle, pick_device("cpu"))) if bundle else None,
        read_levels(tree, names) if tree and names else None,
    )
    write_atlas(atlas, out)


def write_atlas(atlas, out: Path) -> None:
    """atlas.h5ad and, where there are labels, labels.csv and soft_labels.parquet, where there is a
    calibration soft_labels_calibrated.parquet."""
    tables = {"soft_labels": atlas.soft_labels, "soft_labels_calibrated": atlas.calibrated}
    for name, table in tables.items():
        if table is not None:
            with written_aside(out / f"{name}.parquet") as aside:
                table.to_parquet(aside)
    if atlas.labels is not None:
        with written_aside(out / "labels.csv") as aside:
            atlas.labels.to_csv(aside)
    with written_aside(out / "atlas.h5ad") as aside:
        atlas.adata.write_h5ad(aside, compression="gzip")


def model_of(history: Path) -> tuple[int, str]:
    """Seed and model of a history.csv, from where it lies in the result tree."""
    parts = history.parent.parts
    at = max(k for k, part in enumerate(parts) if part.startswith("seed"))
    kind, *rest = parts[at + 1 :]
    return int(parts[at].removeprefix("seed")), "/".join(
        rest if kind == "reference" else parts[at + 1 :]
    )


def gather_history(*histories: Path, out: Path) -> None:
    """Gather training histories into one tidy table.

    Example: atlasmap gather-history results/ATLAS/seed0/reference/scvi/history.csv --out
    history.csv

    Parameters
    ----------
    histories
        history.csv of bundles in a result tree.
    out
        Table: seed, model, epoch, split, metric, value.
    """
    tables = []
    for path in histories:
        table = pd.read_csv(path)
        seed, model = model_of(path)
        table.insert(0, "seed", seed)
        table.insert(1, "model", model)
        tables.append(table)
    with written_aside(out) as aside:
        pd.concat(tables).to_csv(aside, index=False)


def gather_tables(*tables: Path, out: Table) -> None:
    """Concatenate tables.

    Example: atlasmap gather-tables a.csv b.csv --out both.csv

    Parameters
    ----------
    tables
        Tables with the same columns (.csv).
    """
    with written_aside(out) as aside:
        pd.concat([pd.read_csv(path) for path in tables]).to_csv(aside, index=False)


def gather_certificates(*certificates: Path, out: Path) -> None:
    """Gather surgery certificates into one table.

    Example: atlasmap gather-certificates
    results/ATLAS/seed0/mapping/fixed/per_batch/donor1/certificate.json --out certificates.csv

    Parameters
    ----------
    certificates
        certificate.json of mappings in a result tree.
    out
        Table (.csv): a row a mapping. Beside it a page (.html).
    """
    from atlasmap.report.certificates import certificates_page
    from atlasmap.report.pages import as_html

    rows = []
    for path in certificates:
        said, parts = json.loads(path.read_text(encoding="utf-8")), path.parent.parts
        reference, query, training = (said[key] for key in ("reference", "query", "training"))
        rows.append(
            {"seed": said["seed"], "variant": parts[-3], "strategy": said["strategy"],
             "mapping": unslug(parts[-1]), "reference_unchanged": reference["unchanged"],
             "n_golden_cells": reference["n_golden_cells"],
             "n_probe_cells": reference["n_probe_cells"], "n_cells": query["n_cells"]}
            | {f"displacement_{key}": value for key, value in query["displacement"].items()}
            | {key: training.get(key) for key in ("n_epochs", "n_steps", "n_trainable", "stopped")}
        )  # fmt: skip
    table = pd.DataFrame(rows)
    with written_aside(out) as aside:
        table.to_csv(aside, index=False)
    with written_aside(out.with_suffix(".html")) as aside:
        aside.write_text(as_html(certificates_page(table)), encoding="utf-8")


def agreement(labels: list[pd.DataFrame]) -> np.ndarray:
    """Share of label tables (all of the same cells) that name each cell of the first as it does."""
    keys = [pd.MultiIndex.from_frame(table[["batch", "cell_id"]].astype(str)) for table in labels]
    first = labels[0]["predicted_label"].to_numpy()
    same = [
        pd.Series(table["predicted_label"].to_numpy(), index=key).reindex(keys[0]).to_numpy()
        == first
        for table, key in zip(labels, keys, strict=True)
    ]
    return np.mean(same, 0)


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
    contract = folder / "data" / "contract.json"
    if contract.is_file():
        print(checked_data(json.loads(contract.read_text(encoding="utf-8"))), end="")
    scores = folder / "benchmark" / "classification.csv"
    if scores.is_file():
        print(accuracy_table(pd.read_csv(scores, keep_default_na=False)))
    fitness = folder / "benchmark" / "fitness.csv"
    if fitness.is_file():
        table = pd.read_csv(fitness, dtype={"batch": str})
        print(verdict_table(table), strange_batches(table), sep="", end="")
    for what, path in SHOWN.items():
        if (folder / path).exists():
            print(f"{what + ':':10}{folder / path}")
    if partial:
        return
    names = [path.relative_to(folder) for path in recorded(folder) if path.exists()]
    (folder / MANIFEST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def checked_data(contract: dict) -> str:
    """What was found in the data, in two lines, and a line for each thing that was left out."""
    reference, queries = contract["reference"], contract["queries"]
    labels = reference.get("labels") or {}
    said = (
        f"\nChecked: reference of {reference['n_cells']:,} cells, "
        f"{len(reference.get('batches', {}))} batches, {len(labels) or 'no'} labels, "
        f"{reference['n_genes']:,} genes;\n"
    )
    n, overlap = (
        [fact.get(key, 1.0) for fact in queries.values()] for key in ("n_cells", "gene_overlap")
    )
    facts = [reference, *queries.values()]
    odd = {k: why for fact in facts for k, why in fact.get("unreadable", {}).items()}
    left_out = "".join(f"left out of {k}, as it cannot be read: {why}\n" for k, why in odd.items())
    if not queries:
        return f"{said}no query batches\n{left_out}"
    share = "all" if min(overlap) == 1 else f"at least {min(overlap):.1%}"
    query = f"{sum(n):,} query cells in {len(queries)} batches, with {share} of these genes\n"
    return said + query + left_out


def verdict_table(fitness: pd.DataFrame) -> str:
    """Confident, ambiguous and novel query cells of each mapping as text."""
    if fitness.empty:
        return ""
    keys = ["seed", "variant", "strategy"]
    cells = fitness[keys].assign(n=fitness["n"])
    for verdict in VERDICTS:
        cells[verdict] = (fitness[verdict] * fitness["n"]).round().astype(int)
    shown = cells.groupby(keys, sort=False).sum().reset_index()
    shown = shown.drop(columns="seed") if shown["seed"].nunique() == 1 else shown
    return f"Verdicts on query cells:\n\n{shown.to_string(index=False)}\n\n"


def strange_batches(fitness: pd.DataFrame) -> str:
    """Batches that the reference does not fit, or may not, a line each."""
    if fitness.empty:  # nothing was learned of the labels, so the table has only its keys
        return ""
    lines = []
    for batch, rows in fitness.dropna(subset="strangeness").groupby("batch"):
        worst = rows.loc[rows["strangeness"].idxmax()]
        if worst["reference"] != "fits":
            said = (
                f"strangeness {worst['strangeness']:.2f} ({worst['variant']}, {worst['strategy']})"
            )
            lines.append(f"reference {worst['reference']}: batch {batch}, {said}\n")
    return "".join(lines)


def accuracy_table(scores: pd.DataFrame) -> str:
    """The classifier's scores over all batches as text; mean ± standard deviation over seeds."""
    whole = scores[(scores["method"] == "classifier") & (scores["batch"] == "all")]
    whole = whole[whole["level"] == "label"]
    order = pd.Categorical(whole["split"], ["train", "validation", "query"])
    whole, keys = whole.assign(split=order), ["variant", "strategy", "split"]
    table = whole[whole["probabilities"] == "raw"]
    calibrated = whole[whole["probabilities"] == "calibrated"]
    groups = {"accuracy": table, "macro_f1": table, "ece": table}
    if len(calibrated):
        calibrated = calibrated.rename(columns={"ece": "calibrated_ece"})
        groups |= {"calibrated_ece": calibrated}
    shown = table.groupby(keys, observed=True)["n"].first().to_frame()
    for key, part in groups.items():
        by = part.groupby(keys, observed=True)[key]
        mean, spread = by.mean(), by.std()
        text = mean.map("{:.3f}".format)
        shown[key] = text.where(spread.isna(), text + " ± " + spread.map("{:.3f}".format))
    return (
        f"\nPredicted labels against known ones:\n\n"
        f"{shown.fillna('–').reset_index().to_string(index=False)}\n"
    )


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

    folder = (folder or latest_atlas()).absolute()
    records, manifest = recorded(folder), folder / MANIFEST
    names = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    entries = dict.fromkeys((folder / name for name in names), "") | records
    if not entries:
        raise AtlasmapError(
            "RESULTS_NONE",
            expected=f"results below {folder}",
            found="no file that a command of atlasmap wrote",
            mend="give results/{atlas}, after a run",
        )
    bad = 0
    for path, digest in sorted(entries.items()):
        missing = not path.exists()
        if missing or (digest and sha256(path) != digest):
            bad += 1
            print(f"{'missing' if missing else 'altered'}  {os.path.relpath(path)}")
            print(f"         {remake(path, folder, force=not missing)}")
    print(f"{len(entries)} results checked, {bad} missing or altered")
    if bad:
        sys.exit(1)


def remake(path: Path, folder: Path, *, force: bool) -> str:
    """The command that makes one result again, from here."""
    contract, run = folder / "data" / "contract.json", folder.parent.parent
    files = json.loads(contract.read_text())["configfiles"] if contract.is_file() else []
    words = ["snakemake", "--cores", "all"]
    words += ["--configfile", *files] if files else []
    words += [] if run == Path.cwd() else ["--directory", str(run)]
    words += ["--force"] if force else []
    return shlex.join([*words, "--", str(path.relative_to(run))])
