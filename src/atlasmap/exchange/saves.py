"""Parse a scvi-tools save: its class, genes, categories, architecture and classifier."""

from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from atlasmap.config import checked
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError, listed
from atlasmap.exchange.archive import read_archive
from atlasmap.exchange.files import model_file
from atlasmap.exchange.identity import check_identity, numbers, refuse
from atlasmap.exchange.pickles import Name, Unbuilt
from atlasmap.settings import ScviSettings, TotalviSettings, Variant

LONGEST = 500  # most characters of a text, and most items of a list, in settings
BACKGROUND = ({"activation_function_bg": "softplus"}, {"activation_function_bg": "exp"})
# Defaults of scvi-tools' modules: saves omit arguments that were not given.
DEFAULTS = {
    "n_hidden": 128,
    "n_latent": 10,
    "n_layers": 1,
    "dropout_rate": 0.1,
    "dispersion": "gene",
    "gene_likelihood": "zinb",
    "use_observed_lib_size": True,
    "encode_covariates": False,
    "deeply_inject_covariates": True,
    "use_batch_norm": "both",
    "use_layer_norm": "none",
}
TOTALVI_DEFAULTS = {
    "n_hidden": 256,
    "n_latent": 20,
    "n_layers_encoder": 2,
    "n_layers_decoder": 1,
    "dropout_rate_encoder": 0.2,
    "dropout_rate_decoder": 0.2,
    "gene_likelihood": "nb",
    "latent_distribution": "normal",
    "gene_dispersion": "gene",
    "protein_dispersion": "protein",
    "use_observed_lib_size": True,
    "encode_covariates": True,
    "use_batch_norm": "both",
    "use_layer_norm": "none",
    "empirical_protein_background_prior": None,
}
# Further arguments, which have no effect at these values; other values are refused.
HARMLESS = {
    "latent_distribution": ("normal",),
    "log_variational": (True,),
    "batch_representation": ("one-hot",),
    "use_size_factor_key": (False,),
    "var_activation": (None,),
    "labels_groups": (None,),
    "use_labels_groups": (False,),
    "y_prior": (None,),
    "extra_encoder_kwargs": (None, {}),
    "extra_decoder_kwargs": (
        None,
        {},
        *({"activation_function_bg": x} for x in ("softplus", "exp")),
    ),
    "batch_embedding_kwargs": (None, {}),
}
IGNORED = {"unlabeled_category", "pretrained_model", "use_cuda"}
IGNORED |= {"extra_payload_autotune", "linear_classifier", "classifier_parameters"}
IGNORED |= {"override_missing_proteins"}
SOFTPLUS = (1, 2)  # before this version, totalVI's background standard deviation was exp(raw)
SCALED = (1, 3, 1)  # before, totalVI's encoder saw log(1 + count); no per-batch efficiencies


@dataclass(frozen=True)
class Save:
    """A scvi-tools save as plain data.

    `genes`, `batches`, `labels` (including the unlabelled category), `categorical` and `continuous`
    covariates and `proteins` are in the model's order. `measured`: batch index (as text) → mask of
    the proteins it has; empty if no batch lacks any. `keys`: columns of obs for batch and label.
    `posterior`: keys of a minified reference's mean, variance and library size, if the save has
    them. `init`: arguments of the model's class; `setup`: arguments of setup_anndata. `weights`:
    under scvi-tools' names. `split`: train, validation or test → cell indices.
    """

    model: str
    version: str
    genes: list[str]
    batches: list[str]
    labels: list[str]
    unlabeled: str | None
    categorical: dict[str, list[str]]
    continuous: list[str]
    proteins: list[str]
    measured: dict[str, np.ndarray]
    keys: dict[str, str]
    posterior: dict[str, str]
    setup: dict[str, Any]
    init: dict[str, Any]
    weights: dict[str, Tensor]
    split: dict[str, np.ndarray]


def read_save(folder: Path, prefix: str = "") -> Save:
    """Read `folder`/`prefix`model.pt; raises SAVE_* errors. Nothing in the file is run."""
    path = model_file(folder, prefix)
    old = path.with_name(f"{prefix}model_params.pt")
    if old.is_file() and not path.is_file():
        raise refuse(
            old, "SAVE_VERSION", expected="one file model.pt, as scvi-tools writes it since 0.15",
            found="the three files of older versions",
            mend="let whoever trusts them convert them with scvi-tools: "
            "SCVI.convert_legacy_save (or SCANVI's) and a save from 1.x",
        )  # fmt: skip
    content = read_archive(path, check_identity)
    try:
        save = understood(content)
    except Exception as error:  # any error here is caused by the file's content
        raise refuse(
            path, "SAVE_BROKEN",
            expected="model_state_dict, var_names and attr_dict of model.save()",
            found=f"{type(error).__name__} {str(error)[:200]}",
            mend="save the model again with scvi-tools",
        ) from error  # fmt: skip
    check_known(save, path)
    return save


