"""config/tabula_muris.yaml from end to end, on data of that shape that are made here."""

import json
import re

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from tiny import ROOT, snakemake

from atlasmap.data.simulate import simulate
from atlasmap.settings import SimulateSettings

FEW = {"scvi": 30, "surgery": 10}  # epochs


def marrow():
    """(Smart-seq2 with reads by gene length, 10x, gene lengths): cells of two tissues and sexes,
    some without a label, genes of either technology alone."""
    cells = simulate(
        SimulateSettings(
            n_cells=900, n_genes=2300, n_reference_batches=2, n_query_batches=2, n_lineages=3,
            n_types_per_lineage=2, seed=5,
        )
    )  # fmt: skip
    rng = np.random.default_rng(0)
    cells.var_names = [f"Gene{k}" for k in range(cells.n_vars)]
    unlabelled = rng.random(cells.n_obs) < 0.05
    obs = {
        "tissue": np.where(rng.random(cells.n_obs) < 0.9, "Marrow", "Liver"),
        "sex": np.where(rng.random(cells.n_obs) < 0.9, "female", "male"),
        "cell_ontology_class": cells.obs["cell_type"].astype(str).mask(unlabelled),
        "role": cells.obs["role"].astype(str),
    }
    cells.obs = pd.DataFrame(obs, index=cells.obs_names).astype("category")
    lengths = pd.Series(rng.lognormal(7.5, 0.8, cells.n_vars).round(3), index=cells.var_names)
    full = cells[cells.obs["role"] == "reference", 40:].copy()
    reads = full.X.toarray() * (6 * lengths[40:] / lengths.median()).to_numpy()
    full.X = sparse.csr_matrix(rng.poisson(reads), dtype=np.float32)
    droplet = cells[cells.obs["role"] == "query", :-40].copy()
    return full, droplet, lengths.iloc[:-60].sample(frac=1, random_state=0)


def test_labels_go_from_smart_seq2_to_10x(tmp_path, httpserver):
    full, droplet, lengths = marrow()
    full.write_h5ad(tmp_path / "23939711")
    droplet.write_h5ad(tmp_path / "23938934")
    lengths.to_csv(tmp_path / "gene_len.txt", sep=" ", header=False)
    sheet = (ROOT / "config/tabula_muris.tsv").read_text()
    for name in ("23939711", "23938934", "gene_len.txt"):
        data = (tmp_path / name).read_bytes()
        httpserver.expect_request(f"/{name}").respond_with_data(data)
        sheet, n = re.subn(rf"https://\S+/{name}", httpserver.url_for(f"/{name}"), sheet)
        assert n == 1
    (tmp_path / "sheet.tsv").write_text(sheet)
    config = (ROOT / "config/tabula_muris.yaml").read_text()
    config = config.replace("config/tabula_muris.tsv", "sheet.tsv")
    config = config.replace("n_latent: 30", f"n_latent: 30, train: {{max_epochs: {FEW['scvi']}}}")
    config += f"surgery: {{max_epochs: {FEW['surgery']}}}\ndevice: cpu\n"
    (tmp_path / "config.yaml").write_text(config)
    wanted = ["benchmark/opinions.csv", "figures/confusion_query.png", "figures/embeddings.png"]
    snakemake(tmp_path, "--", *(f"results/tabula_muris/{name}" for name in wanted))
    top = tmp_path / "results/tabula_muris"

    contract = json.loads((top / "data/contract.json").read_text())
    found = contract["reference"]
    assert found["n_genes"] == 2000 and found["genes_chosen"]["from"] == ["smartseq2", "droplet"]
    assert found["gene_lengths"]["smartseq2"]["n_genes_without_length"] == 60
    assert found["n_genes_shared"] == 2300 - 40 - 60
    [query] = contract["queries"].values()
    assert query["gene_overlap"] == 1
    kept = full.obs.query("tissue == 'Marrow' and sex == 'female'")["cell_ontology_class"].notna()
    assert found["n_cells"] == kept.sum()

    cohort = anndata.read_h5ad(top / "data/cohorts/all.h5ad")
    assert set(cohort.obs["label"][cohort.obs["role"] == "query"]) == {"Unknown"}
    epochs = pd.read_csv(top / "seed0/de_novo/all/scanvi_fixed/history.csv")["epoch"]
    assert epochs.max() in (19, 20)

    scores = pd.read_csv(top / "benchmark/opinions.csv", keep_default_na=False)
    of_scvi = scores[(scores["variant"] == "scvi") & (scores["strategy"] == "de_novo")]
    forest = of_scvi[of_scvi["method"] == "random_forest"]
    assert len(forest) == 1 and forest["accuracy"].iloc[0] > 0.7
    scores = pd.read_csv(top / "benchmark/classification.csv", keep_default_na=False)
    rows = (scores["batch"] == "all") & (scores["split"] == "query")
    rows &= (scores["method"] == "classifier") & (scores["probabilities"] == "raw")
    accuracy = scores[rows].set_index("strategy")["accuracy"]
    assert set(accuracy.index) == {"de_novo", "per_batch"} and (accuracy > 0.7).all()
    assert all((top / name).is_file() for name in wanted)
