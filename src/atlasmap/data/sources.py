"""Data sets that are downloaded or generated: URLs, the PBMC 68k subset, the simulated atlas."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.sheet import check_builtin
from atlasmap.errors import AtlasmapError
from atlasmap.files import written_aside
from atlasmap.settings import SimulateSettings

RAW_DECIMALS = 6e-4  # raw.X is rounded to three decimals


def pbmc68k() -> anndata.AnnData:
    """Return scanpy's PBMC 68k subset (700 cells × 765 genes) with counts recovered from raw.X.

    raw.X is log1p of counts scaled to 10,000 per cell, rounded to three decimals; n_counts is the
    library size. obs: batch (GEM well), bulk_labels. Raises PBMC68K_CHANGED if the recovered
    counts, normalised again, differ from raw.X.
    """
    import scanpy

    source = scanpy.datasets.pbmc68k_reduced()
    logged = sparse.csr_matrix(source.raw.X, dtype=np.float64)
    scale = sparse.diags(source.obs["n_counts"].to_numpy(float) / 1e4)
    counts = (scale @ logged.expm1()).tocsr()
    counts.data = np.rint(counts.data)
    again = (sparse.diags(1 / scale.diagonal()) @ counts).log1p()
    off = float(np.abs(again - logged).max())
    if off > RAW_DECIMALS:
        raise AtlasmapError(
            "PBMC68K_CHANGED",
            expected=f"recovered counts to give raw.X within {RAW_DECIMALS}",
            found=f"off by {off:.2g} with scanpy {scanpy.__version__}",
            mend="install the scanpy that envs/lock.txt names",
        )
    counts.eliminate_zeros()
    well = "well" + source.obs_names.str.rsplit("-", n=1).str[-1]
    obs = pd.DataFrame(
        {"batch": well.to_numpy(), "bulk_labels": source.obs["bulk_labels"].astype(str).to_numpy()},
        index=source.obs_names,
    )
    var = pd.DataFrame(index=source.raw.var_names)
    return anndata.AnnData(counts.astype(np.float32), obs=obs, var=var)


def fetch(source: str, out: Path, sha256: str, simulation: SimulateSettings) -> str:
    """Write the data set `source` (URL or builtin:…) to `out`; returns its sha256.

    Raises DOWNLOAD_*, URL_SCHEME, SHEET_BUILTIN.
    """
    check_builtin(source)
    if not source.startswith("builtin:"):
        from atlasmap.data.download import download

        return download(source, out, sha256).sha256
    from atlasmap.data.simulate import write_simulated
    from atlasmap.files import sha256 as digest

    with written_aside(out) as aside:
        if source == "builtin:pbmc68k":
            pbmc68k().write_h5ad(aside)
        else:
            write_simulated(simulation, aside)
    return digest(out)