def names(values: Any) -> list[str]:
    """Returns 1-D texts or numbers as texts; raises if one occurs twice."""
    if not isinstance(values, list | tuple | np.ndarray) or np.ndim(values) != 1:
        raise TypeError("a list of names is something else")
    if any(isinstance(value, Name | Unbuilt) for value in values):
        raise TypeError("a name that is an object")
    out = [str(plain(value)) for value in values]
    for text in out:
        text.encode()  # raises for surrogates, which JSON in UTF-8 cannot hold
    if len(set(out)) < len(out):
        raise ValueError("a name more than once")
    return out


def text(value: Any) -> str:
    """Returns `value` as str; raises TypeError if it is no text."""
    if not isinstance(value, str):
        raise TypeError("something else where a text must be")
    return str(value)


def plain(value: Any, depth: int = 0) -> Any:
    """Returns a setting in JSON types; raises ValueError if it is too long or too deep."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float) or type(value) is str:
        if len(str(value)) > LONGEST:
            raise ValueError("a setting that is too long")
        return value
    if isinstance(value, Name | Unbuilt):
        return f"an object: {value.name[:100]}"
    if depth > 5 or not isinstance(value, dict | list | tuple | np.ndarray) or len(value) > LONGEST:
        raise ValueError("a setting that is too deep, too long or of another kind")
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    return [plain(item, depth + 1) for item in value]


def understood(content: dict[str, Any]) -> Save:
    """Parse the content of model.pt; raises any exception if a part is missing or of a wrong type.

    The caller turns that into SAVE_BROKEN.
    """
    attributes = content["attr_dict"]
    registry, init = attributes["registry_"], attributes["init_params_"]
    fields, setup = registry["field_registries"], plain(registry.get("setup_args", {}))

    def state(name: str) -> dict[str, Any]:
        return dict(fields.get(name, {}).get("state_registry", {}))

    def column(name: str) -> str | None:
        return fields.get(name, {}).get("data_registry", {}).get("attr_key")

    label_state, mappings = state("labels"), state("extra_categorical_covs").get("mappings", {})
    told = label_state.get("unlabeled_category", setup.get("unlabeled_category"))
    posterior = {name: column(name) for name in ("latent_qzm", "latent_qzv", "observed_lib_size")}
    keys = {"batch": state("batch").get("original_key"), "label": label_state.get("original_key")}
    return Save(
        model=text(registry["model_name"]),
        version=text(registry["scvi_version"]),
        genes=names(content["var_names"]),
        batches=names(state("batch")["categorical_mapping"]),
        labels=names(label_state.get("categorical_mapping", [])),
        unlabeled=None if told is None else str(plain(told)),
        categorical={str(plain(key)): names(known) for key, known in mappings.items()},
        continuous=names(state("extra_continuous_covs").get("columns", [])),
        proteins=names(state("proteins").get("column_names", [])),
        measured={
            str(plain(batch)): np.asarray(mask, bool)
            for batch, mask in state("proteins").get("protein_batch_mask", {}).items()
            if not flattened(init).get("override_missing_proteins")
        },
        keys={name: str(plain(key)) for name, key in keys.items() if key is not None},
        posterior={name: str(plain(key)) for name, key in posterior.items() if key is not None},
        setup=dict(setup),
        init=plain(flattened(init)),
        weights=weights_of(content["model_state_dict"]),
        split=split_of(attributes),
    )


def weights_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a state_dict; raises ValueError for values that are not finite."""
    weights = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"weights {name[:100]} that are not finite")
    return weights


