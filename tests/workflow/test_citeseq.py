"""CITE-seq from end to end: a reference with a missing panel, a query batch without proteins."""

import anndata
import numpy as np
import pandas as pd
from tiny import snakemake

from atlasmap.data.registry import PROTEIN_NAMES
from atlasmap.data.simulate import simulate
from atlasmap.mapping.denoise import OF_PROTEINS
from atlasmap.report.atlas import said_in_short
from atlasmap.report.found import Final, Found
from atlasmap.settings import SimulateSettings

CONFIG = """
atlas: tiny
datasets: sheet.tsv
modality: citeseq
strategies: [per_batch, joint]
data: {n_top_genes: null}
totalvi: {n_hidden: 32, n_latent: 8, train: {max_epochs: 40}, classifier: {max_epochs: 30}}
totalvi_surgery: {max_epochs: 10}
denoise: {n_samples: 5}
calibration: {folds: 2}
device: cpu
"""
WANTED = [
    "atlas.h5ad", "labels.csv", "benchmark/classification.csv", "benchmark/opinions.csv",
    "benchmark/gene_gap.csv", "benchmark/certificates.csv", "benchmark/history.csv",
    "figures/protein_dots.svg", "figures/loss_curves.svg", "figures/embeddings.svg",
    "seed0/reference/totalvi/card.md", "audit/strategies.json", "explorer.html",
    "data/contract.json",
]  # fmt: skip


def write_inputs(folder):
    """Reference and query as a user has them; one query batch is RNA alone."""
    cells = simulate(
        SimulateSettings(n_cells=900, n_genes=150, n_reference_batches=3, n_query_batches=2,
                         n_lineages=3, n_types_per_lineage=2, proteins=15)
    )  # fmt: skip
    for key in [key for key in cells.obsm if key != "protein_expression"]:
        del cells.obsm[key]
    cells[cells.obs["role"] == "reference"].write_h5ad(folder / "reference.h5ad")
    cells[cells.obs["batch"] == "query0"].write_h5ad(folder / "cite.h5ad")
    rna = cells[cells.obs["batch"] == "query1"].copy()
    del rna.obsm["protein_expression"]
    rna.write_h5ad(folder / "rna.h5ad")
    (folder / "sheet.tsv").write_text(
        "id\tpath\trole\tbatch_key\tlabel_key\ttruth_key\tproteins\tprotein_zeros\n"
        "reference\treference.h5ad\treference\tbatch\tcell_type\t\t\tmissing\n"
        "cite\tcite.h5ad\tquery\tbatch\t\tcell_type\t\tmissing\n"
        "rna\trna.h5ad\tquery\tbatch\t\tcell_type\tnone\t\n"
    )
    (folder / "config.yaml").write_text(CONFIG)


def test_citeseq_is_mapped_and_denoised(tmp_path):
    write_inputs(tmp_path)
    snakemake(tmp_path, "--", *(f"results/tiny/{name}" for name in WANTED))
    top = tmp_path / "results/tiny"
    atlas = anndata.read_h5ad(top / "atlas.h5ad")
    assert len(atlas.uns[PROTEIN_NAMES]) == 15
    assert all(np.isfinite(atlas.obsm[key]).all() for key in OF_PROTEINS)  # imputed where missing
    assert set(atlas.obs["verdict"]) <= {"reference", "confident", "ambiguous", "novel"}

    scores = pd.read_csv(top / "benchmark/classification.csv", keep_default_na=False)
    query = scores[(scores["split"] == "query") & (scores["batch"] != "all")]
    own = query[(query["method"] == "classifier") & (query["strategy"] == "per_batch")]
    assert set(own["batch"]) == {"query0", "query1"}
    assert set(own["probabilities"]) == {"raw", "calibrated"}
    assert own.loc[own["batch"] == "query0", "accuracy"].astype(float).min() > 0.5
    others = {"knn", "random_forest", "logistic", "majority", "classifier"}
    assert others <= set(scores["method"])

    certificates = pd.read_csv(top / "benchmark/certificates.csv")
    assert certificates["reference_unchanged"].all() and len(certificates) == 3
    told = " ".join(said_in_short(Found(top, Final(0, "totalvi", "per_batch"))))
    assert "did not move" in told and "are confident" in told and "are named right" in told
    assert '"group": "Proteins"' in (top / "explorer.html").read_text(encoding="utf-8")

    gap = pd.read_csv(top / "benchmark/gene_gap.csv")
    assert set(gap.loc[gap["batch"] == "query1", "n_proteins_missing"]) == {15}

    whole = anndata.read_h5ad(top / "seed0/mapping/totalvi/per_batch/query0/denoised.h5ad")
    assert {"denoised_rna", "denoised_rna_lower", "denoised_rna_upper"} <= set(whole.layers)
    names = np.asarray(whole.uns[PROTEIN_NAMES])
    missing = names[np.isnan(whole.obsm["protein_counts"]).all(0)]
    assert list(missing) == ["P12", "P13", "P14"]
    card = (top / "seed0/reference/totalvi/card.md").read_text()
    assert "TOTALVI" in card and "citeseq" in card
