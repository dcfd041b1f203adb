"""scvi-tools' models in ours and ours in scvi-tools: the same latent, labels and likelihoods."""

import anndata
import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi", reason="needs scvi-tools: make parity")

from atlasmap.bundle import load, load_delta, save, save_delta  # noqa: E402
from atlasmap.commands.exchange import export_scvi, import_scvi  # noqa: E402
from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference  # noqa: E402
from atlasmap.data.registry import Registry  # noqa: E402
from atlasmap.data.sheet import Dataset  # noqa: E402
from atlasmap.data.simulate import simulate  # noqa: E402
from atlasmap.exchange.importing import bundle_of  # noqa: E402
from atlasmap.exchange.saves import read_save  # noqa: E402
from atlasmap.mapping.embed import embed  # noqa: E402
from atlasmap.mapping.encode import encode  # noqa: E402
from atlasmap.mapping.latent import latent_of  # noqa: E402
from atlasmap.mapping.query import map_query  # noqa: E402
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent  # noqa: E402
from atlasmap.models.surgery import vae_of  # noqa: E402
from atlasmap.settings import (  # noqa: E402
    DataConfig,
    DataSettings,
    ScanviSettings,
    ScviSettings,
    SimulateSettings,
    SurgerySettings,
    TrainSettings,
)

