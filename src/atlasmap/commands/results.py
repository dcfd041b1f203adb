"""Commands that put results together and look after them."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.errors import AtlasmapError
from atlasmap.files import recorded, sha256, written_aside
from atlasmap.settings import TransferSettings, UmapSettings


def fit_umap(
    reference_latent: Path, *, out: Path, seed: int = 0, umap: UmapSettings = UmapSettings()
) -> None:
    """Fit the map on the reference's latent.

    Parameters
    ----------
    reference_latent
        reference_latent.h5ad of a bundle.
    out
        The fitted map (.npz).
    seed
        Seed.
    umap
        Settings.
    """
    from atlasmap.projection import fit_map

    latent = anndata.read_h5ad(reference_latent).obsm["X_latent"]
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


def assemble(
    *latents: Path,
    reference_latent: Path,
    umap: Path,
    queries: list[Path],
    out: Path,
    unlabeled: str = "Unknown",
    transfer: TransferSettings = TransferSettings(),
) -> None:
    """Put reference and mapped query batches together and name the query's cells.

    Parameters
    ----------
    latents
        latent.h5ad of the mappings.
    reference_latent
        reference_latent.h5ad of the bundle mapped onto.
    umap
        The fitted map (.npz).
    queries
        Prepared query batches, for their known labels (scoring alone).
    out
        Folder: atlas.h5ad and, where there are labels, labels.csv and soft_labels.parquet.
    unlabeled
        What cells without a label are called.
    transfer
        Settings of the second opinion.
    """
    from atlasmap.assembly import assemble
    from atlasmap.projection import FittedMap

    atlas = assemble(
        anndata.read_h5ad(reference_latent),
        [anndata.read_h5ad(path) for path in latents],
        read_truth(queries),
        FittedMap.load(umap),
        unlabeled,
        transfer,
    )
    write_atlas(atlas, out)


def write_atlas(atlas, out: Path) -> None:
    """atlas.h5ad and, where there are labels, labels.csv and soft_labels.parquet."""
    if atlas.labels is not None:
        with written_aside(out / "labels.csv") as aside:
            atlas.labels.to_csv(aside)
        with written_aside(out / "soft_labels.parquet") as aside:
            atlas.soft_labels.to_parquet(aside)
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


def gather_tables(*tables: Path, out: Path) -> None:
    """Concatenate tables.

    Parameters
    ----------
    tables
        Tables with the same columns (.csv).
    out
        Table (.csv).
    """
    with written_aside(out) as aside:
        pd.concat([pd.read_csv(path) for path in tables]).to_csv(aside, index=False)


def publish(source: Path, *, out: Path) -> None:
    """Copy a file of the final mapping to where the answer is looked for.

    Parameters
    ----------
    source
        File to copy.
    out
        Where to.
    """
    with written_aside(out) as aside:
        shutil.copyfile(source, aside)


def show_results(folder: Path) -> None:
    """Print the accuracy table and where the figures and the atlas are.

    Parameters
    ----------
    folder
        results/{atlas}.
    """
    scores = folder / "benchmark" / "classification.csv"
    if scores.is_file():
        table = pd.read_csv(scores, keep_default_na=False)
        table = table[(table["method"] == "classifier") & (table["batch"] == "all")]
        keys = ["variant", "strategy", "split"]
        order = pd.Categorical(table["split"], ["train", "validation", "query"])
        table = table.assign(split=order)
        columns = ["n", "accuracy", "macro_f1", "ece"]
        print("\nPredicted labels against known ones (mean over seeds):\n")
        shown = table.groupby(keys, observed=True)[columns].mean().reset_index()
        print(shown.to_string(index=False, float_format="{:.3f}".format))
    for what, path in [("figures", "figures"), ("atlas", "atlas.h5ad"), ("labels", "labels.csv")]:
        if (folder / path).exists():
            print(f"{what + ':':9}{folder / path}")


def check_results(folder: Path) -> None:
    """List results that are missing or altered, with the command that remakes each.

    Exits with 1 if there are any.

    Parameters
    ----------
    folder
        results/{atlas}.
    """
    contract = folder / "data" / "contract.json"
    files = json.loads(contract.read_text())["configfiles"] if contract.is_file() else []
    given = f" --configfile {shlex.join(files)}" if files else ""
    entries = list(recorded(folder))
    if not entries:
        raise AtlasmapError(
            "RESULTS_NONE",
            expected=f"results below {folder}",
            found="no file that a command of atlasmap wrote",
            mend="give results/{atlas}, after a run",
        )
    bad = 0
    for path, digest in entries:
        if not path.exists():
            print(
                f"missing  {path}\n         snakemake --cores all{given} {shlex.quote(str(path))}"
            )
        elif sha256(path) != digest:
            remake = f"snakemake --cores all{given} --force {shlex.quote(str(path))}"
            print(f"altered  {path}\n         {remake}")
        else:
            continue
        bad += 1
    print(f"{len(entries)} results checked, {bad} missing or altered")
    if bad:
        sys.exit(1)
