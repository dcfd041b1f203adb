"""Numbers of scvi-tools 1.4.2, reproduced with its weights (promise 2 of the design)."""

import anndata
import numpy as np
import pytest
import torch
from golden import CITESEQ, SHARED, load_citeseq, load_golden, needs_shared
from golden_numbers import differences

from atlasmap.data.proteins import put
from atlasmap.data.registry import PROTEINS
from atlasmap.exchange.importing import Cells, bundle_of, latent_in
from atlasmap.exchange.saves import read_save
from atlasmap.mapping.denoise import denoise
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.query import map_query
from atlasmap.models.ops import kl_standard_normal
from atlasmap.settings import DenoiseSettings, TotalviSurgerySettings

pytestmark = needs_shared
SCANVI = ["scanvi_fix", "scanvi_prefix", "scanvi_linear", "scanvi_fix_batchnorm"]
SCANVI += ["scanvi_fix_surgery"]
ALL = ["scvi", "scvi_batchnorm_zinb", *SCANVI]


@pytest.mark.parametrize("name", ALL)
def test_all_that_a_model_computes(bodies, name):
    found = list(differences(load_golden(name)))
    assert len(found) == (15 if name in SCANVI else 6)
    for each in found:
        assert each.found < each.most, each


@pytest.mark.parametrize("name", SCANVI)
def test_labels_are_in_their_order(name):
    golden = load_golden(name)
    assert list(golden.expected["predict_labels"]) == golden.bundle.registry.labels


def test_kl_z_of_the_golden_latent_against_scipy_integration():
    mean, var = torch.tensor([0.3, -1.2]), torch.tensor([0.5, 2.0])
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    for m, v, kl in zip(mean, var, kl_standard_normal(mean, var), strict=True):
        q = torch.distributions.Normal(m.double(), v.double().sqrt()).log_prob(grid)
        p = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
        assert abs(torch.trapezoid(q.exp() * (q - p), grid) - kl) < 1e-5


@pytest.mark.parametrize("name", ["totalvi", "totalvi_missing", "totalvi_surgery"])
def test_totalvi(bodies, name):
    golden, proteins = load_citeseq(name)
    assert proteins == list(golden.expected["protein_names"])
    found = list(differences(golden))
    assert len(found) == 13
    for each in found:
        assert each.found < each.most, each


def citeseq_cells(genes) -> anndata.AnnData:
    """Both 10x files as the golden models were given them."""
    parts = [anndata.read_h5ad(SHARED / "data" / f"{name}.h5ad") for name in CITESEQ]
    panels = [part.obsm["protein_expression"] for part in parts]
    shared = panels[0].columns.intersection(panels[1].columns)
    for part, panel in zip(parts, panels, strict=True):
        part.obsm["protein_expression"] = panel[shared]
    return anndata.concat(parts, join="inner")[:, list(genes)].copy()


@pytest.mark.parametrize("name", ["totalvi", "totalvi_missing"])
def test_totalvi_comes_with_its_cells_and_is_mapped_onto(name):
    folder = SHARED / "golden" / name
    save = read_save(folder)
    bundle = bundle_of(save, folder / "model.pt", None)
    adata = citeseq_cells(save.genes)
    latent = latent_in(Cells(adata, "a folder/its cells.h5ad", layer="X"), bundle, save)
    with np.load(folder / "expected.npz") as expected:
        at = latent.obs_names.get_indexer(expected["obs_names"])
        assert np.abs(latent_of(latent)[at] - expected["qz_mean"]).max() < 1e-5
    query = adata[:60].copy()
    query.obs["batch"] = "new"
    put(query, query.obsm["protein_expression"][save.proteins])
    query.obsm[PROTEINS][:, 3] = np.nan
    mapped = map_query(bundle, query, TotalviSurgerySettings(max_epochs=2), "per_batch", 0)
    assert mapped.certificate["reference"]["unchanged"]
    assert mapped.bundle.registry.proteins_missing["new"] == [save.proteins[3]]
    denoised = denoise(mapped.bundle, query, DenoiseSettings(n_samples=2, rna=False))
    assert np.isfinite(denoised.obsm["denoised_protein"]).all()
