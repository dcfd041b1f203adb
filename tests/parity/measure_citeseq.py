"""Simulated CITE-seq against its truth, ours and scvi-tools side by side.

snakemake --configfile tests/parity/simulated_citeseq_atlas.yaml \\
    --config atlas=simulated_citeseq_truth 'totalvi_surgery={max_epochs: 100}'
python tests/parity/measure_citeseq.py results/simulated_citeseq_truth

Labels: accuracy over the query's known types (ours: the classifier, and random forest as theirs).
Foreground: AUROC of the foreground probability, entries that were measured, query cells. Imputed:
Pearson correlation of log(1 + imputed) with log(1 + true foreground mean), proteins that query0
lacks.
"""

import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from pydantic import TypeAdapter
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from atlasmap.bundle import read_about
from atlasmap.data.registry import PROTEINS
from atlasmap.mapping.reference import warmed_by_step
from atlasmap.parity import peer
from atlasmap.settings import TotalviSettings, TotalviSurgerySettings


def against_truth(
    truth: anndata.AnnData, measured: np.ndarray, foreground: np.ndarray, denoised: np.ndarray
) -> dict[str, float]:
    """AUROC of measured entries, correlation of those that were not (cells × proteins)."""
    is_fore = truth.obsm["protein_foreground"].to_numpy()
    out = {"foreground_auroc": roc_auc_score(is_fore[measured], foreground[measured])}
    if not measured.all():
        true = np.log1p(truth.obsm["protein_denoised_true"].to_numpy())
        absent = np.flatnonzero(~measured.all(0))
        found = [np.corrcoef(np.log1p(denoised[:, k]), true[:, k])[0, 1] for k in absent]
        out["imputed_pearson"] = float(np.mean(found))
    return out


def ours(top: Path, seed: int, truth: anndata.AnnData) -> dict[str, float]:
    """Of a finished run's seed."""
    scores = pd.read_csv(top / "benchmark/opinions.csv", dtype={"batch": str})
    scores = scores[(scores["seed"] == seed) & (scores["strategy"] == "per_batch")]
    by_method = scores.set_index("method")["accuracy"]
    out = {f"accuracy_{method}": by_method[method] for method in ("classifier", "random_forest")}
    parts = []
    for path in sorted(top.glob(f"seed{seed}/mapping/totalvi/per_batch/*/denoised.h5ad")):
        cells = anndata.read_h5ad(path)
        parts.append(
            against_truth(
                truth[cells.obs_names], ~np.isnan(cells.obsm[PROTEINS]),
                cells.obsm["foreground_probability"], cells.obsm["denoised_protein"],
            )
        )  # fmt: skip
    return out | pd.DataFrame(parts).mean().to_dict()


def theirs(top: Path, seed: int, truth: anndata.AnnData) -> dict[str, float]:
    """TOTALVI, trained, operated on batch by batch, with a random forest on its latent."""
    about = read_about(top / f"seed{seed}/reference/totalvi")
    reference = anndata.read_h5ad(top / "data/reference.h5ad")
    settings = TypeAdapter(TotalviSettings).validate_python(about["totalvi"])
    settings = replace(settings, train=warmed_by_step(settings.train, reference.n_obs))
    model = peer.train_totalvi(reference, settings, seed, [], [])
    latent = model.model.get_latent_representation()
    labels = reference.obs["label"].astype(str).to_numpy()
    forest = RandomForestClassifier(random_state=seed)
    forest.fit(latent[labels != "Unknown"], labels[labels != "Unknown"])
    parts, right = [], []
    for path in sorted((top / "data/queries").glob("*.h5ad")):
        query = anndata.read_h5ad(path)
        folder = top / f"seed{seed}/mapping/totalvi/per_batch" / path.stem
        surgery = TypeAdapter(TotalviSurgerySettings).validate_python(read_about(folder)["surgery"])
        mapped = peer.map_citeseq(model, query, surgery, seed).model
        true = query.obs["truth"].astype(str).to_numpy()
        known = np.isin(true, forest.classes_)
        said = forest.predict(mapped.get_latent_representation())
        right.append((said == true)[known])
        measured = ~np.isnan(query.obsm[PROTEINS])
        share = mapped.get_protein_foreground_probability(n_samples=25, return_mean=True)
        batches = sorted(set(reference.obs["batch"].astype(str)) - {"batch0"})
        _, protein = mapped.get_normalized_expression(
            n_samples=25, return_mean=True, transform_batch=batches
        )
        values = share.to_numpy(), protein.to_numpy()
        parts.append(against_truth(truth[query.obs_names], measured, *values))
    accuracy = {"accuracy_random_forest": float(np.concatenate(right).mean())}
    return accuracy | pd.DataFrame(parts).mean().to_dict()


def main(top: Path) -> None:
    """Print a row a seed and tool, and their means."""
    truth = anndata.read_h5ad(top / "data/sources/simulated_reference.h5ad")
    rows = []
    for folder in sorted(top.glob("seed*")):
        seed = int(folder.name.removeprefix("seed"))
        for tool, of in (("atlasmap", ours), ("scvi-tools", theirs)):
            rows.append({"tool": tool, "seed": seed} | of(top, seed, truth))
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print(table.groupby("tool").mean(numeric_only=True).drop(columns="seed").round(3).to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