def split_of(attributes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns indices of training, validation and test cells; {} unless they form a partition."""
    parts = {
        part: np.asarray(attributes[f"{part}_indices_"])
        for part in ("train", "validation", "test")
        if attributes.get(f"{part}_indices_") is not None
    }
    parts = {part: at for part, at in parts.items() if at.ndim == 1 and at.dtype.kind in "iu"}
    if not parts:
        return {}
    whole = np.sort(np.concatenate(list(parts.values())))
    return parts if np.array_equal(whole, np.arange(len(whole))) else {}


def flattened(init: dict) -> dict[str, Any]:
    """Returns the arguments of the model's class and of its module as one dictionary."""
    if "non_kwargs" in init:
        inner = init["kwargs"].values()
        out = dict(init["non_kwargs"])
    else:
        inner = [value for value in init.values() if isinstance(value, dict)]
        out = {key: value for key, value in init.items() if not isinstance(value, dict)}
    for block in inner:
        out |= dict(block)
    return {key: value for key, value in out.items() if key not in ("registry", "datamodule")}


def unsupported(path: Path, found: str) -> AtlasmapError:
    """Returns the SAVE_UNSUPPORTED error for options that atlasmap does not implement."""
    return refuse(
        path, "SAVE_UNSUPPORTED", expected="a model that atlasmap can compute", found=found,
        mend="map with scvi-tools, or train a reference without these options",
    )  # fmt: skip


def check_known(save: Save, path: Path) -> None:
    """Raise SAVE_UNSUPPORTED for arguments, labels or covariates that cannot be imported."""
    odd = [
        f"{key}: {value!r}"
        for key, value in save.init.items()
        if key not in defaults_of(save).keys() | IGNORED and value not in HARMLESS.get(key, ())
    ]
    classifier = save.init.get("classifier_parameters") or {}
    if isinstance(classifier, dict):
        odd += [f"classifier_parameters.{k}: {v!r}" for k, v in classifier.items() if k != "logits"]
    else:
        odd.append(f"classifier_parameters: {classifier!r}")
    if save.setup.get("size_factor_key"):
        odd.append(f"size_factor_key: {save.setup['size_factor_key']!r}")
    if save.setup.get("panel_key"):
        odd.append(f"panel_key: {save.setup['panel_key']!r}")
    if save.model == "SCANVI" and (not save.labels or save.unlabeled != save.labels[-1]):
        odd.append(
            f"labels {listed(save.labels)} without {save.unlabeled!r}, unlabelled, at the end"
        )
    reserved = {"batch", "label", "dataset", "split"} & {*save.categorical, *save.continuous}
    if reserved:
        odd.append(f"covariates called {listed(sorted(reserved))}, as columns of ours are")
    if odd:
        raise unsupported(path, listed(odd))


def defaults_of(save: Save) -> dict[str, Any]:
    """Returns the defaults of arguments that a save of this class may omit."""
    return TOTALVI_DEFAULTS if save.model == "TOTALVI" else DEFAULTS


def settings_of(save: Save, path: Path) -> ScviSettings | TotalviSettings:
    """Returns the architecture of the saved model.

    Raises SAVE_UNSUPPORTED for likelihoods and dispersions that atlasmap does not implement,
    SAVE_WEIGHTS if the sizes of the weights contradict the settings.
    """
    given = {key: save.init.get(key, default) for key, default in defaults_of(save).items()}
    totalvi = save.model == "TOTALVI"
    told = (save.init.get("extra_decoder_kwargs") or {}).get("activation_function_bg")
    if totalvi and (told or ("exp" if numbers(save.version) < SOFTPLUS else "softplus")) == "exp":
        given["background_activation"] = "exp"
    if totalvi and numbers(save.version) < SCALED:
        given["input_scaling"] = "none"
    try:
        kind = TotalviSettings if totalvi else ScviSettings
        settings = checked(kind, given, str(path), "SAVE_INVALID")
    except AtlasmapError as error:
        raise unsupported(path, error.found) from error
    layers = "encoder.encoder.fc_layers.Layer {}.0.bias"
    layers = layers if totalvi else f"z_{layers}"
    n_layers = sum(layers.format(k) in save.weights for k in range(len(save.weights)))
    sizes = [len(save.weights.get(name, ())) for name in (layers.format(0), latent_bias(save))]
    depth = settings.n_layers_encoder if totalvi else settings.n_layers
    said = (depth, settings.n_hidden, settings.n_latent)
    if said != (n_layers, *sizes):  # checked before a model of that size is allocated
        raise refuse(
            path, "SAVE_WEIGHTS", expected="weights of the size that its settings say: "
            f"(layers, n_hidden, n_latent) = {said}", found=f"{(n_layers, *sizes)}",
            mend="save the model again with scvi-tools",
        )  # fmt: skip
    return settings


def latent_bias(save: Save) -> str:
    """Returns the name of the posterior mean's bias, whose length is n_latent."""
    return f"{'encoder.z_' if save.model == 'TOTALVI' else 'z_encoder.'}mean_encoder.bias"


def variant_of(save: Save) -> Variant:
    """Returns the classifier variant of a SCANVI save.

    linear: no hidden layers. prefix: its softmax outputs went into the cross-entropy, as always
    before scvi-tools 1.1; since then if `classifier_parameters.logits` is False. fixed: others.
    The outputs of a linear classifier do not depend on how it was trained.
    """
    if not any(name.startswith("classifier.classifier.0.fc_layers.") for name in save.weights):
        return "linear"
    logits = (save.init.get("classifier_parameters") or {}).get("logits", True)
    return "fixed" if logits and numbers(save.version) >= (1, 1) else "prefix"


def registry_of(save: Save, symbols: list[str] | None) -> Registry:
    """Returns genes, batches, labels and covariates in the model's order.

    Labels are not sorted: scvi-tools swaps the unlabelled category with the last label.
    """
    scanvi = save.model == "SCANVI"
    return Registry(
        genes=save.genes,
        symbols=symbols,
        batches=save.batches,
        labels=save.labels[:-1] if scanvi else [],
        unlabeled_category=save.unlabeled if scanvi else "Unknown",
        categorical=save.categorical,
        continuous=save.continuous,
        proteins=save.proteins,
        proteins_missing={
            save.batches[int(batch)]: list(compress(save.proteins, ~mask))
            for batch, mask in save.measured.items()
            if not mask.all()
        },
    )
