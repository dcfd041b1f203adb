"""Tiny models of an older scvi-tools and what it computes from them, for test_saves.py.

python make.py FOLDER, in an environment with that version (0.20.3, 1.0.4 and 1.1.6 were used).
"""

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

N_CELLS, N_GENES = 60, 40


def cells() -> anndata.AnnData:
    """Made-up counts with two batches, three labels (some unknown) and two covariates."""
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
    var = pd.DataFrame(index=[f"gene{k}" for k in range(N_GENES)])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


def main(folder: Path) -> None:
    """Save SCVI and SCANVI, and their latent and label probabilities."""
    import scvi

    adata = cells()
    scvi.settings.seed = 0
    keys = {"categorical_covariate_keys": ["sex"], "continuous_covariate_keys": ["age"]}
    scvi.model.SCVI.setup_anndata(adata, batch_key="plate", labels_key="type", **keys)
    where = {"use_gpu": False} if scvi.__version__.startswith("0.") else {"accelerator": "cpu"}
    model = scvi.model.SCVI(
        adata, n_hidden=8, n_latent=3, n_layers=2, encode_covariates=True, use_layer_norm="both",
        use_batch_norm="none", gene_likelihood="nb",
    )  # fmt: skip
    model.train(max_epochs=2, **where)
    named = scvi.model.SCANVI.from_scvi_model(model, "Unknown")
    named.train(max_epochs=2, **where)
    expected = {"scanvi_soft_labels": named.predict(soft=True).to_numpy()}
    for name, one in (("scvi", model), ("scanvi", named)):
        one.save(str(folder / name), overwrite=True)
        expected[f"{name}_latent"] = one.get_latent_representation()
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
