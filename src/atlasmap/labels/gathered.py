"""Inputs of an atlas: latents of mappings, their denoised proteins, known labels."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from atlasmap.errors import AtlasmapError, listed
from atlasmap.mapping.denoise import FILE, OF_PROTEINS, take_proteins
from atlasmap.mapping.given import read_reference


def read_truth(queries: list[Path]) -> pd.Series | None:
    """Known labels of query cells by (batch, cell), from prepared query files; None if no file
    has any."""
    parts = []
    for path in queries:
        with h5py.File(path) as file:
            obs = read_elem(file["obs"])
        if "truth" in obs:
            keys = pd.MultiIndex.from_arrays([obs["batch"].astype(str), obs.index])
            parts.append(pd.Series(obs["truth"].astype(str).to_numpy(), index=keys))
    return pd.concat(parts) if parts else None


def check_mapped(latents: tuple[Path, ...]) -> None:
    """Raise MAPPING_MISSING if any of these files of mappings does not exist."""
    missing = [str(path) for path in latents if not path.is_file()]
    if missing:
        raise AtlasmapError(
            "MAPPING_MISSING",
            expected="the latent of every query batch",
            found=f"no {listed(missing, 4)}",
            mend=f"snakemake … -- {' '.join(missing)}",
        )


def with_proteins(latent: Path) -> anndata.AnnData:
    """Read a latent, with totalVI's denoised proteins if they are in the same folder; raises
    CELLS_DIFFER."""
    out, beside = read_reference(latent), latent.parent / FILE
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
    """Read the latents of mappings, with denoised proteins if the reference has them.

    Raises MAPPING_MISSING, CELLS_DIFFER.
    """
    check_mapped(latents)
    if OF_PROTEINS[0] in reference.obsm:
        check_mapped(tuple(path.parent / FILE for path in latents))
    return [with_proteins(path) for path in latents]


def agreement(labels: list[pd.DataFrame]) -> np.ndarray:
    """For each cell of the first label table, the fraction of tables (all of the same cells) that
    predict the same label as the first."""
    keys = [pd.MultiIndex.from_frame(table[["batch", "cell_id"]].astype(str)) for table in labels]
    first = labels[0]["predicted_label"].to_numpy()
    same = [
        pd.Series(table["predicted_label"].to_numpy(), index=key).reindex(keys[0]).to_numpy()
        == first
        for table, key in zip(labels, keys, strict=True)
    ]
    return np.mean(same, 0)
