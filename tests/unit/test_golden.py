"""Numbers of scvi-tools 1.4.2, reproduced with its weights (promise 2 of the design)."""

import anndata
import numpy as np
import pytest
import torch
from golden import CITESEQ, SHARED, load_citeseq, load_golden, needs_shared

from atlasmap.data.proteins import put
from atlasmap.data.registry import PROTEINS
from atlasmap.denoise import denoise
from atlasmap.exchange.importing import Cells, bundle_of, latent_in
from atlasmap.exchange.saves import read_save
from atlasmap.mapping import map_query
from atlasmap.minified import latent_of
from atlasmap.models.normal import kl_standard_normal, log_normal
from atlasmap.settings import DenoiseSettings, TotalviSurgerySettings

pytestmark = needs_shared
SCANVI = ["scanvi_fix", "scanvi_prefix", "scanvi_linear", "scanvi_fix_batchnorm"]
SCANVI += ["scanvi_fix_surgery"]
ALL = ["scvi", "scvi_batchnorm_zinb", *SCANVI]


def relative(ours, theirs, floor: float = 1e-6) -> float:
    """Largest relative error; a log-density (nats) near zero is measured against one nat."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    return float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), floor)))


@pytest.mark.parametrize("name", ALL)
def test_latent_decoder_and_likelihood(name):
    golden = load_golden(name)
    scvi = getattr(golden.model, "scvi", golden.model)
    with torch.no_grad():
        posterior = scvi.inference(golden.cells, None)
        px = scvi.generative(posterior.z, posterior.library, golden.cells, None)
        log_prob = px.log_prob(golden.cells.x).sum(1)
    expected = golden.expected
    assert np.abs(posterior.latent.mean - expected["qz_mean"]).max() < 1e-5
    assert np.abs(posterior.latent.var - expected["qz_var"]).max() < 1e-5
    assert np.abs(posterior.library - expected["library"]).max() < 1e-5
    assert relative(px.mean, expected["px_mean"]) < 1e-4
    assert relative(px.theta.expand_as(px.mean), expected["px_theta"]) < 1e-5
    assert relative(log_prob, expected["log_prob_sum"]) < 1e-4


@pytest.mark.parametrize("name", SCANVI)
def test_labels_and_unlabelled_loss_terms(name):
    golden = load_golden(name)
    model, expected = golden.model, golden.expected
    with torch.no_grad():
        posterior = model.scvi.inference(golden.cells, None)
        out = model.classify(golden.cells, None)
        probs = model.classifier.probabilities(out)
        labels = torch.arange(model.n_labels)[:, None]
        log_pz1, kl_z2 = model.label_terms(posterior.z, labels, None)
        log_qz1 = log_normal(posterior.z, posterior.latent.mean, posterior.latent.var).sum(1)
        kl_y = model.kl_labels(probs)
    assert np.abs(out - expected["classifier_output"]).max() < 1e-4
    assert np.abs(probs - expected["predict_soft"]).max() < 1e-5
    assert list(expected["predict_labels"]) == golden.labels
    assert relative(log_pz1, expected["log_pz1"], 1.0) < 1e-4
    assert relative(kl_z2, expected["kl_z2"]) < 1e-4
    assert relative(log_qz1, expected["log_qz1"], 1.0) < 1e-4
    assert np.abs(kl_y - expected["kl_y"]).max() < 1e-5


def test_the_unlabelled_loss_is_the_sum_of_its_terms():
    golden = load_golden("scanvi_fix")
    model, e = golden.model, golden.expected
    probs = e["predict_soft"].T
    with torch.no_grad():
        loss = model.loss(golden.cells, None, 0.5)
    reconstruction = -e["log_prob_sum"] + e["log_qz1"] - (probs * e["log_pz1"]).sum(0)
    kl = (probs * e["kl_z2"]).sum(0) + e["kl_y"]
    assert relative(loss.sums["reconstruction_loss"], reconstruction.sum()) < 1e-4
    assert relative(loss.sums["kl_local"], kl.sum()) < 1e-4
    assert relative(loss.total, (reconstruction + 0.5 * kl).mean()) < 1e-4


def test_kl_z_of_the_golden_latent_against_scipy_integration():
    mean, var = torch.tensor([0.3, -1.2]), torch.tensor([0.5, 2.0])
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    for m, v, kl in zip(mean, var, kl_standard_normal(mean, var), strict=True):
        q = torch.distributions.Normal(m.double(), v.double().sqrt()).log_prob(grid)
        p = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
        assert abs(torch.trapezoid(q.exp() * (q - p), grid) - kl) < 1e-5


@pytest.mark.parametrize("name", ["totalvi", "totalvi_missing", "totalvi_surgery"])
def test_totalvi(name):
    golden, proteins = load_citeseq(name)
    model, cells, expected = golden.model, golden.cells, golden.expected
    assert proteins == list(expected["protein_names"])
    with torch.no_grad():
        posterior = model.inference(cells, None)
        decoded = model.decode(posterior.z, posterior.library, cells, None)
    rna, py = decoded.rna, decoded.protein
    assert np.abs(posterior.latent.mean - expected["qz_mean"]).max() < 1e-5
    assert np.abs(posterior.latent.var - expected["qz_var"]).max() < 1e-5
    for ours, theirs in (
        (rna.rate, "px_rate"),
        (rna.rate / cells.x.sum(1, keepdim=True), "px_scale"),
        (rna.theta[0], "px_r"),
        (py.theta[0], "py_r"),
        (py.back_sd, "py_back_beta"),
        (py.fore_scale, "py_fore_scale"),
    ):
        assert relative(ours, expected[theirs]) < 1e-4, theirs
    efficiency = expected["log_per_batch_efficiency"].T[cells.codes[0]]
    for ours, theirs in (  # logs and logits, which may be near zero
        (py.back_mean, expected["py_back_alpha"]),
        (py.mixing, expected["py_mixing"]),
        (py.log_efficiency, efficiency),
    ):
        assert relative(ours, theirs, 1.0) < 1e-4
    background = np.exp(expected["py_back_alpha"])
    assert relative(py.background, background) < 1e-4
    assert relative(py.foreground, background * expected["py_fore_scale"]) < 1e-4


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