CPU = torch.device("cpu")
CONFIG = DataConfig(
    data=DataSettings(n_top_genes=None),
    categorical_covariates=["donor"],
    continuous_covariates=["age"],
)
FEW = TrainSettings(max_epochs=3)
ARCHES = {"encode_covariates": True, "use_batch_norm": "none", "use_layer_norm": "both"}
KINDS = {
    "arches": ARCHES | {"gene_likelihood": "nb"},
    "default": {},
    "gene-batch, learned library": ARCHES
    | {"dispersion": "gene-batch", "use_observed_lib_size": False},
    "shallow": ARCHES | {"deeply_inject_covariates": False, "n_layers": 2},
    "poisson": {"gene_likelihood": "poisson", "n_layers": 2, "dropout_rate": 0.2},
}
CLASSIFIERS = {
    "prefix": {"classifier_parameters": {"logits": False}},
    "fixed": {},
    "linear": {"linear_classifier": True},
}


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Sheet rows of a small simulated atlas with two covariates."""
    adata = simulate(
        SimulateSettings(
            n_cells=500, n_genes=60, n_reference_batches=3, n_query_batches=1, n_lineages=3,
            n_types_per_lineage=2, seed=1,
        )
    )  # fmt: skip
    adata.obs["donor"] = np.array(["c", "a", "b"])[np.arange(adata.n_obs) % 3]
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    path = tmp_path_factory.mktemp("data") / "atlas.h5ad"
    adata.write_h5ad(path)
    shared = {"path": str(path), "batch_key": "batch"}
    return [
        Dataset(id=role, role=role, obs_filter=f"role == {role!r}", **shared, **keys)
        for role, keys in (
            ("reference", {"label_key": "cell_type"}),
            ("query", {"truth_key": "cell_type"}),
        )
    ]


@pytest.fixture(scope="session")
def reference(rows):
    return prepare_reference(rows[:1], [rows[0].path], CONFIG).adata


@pytest.fixture(scope="session")
def query(rows, reference):
    registry = Registry.of(reference)
    whole = checked_dataset(rows[1], rows[1].path, CONFIG)
    return prepare_query(whole, rows[1], "query0", registry, CONFIG).adata


def theirs_on(reference, kind: str, covariates: bool = True):
    """A SCVI of scvi-tools, barely trained."""
    scvi.settings.seed = 0
    adata = reference.copy()
    scvi.model.SCVI.setup_anndata(
        adata, batch_key="batch", labels_key="label",
        categorical_covariate_keys=["donor"] if covariates else None,
        continuous_covariate_keys=["age"] if covariates else None,
    )  # fmt: skip
    model = scvi.model.SCVI(adata, n_hidden=16, n_latent=5, **KINDS[kind])
    model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    return model


def agree(bundle, model, adata, name: str) -> None:
    """Latent, decoder mean, likelihood (and label probabilities) of one model in both."""
    cells = encode(bundle.registry, adata, CPU)
    ours = embed(bundle.model, cells)
    mean, var = model.get_latent_representation(return_dist=True)
    assert np.abs(ours.mean - mean).max() < 1e-5, name
    assert np.abs(ours.var - var).max() < 1e-5, name
    if ours.soft_labels is not None:
        theirs = model.predict(soft=True)
        assert list(theirs.columns) == bundle.registry.labels
        assert np.abs(ours.soft_labels - theirs.to_numpy()).max() < 1e-5, name
    whole = cells.minibatch(np.arange(len(cells)))
    inner = vae_of(bundle.model)
    posterior = inner.inference(whole, None)
    ours_px = inner.generative(posterior.latent.mean, posterior.library, whole, None)
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=len(cells))))
    with torch.no_grad():
        arguments = model.module._get_generative_input(
            tensors, {"z": torch.tensor(mean), "library": posterior.library}
        )
        px = model.module.generative(**arguments)["px"]
    relative = (ours_px.mean - px.mean).abs() / px.mean.abs().clamp(min=1e-6)
    assert float(relative.max()) < 1e-4, name
    likelihood = px.log_prob(whole.x).sum(1)
    assert float(((ours_px.log_prob(whole.x).sum(1) - likelihood) / likelihood).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_their_models_come_in(reference, tmp_path, kind):
    model = theirs_on(reference, kind)
    model.save(str(tmp_path / "scvi"), save_anndata=True)
    agree(bundle_of(read_save(tmp_path / "scvi"), tmp_path / "scvi/model.pt", None), model,
          reference, kind)  # fmt: skip
    for variant, options in CLASSIFIERS.items():
        scvi.settings.seed = 0
        named = scvi.model.SCANVI.from_scvi_model(model, "Unknown", **options)
        named.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
        folder = tmp_path / variant
        named.save(str(folder))
        bundle = bundle_of(read_save(folder), folder / "model.pt", None)
        assert bundle.about["variant"] == variant
        agree(bundle, named, reference, f"{kind} {variant}")


def test_their_minified_model_comes_in(reference, tmp_path):
    model = theirs_on(reference, "arches")
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = (
        model.get_latent_representation(return_dist=True)
    )
    expected = model.adata.obsm["X_latent_qzm"].copy()
    model.minify_adata()
    model.save(str(tmp_path / "save"), save_anndata=True)
    import_scvi(tmp_path / "save", out=tmp_path / "bundle")
    latent = anndata.read_h5ad(tmp_path / "bundle/reference_latent.h5ad")
    assert np.array_equal(latent_of(latent), expected)
    assert list(latent.obs["batch"]) == list(reference.obs["batch"])


@pytest.mark.parametrize("variant", ["none", *CLASSIFIERS])
@pytest.mark.parametrize("covariates", [False, True])
def test_ours_go_out_also_after_surgery(reference, query, tmp_path, variant, covariates):
    if not covariates:
        reference = reference.copy()
        reference.uns |= {"categorical_covariates": [], "continuous_covariates": []}
    registry = Registry.of(reference)
    settings = ScviSettings(n_hidden=16, n_latent=5, train=FEW)
    bundle, split = fit_scvi(reference, registry, settings, 0, CPU)
    name = "SCVI"
    if variant != "none":
        name = "SCANVI"
        bundle, split = fit_scanvi(reference, bundle, ScanviSettings(train=FEW), variant, 0, CPU)
    save(bundle, tmp_path / "b")
    latent = reference_latent(reference, bundle, split, CPU)
    latent.write_h5ad(tmp_path / "b/reference_latent.h5ad")
    export_scvi(tmp_path / "b", out=tmp_path / "out")
    cls = getattr(scvi.model, name)
    model = cls.load(str(tmp_path / "out"), reference.copy(), accelerator="cpu")
    agree(bundle, model, reference, variant)
    alone = cls.load(str(tmp_path / "out"), accelerator="cpu")  # the minified reference beside it
    assert alone.minified_data_type == "latent_posterior_parameters"
    assert np.abs(alone.get_latent_representation() - latent_of(latent)).max() < 1e-5
    # (scvi-tools 1.4.2 itself cannot predict from minified data: classify() takes no posterior)
    mapping = map_query(bundle, query, SurgerySettings(max_epochs=3), "per_batch", 0)
    save_delta(mapping.bundle, tmp_path / "delta", mapping.new)
    export_scvi(tmp_path / "delta", out=tmp_path / "whole", reference=tmp_path / "b")
    cells = query.copy()
    cells.obs["label"] = "Unknown"
    mapped = cls.load(str(tmp_path / "whole"), cells, accelerator="cpu")
    again = load_delta(tmp_path / "delta", load(tmp_path / "b", CPU))
    agree(again, mapped, query, f"{variant} after surgery")


def test_a_colleague_maps_onto_our_export(reference, query, scanvi_folder, tmp_path):
    export_scvi(scanvi_folder, out=tmp_path / "out")
    cells = query.copy()
    cells.obs["label"] = "Unknown"
    model = scvi.model.SCANVI.load_query_data(cells, str(tmp_path / "out"), accelerator="cpu")
    model.train(max_epochs=2, plan_kwargs={"weight_decay": 0.0}, accelerator="cpu",
                enable_progress_bar=False)  # fmt: skip
    assert set(model.predict()) <= set(reference.obs["label"])


@pytest.fixture
def scanvi_folder(reference, tmp_path):
    """A scANVI bundle of ours."""
    registry = Registry.of(reference)
    settings = ScviSettings(n_hidden=16, n_latent=5, train=FEW)
    start = fit_scvi(reference, registry, settings, 0, CPU)[0]
    bundle = fit_scanvi(reference, start, ScanviSettings(train=FEW), "fixed", 0, CPU)[0]
    save(bundle, tmp_path / "ours")
    return tmp_path / "ours"


def test_there_surgery_here_and_back(reference, query, tmp_path):
    model = theirs_on(reference, "arches", covariates=False)
    scvi.settings.seed = 0
    named = scvi.model.SCANVI.from_scvi_model(model, "Unknown")
    named.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    named.save(str(tmp_path / "theirs"))
    import_scvi(tmp_path / "theirs", out=tmp_path / "bundle")
    start = load(tmp_path / "bundle", CPU)
    mapping = map_query(start, query, SurgerySettings(max_epochs=3), "per_batch", 0)
    save_delta(mapping.bundle, tmp_path / "delta", mapping.new)
    export_scvi(tmp_path / "delta", out=tmp_path / "back", reference=tmp_path / "bundle")
    cells = query.copy()
    cells.obs["label"] = "Unknown"
    back = scvi.model.SCANVI.load(str(tmp_path / "back"), cells, accelerator="cpu")
    assert np.abs(back.get_latent_representation() - mapping.latent.obsm["X_latent"]).max() < 1e-5
    found = back.predict(soft=True).to_numpy()
    assert np.abs(found - mapping.latent.obsm["soft_labels"]).max() < 1e-5
