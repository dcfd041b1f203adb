"""Commands that put results together and look after them."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.files import written_aside
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
    if atlas.labels is not None:
        with written_aside(out / "labels.csv") as aside:
            atlas.labels.to_csv(aside)
        with written_aside(out / "soft_labels.parquet") as aside:
            atlas.soft_labels.to_parquet(aside)
    with written_aside(out / "atlas.h5ad") as aside:
        atlas.adata.write_h5ad(aside, compression="gzip")
