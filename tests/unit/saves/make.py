"""Tiny models of a version of scvi-tools and what it computes from them, for test_saves.py.

python make.py FOLDER; then make_refused.py. Versions used, with Python 3.11 and torch 2.13 on a
CPU, and what had to be pinned besides for an environment that works (pip install scvi-tools==…):

- 1.4.2 (the newest for Python 3.11) and 1.3.3: nothing
- 1.2.2: nothing, but pooch, which it does not name
- 1.1.6: numpy<2 pandas<3 anndata<0.11 scipy<1.13 setuptools<81 jax==0.4.38 flax==0.10.4
  numpyro==0.18.0 optax==0.2.4 chex==0.1.89 requests. SCVI_plain of 1.1.6-pandas3: with pandas 3.0.6
- 1.0.4: numpy<2 pandas<2.2 anndata<0.11 scipy<1.13 setuptools<81 jax==0.4.29 flax==0.8.5
  numpyro==0.15.3 optax==0.2.1 requests, and then chex==0.1.86, which it says it cannot take
- 0.20.3: numpy<2 pandas<2 anndata<0.10 scipy<1.13 setuptools<81 jax==0.4.38 and the rest as 1.1.6
- 0.15.5 (make_refused.py alone): as 0.20.3, but anndata<0.9 scipy<1.12, and mudata<0.3

TOTALVI cannot be minified before 1.2, and 0.20 has no linear classifier. Of what is refused, 0.20.3
cannot make JaxSCVI there, and 1.4.2 neither it nor, in this way, DestVI.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

N_CELLS, N_GENES, N_PROTEINS = 60, 40, 5
COVARIATES = {"categorical_covariate_keys": ["sex"], "continuous_covariate_keys": ["age"]}
TINY = {"n_hidden": 8, "n_latent": 3}
DEEP = TINY | {
    "n_layers": 2, "encode_covariates": True, "use_layer_norm": "both", "use_batch_norm": "none",
    "gene_likelihood": "nb",
}  # fmt: skip


def cells(case: str = "") -> anndata.AnnData:
    """Made-up counts of genes and proteins with two batches, three labels (some unknown) and two
    covariates; of the case "lacking" one batch has no counts of a protein, of "surgery" all are of
    a third batch and without labels."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.5, (N_CELLS, N_GENES)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "plate": np.array(["p2", "p1"])[np.arange(N_CELLS) % 2],
            "type": np.array(["b", "Unknown", "c", "a"])[np.arange(N_CELLS) % 4],
            "sex": np.array(["f", "m", "f"])[np.arange(N_CELLS) % 3],
            "age": np.linspace(-1, 1, N_CELLS),
        },
        index=[f"cell{k}" for k in range(N_CELLS)],
    )
    if case == "surgery":
        obs["plate"], obs["type"] = "p3", "Unknown"
    var = pd.DataFrame(index=[f"gene{k}" for k in range(N_GENES)])
    proteins = rng.poisson(5, (N_CELLS, N_PROTEINS)).astype(np.float32)
    if case == "lacking":
        proteins[obs["plate"] == "p1", 1] = 0
    names = [f"protein{k}" for k in range(N_PROTEINS)]
    table = pd.DataFrame(proteins, index=obs.index, columns=names)
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var, obsm={"proteins": table})


def trained(model):
    """The model after two epochs on the CPU."""
    import scvi

    old = scvi.__version__.startswith("0.")
    options = {"use_gpu": False} if old else {"accelerator": "cpu"}
    if type(model).__name__ == "TOTALVI":  # it names an argument that torch 2.13 no longer has
        options["reduce_lr_on_plateau"] = False
    model.train(max_epochs=2, **options)
    return model


def scvi_model(case: str):
    """SCVI of a case."""
    import scvi

    adata, covariates = cells(case), COVARIATES if case in ("covariates", "minified") else {}
    batch = {} if case == "bare" else {"batch_key": "plate", "labels_key": "type"}
    scvi.model.SCVI.setup_anndata(adata, **batch, **covariates)
    options = DEEP if covariates else TINY
    if case == "pyro":  # what is saved after it holds its parameters, too
        scvi.model.AmortizedLDA.setup_anndata(adata)
        trained(scvi.model.AmortizedLDA(adata, n_topics=2, n_hidden=2))
    if case == "library":
        options = TINY | {"use_observed_lib_size": False, "dispersion": "gene-batch"}
    return trained(scvi.model.SCVI(adata, **options))


def scanvi_model(case: str):
    """SCANVI of a case: "plain" from nothing, others from SCVI."""
    import scvi

    cls = scvi.model.SCANVI
    if case != "plain":
        options = {"linear_classifier": True} if case == "linear" else {}
        return trained(cls.from_scvi_model(scvi_model(case), "Unknown", **options))
    adata = cells()
    cls.setup_anndata(adata, labels_key="type", unlabeled_category="Unknown", batch_key="plate")
    return trained(cls(adata, **TINY))


def totalvi_model(case: str):
    """TOTALVI of a case."""
    import scvi

    adata, covariates = cells(case), COVARIATES if case in ("covariates", "minified") else {}
    scvi.model.TOTALVI.setup_anndata(
        adata, protein_expression_obsm_key="proteins", batch_key="plate", **covariates
    )
    options = {"n_layers_encoder": 1, "use_layer_norm": "both"} if covariates else {}
    return trained(scvi.model.TOTALVI(adata, **TINY, **options))


def surgery(cls, reference: Path):
    """A model after surgery onto the one that lies at `reference`."""
    query = cells("surgery")
    cls.prepare_query_anndata(query, str(reference))
    return trained(cls.load_query_data(query, str(reference)))


def computed(model) -> dict[str, np.ndarray]:
    """Latent, and of SCANVI probabilities of the labels."""
    out = {"latent": model.get_latent_representation()}
    if type(model).__name__ == "SCANVI":
        soft = model.predict(soft=True)
        out |= {"soft_labels": soft.to_numpy(), "labels": np.array(soft.columns, str)}
    return out


def minify(model, **how) -> None:
    """Leave the posterior of the model's cells in place of their counts."""
    mean, variance = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, variance
    model.minify_adata(**how)


def cases(folder: Path) -> Iterator[tuple[str, Callable]]:
    """Names of the saves and what makes each one's model."""
    from scvi.model import SCANVI, SCVI, TOTALVI

    for cls, make, names in (
        (SCVI, scvi_model, ("plain", "bare", "library", "covariates", "minified")),
        (SCANVI, scanvi_model, ("plain", "linear", "covariates", "minified")),
        (TOTALVI, totalvi_model, ("plain", "lacking", "covariates", "minified")),
    ):
        kind = cls.__name__
        for case in names:
            yield f"{kind}_{case}", lambda make=make, case=case: make(case)
        yield f"{kind}_surgery", lambda cls=cls, at=folder / f"{kind}_plain": surgery(cls, at)
    yield "SCVI_pyro", lambda: scvi_model("pyro")


def main(folder: Path) -> None:
    """Save every case that this version can make, and say which it cannot."""
    import scvi

    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # older versions load their own pickles
    for name, make in cases(folder):
        scvi.settings.seed = 0
        try:
            model = make()
            expected, is_minified = computed(model), name.endswith("minified")
            if is_minified:
                minify(model)
        except Exception as error:  # what this version lacks
            print(f"{name} cannot be made: {type(error).__name__} {str(error)[:300]}")
            continue
        options = {"compression": "gzip"} if is_minified else {}
        model.save(str(folder / name), overwrite=True, save_anndata=is_minified, **options)
        np.savez_compressed(folder / name / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
