"""What a scvi-tools save says: its class, genes, categories, architecture and classifier."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError, listed
from atlasmap.exchange.archive import read_archive
from atlasmap.settings import ScviSettings, Variant

CLASSES = ("SCVI", "SCANVI", "TOTALVI")
OLDEST = (0, 20)
# Defaults of scvi-tools' modules, which saves leave out.
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
# What is read besides, and the values under which it changes nothing.
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
    "extra_decoder_kwargs": (None, {}),
    "batch_embedding_kwargs": (None, {}),
}
IGNORED = {"datamodule", "registry", "unlabeled_category", "pretrained_model", "use_cuda"}
IGNORED |= {"extra_payload_autotune", "linear_classifier", "classifier_parameters"}


@dataclass(frozen=True)
class Save:
    """A save of scvi-tools as data: `weights` under its own names, `fields` its field registries,
    `init` the arguments its model was made with, `setup` those of setup_anndata."""

    model: str
    version: str
    genes: list[str]
    fields: dict[str, Any]
    setup: dict[str, Any]
    init: dict[str, Any]
    weights: dict[str, Tensor]
    split: dict[str, np.ndarray]

    def state(self, name: str) -> dict[str, Any]:
        """State of a field; empty where the model has none."""
        return self.fields.get(name, {}).get("state_registry", {})

    def categories(self, name: str) -> list[str]:
        """Categories of a field in the model's order."""
        return [str(value) for value in self.state(name).get("categorical_mapping", [])]


def refuse(path: Path, code: str, expected: str, found: str, mend: str) -> AtlasmapError:
    """An error about a save."""
    return AtlasmapError(code, expected=expected, found=f"{path}: {found}", mend=mend)


def model_file(folder: Path, prefix: str) -> Path:
    """The file with the model; `folder` may be that file itself."""
    return folder if folder.is_file() else folder / f"{prefix}model.pt"


def read_save(folder: Path, prefix: str = "") -> Save:
    """Read `folder`/`prefix`model.pt; raises SAVE_* errors. Nothing in the file is run."""
    path = model_file(folder, prefix)
    old = path.with_name(f"{prefix}model_params.pt")
    if old.is_file() and not path.is_file():
        raise refuse(
            old, "SAVE_VERSION", "one file model.pt, as scvi-tools writes it since 0.15",
            "the three files of older versions",
            "let whoever trusts them convert them with scvi-tools: "
            "SCVI.convert_legacy_save (or SCANVI's) and a save from 1.x",
        )  # fmt: skip
    content = read_archive(path)
    try:
        attributes = content["attr_dict"]
        registry = attributes["registry_"]
        save = Save(
            model=registry["model_name"],
            version=str(registry["scvi_version"]),
            genes=[str(gene) for gene in content["var_names"]],
            fields=registry["field_registries"],
            setup=registry.get("setup_args", {}),
            init=flattened(attributes["init_params_"]),
            weights={k: v for k, v in content["model_state_dict"].items() if isinstance(v, Tensor)},
            split={
                part: np.asarray(attributes[f"{part}_indices_"])
                for part in ("train", "validation")
                if attributes.get(f"{part}_indices_") is not None
            },
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise refuse(
            path, "SAVE_BROKEN", "model_state_dict, var_names and attr_dict of model.save()",
            f"{type(error).__name__} {error}", "save the model again with scvi-tools 1.x",
        ) from error  # fmt: skip
    check_known(save, path)
    return save


def flattened(init: dict) -> dict[str, Any]:
    """Arguments of the model's class and of its module in one."""
    if "non_kwargs" in init:
        inner = init["kwargs"].values()
        out = dict(init["non_kwargs"])
    else:
        inner = [value for value in init.values() if isinstance(value, dict)]
        out = {key: value for key, value in init.items() if not isinstance(value, dict)}
    for block in inner:
        out |= block
    return out


def numbers(version: str) -> tuple[int, int]:
    """Major and minor version; (-1, -1) if it is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def check_known(save: Save, path: Path) -> None:
    """Raise SAVE_VERSION, SAVE_CLASS or SAVE_UNSUPPORTED for what cannot be brought over."""
    if not OLDEST <= numbers(save.version) < (2, 0):
        raise refuse(
            path, "SAVE_VERSION", "a save of scvi-tools 0.20 to 1.x",
            f"scvi_version {save.version}", "load it with scvi-tools 1.x and save it again",
        )  # fmt: skip
    if save.model not in CLASSES:
        raise refuse(
            path, "SAVE_CLASS", f"a model of class {listed(CLASSES)}", str(save.model),
            "import one of these",
        )  # fmt: skip
    if save.model == "TOTALVI":
        return
    odd = [
        f"{key}: {value!r}"
        for key, value in save.init.items()
        if key not in DEFAULTS.keys() | IGNORED and value not in HARMLESS.get(key, ())
    ]
    classifier = save.init.get("classifier_parameters") or {}
    odd += [
        f"classifier_parameters.{key}: {v!r}" for key, v in classifier.items() if key != "logits"
    ]
    if save.setup.get("size_factor_key"):
        odd.append(f"size_factor_key: {save.setup['size_factor_key']!r}")
    if odd:
        raise refuse(
            path, "SAVE_UNSUPPORTED", "a model that atlasmap can compute", listed(odd),
            "map with scvi-tools, or train a reference without these options",
        )  # fmt: skip


def settings_of(save: Save, path: Path) -> ScviSettings:
    """The architecture; raises SAVE_UNSUPPORTED for likelihoods and dispersions not built here."""
    from atlasmap.config import checked

    given = {key: save.init.get(key, default) for key, default in DEFAULTS.items()}
    try:
        return checked(ScviSettings, given, str(path), "SAVE")
    except AtlasmapError as error:
        raise refuse(
            path, "SAVE_UNSUPPORTED", "a model that atlasmap can compute", error.found,
            "map with scvi-tools, or train a reference without these options",
        ) from error  # fmt: skip


def variant_of(save: Save) -> Variant:
    """Which classifier a SCANVI runs.

    Before scvi-tools 1.1 softmax outputs went into cross-entropy, whatever the settings say; since
    then `classifier_parameters.logits` decides, and a classifier without hidden layers is linear.
    """
    if numbers(save.version) < (1, 1):
        return "prefix"
    if not (save.init.get("classifier_parameters") or {}).get("logits", True):
        return "prefix"
    hidden = any(name.startswith("classifier.classifier.0.fc_layers.") for name in save.weights)
    return "fixed" if hidden else "linear"


def labels_of(save: Save) -> tuple[list[str], str]:
    """Labels in the order of the classifier's outputs, and what unlabelled cells are called."""
    known = save.categories("labels")
    if save.model != "SCANVI":
        return [], "Unknown"
    unlabeled = str(
        save.state("labels").get("unlabeled_category", save.setup.get("unlabeled_category"))
    )
    # Its place is the last, whatever the alphabet says; the others keep theirs.
    return [label for label in known if label != unlabeled], unlabeled


def registry_of(save: Save, symbols: list[str] | None) -> Registry:
    """Genes, batches, labels and covariates in the model's order."""
    labels, unlabeled = labels_of(save)
    mappings = save.state("extra_categorical_covs").get("mappings", {})
    continuous = save.state("extra_continuous_covs").get("columns", [])
    return Registry(
        genes=save.genes,
        symbols=symbols,
        batches=save.categories("batch"),
        labels=labels,
        unlabeled_category=unlabeled,
        categorical={key: [str(value) for value in known] for key, known in mappings.items()},
        continuous=[str(key) for key in continuous],
    )
