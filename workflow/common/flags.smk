# What jobs depend on, as flags of their commands.

import json
import shlex

# Raised by hand when a stage computes something else from the same settings: a rerun trigger.
NUMERICS = {
    "data": 2,
    "scvi": 5,
    "scanvi": 5,
    "totalvi": 6,
    "surgery": 7,
    "denoise": 2,
    "umap": 1,
    "transfer": 7,
    "hold_out": 5,
    "calibration": 5,
    "classification": 5,
    "scib": 2,
    "card": 1,
    "seal": 1,
    "figures": 2,
    "pages": 1,
}
# Keys at the top of the config that every job which reads data depends on.
OF_DATA = (
    "modality",
    "counts",
    "labels",
    "unlabeled_category",
    "unlabeled_values",
    "keep_labels",
    "categorical_covariates",
    "continuous_covariates",
    "label_levels",
)
# Columns of the sheet that every such job depends on.
OF_ROW = ("id", "path", "role", "batch_key", "counts", "gene_id", "obs_filter")
OF_PROTEINS = ("proteins", "protein_names", "protein_zeros")


def as_is(text):
    """A parameter with a user's text in it: of a plain one Snakemake takes braces for wildcards."""
    return lambda w: text


def as_flag(name, block):
    """A config block as one flag that a shell passes on whole: --scvi='{…}'."""
    return f"--{name}={shlex.quote(json.dumps(block, sort_keys=True))}"


def quoted(value):
    """A value as JSON, for a shell."""
    return shlex.quote(json.dumps(value))


def repeated(flag, values):
    """A flag as often as there are values."""
    return " ".join(f"--{flag}={shlex.quote(str(value))}" for value in values)


def row(dataset, *keys):
    """Columns of the sheet that a job depends on; others are no rerun trigger.

    Gene lengths, if any, by where they are.
    """
    needed = {*OF_ROW, *keys, *(OF_PROTEINS if CITESEQ else ())}
    values = {key: value for key, value in vars(dataset).items() if key in needed}
    if values.pop("gene_lengths", ""):
        values["gene_lengths"] = source_path(dataset, "gene_lengths")
    return values


def block_flag(name, *keys):
    """What the user set of a config block, or of these keys of it, as a flag: defaults may be
    improved, and other keys are no rerun trigger."""
    block = config.get(name) or {}
    chosen = {key: block[key] for key in keys if key in block} if keys else block
    return as_is(as_flag(name, chosen))


def settings_of(*names):
    """Config blocks as flags."""
    return as_is(" ".join(block_flag(name)(None) for name in names))


def data_flag(*settings):
    """Keys of the config that a job reading data depends on; others are no rerun trigger."""
    data = config.get("data") or {}
    block = {"data": {key: data[key] for key in settings if key in data}}
    return as_is(
        as_flag(
            "config", block | {key: config[key] for key in OF_DATA if key in config}
        )
    )
