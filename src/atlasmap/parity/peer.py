"""Train scvi-tools itself on the same cells, with the same split and settings, for comparison.

Only this module imports scvi-tools, which `make parity` installs; atlasmap does not depend on it.
"""

import contextlib
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd

from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS
from atlasmap.errors import AtlasmapError
from atlasmap.exchange.exporting import VERSION
from atlasmap.settings import (
    ScanviSettings,
    ScviSettings,
    SurgerySettings,
    TotalviSettings,
    TotalviSurgerySettings,
    TrainSettings,
    Variant,
)

NOT_ARGUMENTS = ("background_activation", "input_scaling")  # settings that TOTALVI does not take
CLASSIFIER = {
    "prefix": {"classifier_parameters": {"logits": False}},
    "fixed": {},
    "linear": {"linear_classifier": True},
}


@dataclass(frozen=True)
class Trained:
    """A trained scvi-tools model, and the indices of its validation cells among its cells."""

    model: Any
    validation: np.ndarray

    def last(self, metric: str) -> float:
        """Returns the last value of a validation metric."""
        return float(self.model.history[f"{metric}_validation"].iloc[-1, 0])

    def best(self, metric: str) -> float:
        """Returns a validation metric at the epoch with the best (lowest) validation ELBO loss."""
        at = int(self.model.history["elbo_validation"].iloc[:, 0].to_numpy(float).argmin())
        return float(self.model.history[f"{metric}_validation"].iloc[at, 0])

    def soft_labels(self) -> pd.DataFrame:
        """Returns label probabilities of all cells (cells × labels)."""
        with quiet():
            return self.model.predict(soft=True)


def scvi_tools():
    """Import scvi-tools and return it; raises PEER_MISSING, PEER_VERSION."""
    try:
        import scvi
    except ImportError as error:
        raise AtlasmapError(
            "PEER_MISSING",
            expected=f"scvi-tools {VERSION} in this environment",
            found=str(error),
            mend="make parity sets one up beside this one: use .venv-parity/bin/atlasmap",
        ) from error
    if scvi.__version__ != VERSION:
        raise AtlasmapError(
            "PEER_VERSION",
            expected=f"scvi-tools {VERSION}, whose semantics atlasmap follows",
            found=scvi.__version__,
            mend="pip install -r envs/lock-parity.txt",
        )
    return scvi


@contextlib.contextmanager
def quiet():
    """Suppress progress bars, output and warnings of scvi-tools and its dependencies."""
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def train_arguments(
    train: TrainSettings | SurgerySettings, decay: float, accelerator: str = "cpu"
) -> dict[str, Any]:
    """Convert atlasmap's settings to arguments of scvi-tools' train(); `decay`: weight decay."""
    return {
        "max_epochs": train.max_epochs,
        "train_size": train.train_size,
        "batch_size": train.batch_size,
        "check_val_every_n_epoch": train.check_val_every_n_epoch,
        "early_stopping": train.early_stopping,
        "early_stopping_patience": train.early_stopping_patience,
        "accelerator": accelerator,
        "enable_progress_bar": False,
        "plan_kwargs": {
            "lr": train.learning_rate,
            "eps": train.adam_eps,
            "weight_decay": decay,
            "n_epochs_kl_warmup": train.n_epochs_kl_warmup,
            "reduce_lr_on_plateau": train.reduce_lr_on_plateau,
        },
        **({"gradient_clip_val": train.gradient_clip} if train.gradient_clip else {}),
    }


def fitted(model, arguments: dict[str, Any]) -> Trained:
    """Train the model; scvi-tools samples from torch's global generator, seeded by the caller."""
    with quiet():
        model.train(**arguments)
    return Trained(model, np.sort(np.asarray(model.validation_indices)))


def train_scvi(
    adata: anndata.AnnData, settings: ScviSettings, seed: int,
    categorical: list[str], continuous: list[str], accelerator: str = "cpu",
) -> Trained:  # fmt: skip
    """Train SCVI on a prepared reference (counts in X; batch and label in obs)."""
    scvi = scvi_tools()
    with quiet():
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(
            adata, batch_key="batch", categorical_covariate_keys=categorical or None,
            continuous_covariate_keys=continuous or None,
        )  # fmt: skip
        model = scvi.model.SCVI(
            adata, n_hidden=settings.n_hidden, n_latent=settings.n_latent,
            n_layers=settings.n_layers, dropout_rate=settings.dropout_rate,
            gene_likelihood=settings.gene_likelihood, dispersion=settings.dispersion,
            use_observed_lib_size=settings.use_observed_lib_size,
            encode_covariates=settings.encode_covariates,
            deeply_inject_covariates=settings.deeply_inject_covariates,
            use_batch_norm=settings.use_batch_norm, use_layer_norm=settings.use_layer_norm,
        )  # fmt: skip
    arguments = train_arguments(settings.train, settings.train.weight_decay, accelerator)
    return fitted(model, arguments)


