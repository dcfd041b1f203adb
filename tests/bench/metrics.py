"""scib-metrics of five embeddings, as atlasmap runs them and as scib_metrics.Benchmarker does.

python tests/bench/metrics.py TOOL FILE

TOOL: atlasmap or scib-metrics. FILE: cells with obs batch and label and embeddings in obsm, as
bench.py makes them. Prints a line of JSON: seconds, peak memory, each embedding's metrics. The
Benchmarker is run as its tutorial runs it (all metrics, PCA of the counts before, all cores).
"""

import json
import os
import sys
import time
from pathlib import Path

import anndata
import numpy as np
from scipy import sparse
from tasks import peak_mb

from atlasmap.evaluation.scib import Embedded, score_embedding, unintegrated_pca
from atlasmap.labels.compile_cache import keep_jax, keep_numba
from atlasmap.settings import BenchmarkSettings


def embeddings(counts: sparse.csr_matrix, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Five of 30 dimensions, better and worse: components of the counts as they are, without each
    batch's mean, and those with noise."""
    pca = unintegrated_pca(counts)[:, :30].astype(np.float32)
    centred, rng = pca.copy(), np.random.default_rng(0)
    for name in np.unique(batch):
        centred[batch == name] -= centred[batch == name].mean(0)
    noise = rng.normal(size=pca.shape).astype(np.float32) * pca.std(0)
    parts = {f"noise_{k}": centred + k * noise for k in (0.3, 1.0, 3.0)}
    return {"plain": pca, "centred": centred, **parts}


def ours(adata: anndata.AnnData) -> dict[str, dict]:
    """As `atlasmap score-embeddings` does."""
    keep_jax()
    keep_numba("pynndescent")
    settings, pca = BenchmarkSettings(), unintegrated_pca(adata.X)
    batch, label = (adata.obs[key].astype(str).to_numpy() for key in ("batch", "label"))
    everyone, exact = np.ones(adata.n_obs, bool), adata.n_obs <= settings.split_above
    return {
        name: score_embedding(
            Embedded(x, pca, batch, label), everyone, settings.n_neighbors, exact=exact, name=name
        )
        for name, x in adata.obsm.items()
    }


def theirs(adata: anndata.AnnData) -> dict[str, dict]:
    """As the tutorial of scib-metrics does."""
    import scanpy
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    names, cells = list(adata.obsm), adata.copy()
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    scanpy.pp.pca(cells)
    benchmarker = Benchmarker(
        cells, batch_key="batch", label_key="label", embedding_obsm_keys=names,
        pre_integrated_embedding_obsm_key="X_pca", n_jobs=-1,
        bio_conservation_metrics=BioConservation(), batch_correction_metrics=BatchCorrection(),
    )  # fmt: skip
    benchmarker.benchmark()
    found = benchmarker.get_results(min_max_scale=False).loc[names]
    return json.loads(found.astype(float).T.to_json())


def main(tool: str, file: Path) -> None:
    """Score and print."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    adata, began = anndata.read_h5ad(file), time.perf_counter()
    values = (ours if tool == "atlasmap" else theirs)(adata)
    told = {"seconds": time.perf_counter() - began, "peak_mb": peak_mb(), "values": values}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
