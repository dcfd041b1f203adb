"""config/hlca.yaml from end to end, with a model of the published one's shape that is made here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from tiny import ROOT, snakemake

from atlasmap.data.registry import Registry
from atlasmap.data.simulate import simulate
from atlasmap.exchange.exporting import write_save
from atlasmap.mapping.latent import MEAN, VARIANCE
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent
from atlasmap.settings import ScanviSettings, ScviSettings, SimulateSettings, TrainSettings

DATA = ROOT.parent / "shared" / "data"
LEVELS = [f"ann_level_{k}" for k in range(1, 6)]
CELL_TYPES = ["Basal resting", "AT1", "AT2", "EC arterial", "Club (nasal)", "Club (non-nasal)"]
pytestmark = pytest.mark.skipif(
    not (DATA / "hlca_gene_order.csv").is_file(), reason="needs the development data in ../shared"
)


@pytest.fixture(scope="module")
def cells():
    """Reference and query with the atlas's genes, cell types and their five levels."""
    genes = pd.read_csv(DATA / "hlca_gene_order.csv")
    types = pd.read_csv(DATA / "hlca_celltypes.csv", index_col=0)
    adata = simulate(
        SimulateSettings(
            n_cells=700, n_genes=len(genes), n_reference_batches=3, n_query_batches=1,
            n_lineages=3, n_types_per_lineage=2, seed=2,
        )
    )  # fmt: skip
    adata.var = genes.set_index("gene_id")[["gene_symbol"]]
    names = dict(zip(sorted(adata.obs["cell_type"].unique()), CELL_TYPES, strict=False))
    label = adata.obs["cell_type"].astype(str).map(names)
    for k, level in enumerate(LEVELS, start=1):
        adata.obs[level] = types.loc[label.fillna("AT1"), f"Level_{k}"].to_numpy()
    adata.obs["scanvi_label"] = label.fillna("unlabeled").to_numpy()
    adata.obs["dataset"] = adata.obs["batch"].astype(str)
    return adata


@pytest.fixture(scope="module")
def saved(cells, tmp_path_factory):
    """model.pt and adata.h5ad in the form of scvi-tools 0.20, minified."""
    reference = cells[cells.obs["role"] == "reference"].copy()
    reference.obs["batch"], reference.obs["label"] = (
        pd.Categorical(reference.obs[key].astype(str)) for key in ("dataset", "scanvi_label")
    )
    reference.X = sparse.csr_matrix(reference.X, dtype=np.float32)
    reference.uns["unlabeled_category"] = "unlabeled"
    registry = Registry.of(reference)
    few = TrainSettings(max_epochs=15)
    # the atlas's own architecture (scArches' setting, covariates in the first layers alone)
    settings = ScviSettings(n_latent=30, deeply_inject_covariates=False, train=few)
    cpu = torch.device("cpu")
    scvi, _ = fit_scvi(reference, registry, settings, 0, cpu)
    scanvi, split = fit_scanvi(reference, scvi, ScanviSettings(train=few), "prefix", 0, cpu)
    folder = tmp_path_factory.mktemp("hlca")
    write_save(scanvi, folder, reference_latent(reference, scanvi, split, cpu))
    content = torch.load(folder / "model.pt", weights_only=False)  # our own file
    old = content["attr_dict"]["registry_"]
    old["scvi_version"] = "0.20.3"
    old["setup_args"] |= {"batch_key": "dataset", "labels_key": "scanvi_label"}
    old["field_registries"]["batch"]["state_registry"]["original_key"] = "dataset"
    old["field_registries"]["labels"]["state_registry"]["original_key"] = "scanvi_label"
    for name in ("latent_qzm", "latent_qzv", "observed_lib_size", "minify_type"):
        del old["field_registries"][name]
    inner = content["attr_dict"]["init_params_"]["kwargs"]["model_kwargs"]
    inner.pop("classifier_parameters")  # older versions had none: softmax was all there was
    torch.save(content, folder / "model.pt")
    adata = anndata.read_h5ad(folder / "adata.h5ad")
    for ending in (MEAN, VARIANCE):
        adata.obsm[f"_scanvi{ending}"] = adata.obsm.pop(f"scanvi{ending}")
    for key in ("dataset", "scanvi_label", *LEVELS):
        adata.obs[key] = reference.obs[key].to_numpy()
    adata.var = reference.var.copy()
    adata.obs = adata.obs.drop(columns=["batch", "label"])
    adata.write_h5ad(folder / "adata.h5ad")
    return folder