def train_scanvi(
    scvi_model: Trained, settings: ScanviSettings, variant: Variant, seed: int, unlabeled: str,
    accelerator: str = "cpu",
) -> Trained:  # fmt: skip
    """Train SCANVI from a trained SCVI on the same cells."""
    scvi = scvi_tools()
    with quiet():
        scvi.settings.seed = seed
        model = scvi.model.SCANVI.from_scvi_model(
            scvi_model.model, unlabeled_category=unlabeled, labels_key="label",
            **CLASSIFIER[variant],
        )  # fmt: skip
    arguments = train_arguments(settings.train, settings.train.weight_decay, accelerator)
    arguments["plan_kwargs"]["classification_ratio"] = settings.classification_ratio
    arguments["n_samples_per_label"] = settings.n_samples_per_label
    return fitted(model, arguments)


def with_proteins(adata: anndata.AnnData) -> anndata.AnnData:
    """Returns a copy with protein counts as TOTALVI expects them in obsm.

    A protein that a batch lacks (NaN) is 0 in all cells of the batch, by which scvi-tools
    recognises it as missing.
    """
    out = adata.copy()
    counts = np.nan_to_num(out.obsm[PROTEINS])
    names = [str(name) for name in out.uns[PROTEIN_NAMES]]
    out.obsm["protein_expression"] = pd.DataFrame(counts, out.obs_names, names)
    return out


def train_totalvi(
    adata: anndata.AnnData, settings: TotalviSettings, seed: int,
    categorical: list[str], continuous: list[str],
) -> Trained:  # fmt: skip
    """Train TOTALVI on a prepared CITE-seq reference."""
    scvi = scvi_tools()
    adata, train = with_proteins(adata), settings.train
    shared = {
        key: value
        for key, value in asdict(settings).items()
        if key not in ("train", "classifier", "adversarial", *NOT_ARGUMENTS)
    }
    with quiet():
        scvi.settings.seed = seed
        scvi.model.TOTALVI.setup_anndata(
            adata, protein_expression_obsm_key="protein_expression", batch_key="batch",
            categorical_covariate_keys=categorical or None,
            continuous_covariate_keys=continuous or None,
        )  # fmt: skip
        model = scvi.model.TOTALVI(adata, **shared)
    adversarial = {"adversarial_classifier": settings.adversarial}
    return fitted(model, totalvi_arguments(train, train.weight_decay) | adversarial)


def totalvi_arguments(train: TrainSettings | SurgerySettings, decay: float) -> dict[str, Any]:
    """Convert atlasmap's settings to arguments of TOTALVI's train().

    Some that other models take in plan_kwargs are arguments of train() itself.
    """
    arguments = train_arguments(train, decay)
    arguments |= {
        "lr": train.learning_rate,
        "reduce_lr_on_plateau": train.reduce_lr_on_plateau,
        "n_steps_kl_warmup": train.n_steps_kl_warmup,
        "n_epochs_kl_warmup": train.n_epochs_kl_warmup,
        "plan_kwargs": {"weight_decay": decay},
    }
    return arguments


def map_citeseq(
    reference: Trained, query: anndata.AnnData, settings: TotalviSurgerySettings, seed: int
) -> Trained:
    """Map `query` onto a TOTALVI reference by surgery, all its batches jointly."""
    scvi = scvi_tools()
    with quiet():
        scvi.settings.seed = seed
        model = scvi.model.TOTALVI.load_query_data(
            with_proteins(query), reference.model, accelerator="cpu"
        )
    return fitted(model, totalvi_arguments(settings, 0.0) | {"adversarial_classifier": False})


def map_query(
    reference: Trained, query: anndata.AnnData, settings: SurgerySettings, seed: int,
    unlabeled: str, accelerator: str = "cpu",
) -> Trained:  # fmt: skip
    """Map `query` onto a reference by surgery, all its batches jointly."""
    scvi = scvi_tools()
    query = query.copy()
    query.obs["label"] = unlabeled
    with quiet():
        scvi.settings.seed = seed
        model = type(reference.model).load_query_data(
            query, reference.model, accelerator=accelerator
        )
    return fitted(model, train_arguments(settings, 0.0, accelerator))