def test_a_query_is_mapped_onto_the_published_form(cells, saved, tmp_path, httpserver):
    for name in ("model.pt", "adata.h5ad"):
        data = (saved / name).read_bytes()
        httpserver.expect_request(f"/{name}").respond_with_data(data)
    query = cells[cells.obs["role"] == "query"].copy()
    truth = query.obs["scanvi_label"].astype(str)
    query.var = pd.DataFrame(index=pd.Index(query.var["gene_symbol"].to_numpy()))  # by symbol
    query.obs = query.obs[["batch"]].rename(columns={"batch": "donor"})
    query.write_h5ad(tmp_path / "my_query.h5ad")
    sheet = (ROOT / "config/hlca.tsv").read_text()
    (tmp_path / "hlca.tsv").write_text(sheet)
    reference = {name: httpserver.url_for(f"/{file}") for name, file in (
        ("scvi_tools", "model.pt"), ("adata", "adata.h5ad"))}  # fmt: skip
    config = (ROOT / "config/hlca.yaml").read_text().replace("config/hlca.tsv", "hlca.tsv")
    for key, url in reference.items():
        config, n = re.subn(rf"^  {key}: \S+$", f"  {key}: {url}", config, flags=re.MULTILINE)
        assert n == 1
    (tmp_path / "config.yaml").write_text(config.replace("max_epochs: 500", "max_epochs: 30"))
    snakemake(tmp_path)
    top = tmp_path / "results/hlca"
    contract = json.loads((top / "data/contract.json").read_text())
    taken = contract["reference"]
    assert taken["taken_over"]["version"] == "0.20.3" and taken["classifier"] == "prefix"
    assert taken["n_genes"] == 2000 and taken["has_symbols"]
    [facts] = contract["queries"].values()
    assert facts["genes_matched"] == {"query": "index", "reference": "symbols"}
    labels = pd.read_csv(top / "labels.csv", index_col="barcode")
    assert {f"knn_{level}" for level in LEVELS} <= set(labels)
    assert {f"knn_{level}_uncertainty" for level in LEVELS} <= set(labels)
    types = pd.read_csv(DATA / "hlca_celltypes.csv", index_col=0)
    known = truth.isin(labels["predicted_label"].unique())
    right = labels.loc[known.index[known], "predicted_label"] == truth[known]
    assert right.mean() > 0.8
    for k, level in enumerate(LEVELS, start=1):
        expected = types.loc[truth[known], f"Level_{k}"].to_numpy()
        found = labels.loc[known.index[known], f"knn_{level}"].to_numpy()
        assert (found == expected).mean() > 0.8, level
    card = (top / "seed0/reference/scanvi_prefix/card.md").read_text()
    assert "scvi-tools 0.20.3" in card and "Left out" in card
    atlas = anndata.read_h5ad(top / "atlas.h5ad")
    assert set(LEVELS) <= set(atlas.obs) and atlas.n_obs == cells.n_obs


def test_the_wrong_classifier_is_named(saved, tmp_path):
    tool = Path(sys.executable).parent / "atlasmap"
    run = subprocess.run(
        [tool, "take-reference", saved, "--out", tmp_path / "b", "--scvi_tools", "--variant",
         "fixed", "--unlabeled", "unlabeled"], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode and "REFERENCE_DIFFERS" in run.stderr
    assert "is 'prefix', the config says 'fixed'" in run.stderr
