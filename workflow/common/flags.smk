# Settings as command-line flags. A job's flags are its rerun triggers, so they contain only what
# the job depends on.

import json
import shlex

# Version of each stage's computation, a rerun trigger: raised by hand when results change although
# settings do not.
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
# Top-level config keys that every job which reads data depends on.
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
    """Wrap a text as a parameter function: in a plain text Snakemake would expand {braces}."""
    return lambda w: text


def as_flag(name, block):
    """Returns a config block as one shell-quoted flag: --scvi='{…}'."""
    return f"--{name}={shlex.quote(json.dumps(block, sort_keys=True))}"


def quoted(value):
    """Returns a value as shell-quoted JSON."""
    return shlex.quote(json.dumps(value))


def repeated(flag, values):
    """Returns a flag, repeated once per value."""
    return " ".join(f"--{flag}={shlex.quote(str(value))}" for value in values)


def row(dataset, *keys):
    """Returns the columns of a sheet's row that a job depends on: OF_ROW and `keys`.

    Gene lengths, if any, are given by the path of their file.
    """
    needed = {*OF_ROW, *keys, *(OF_PROTEINS if CITESEQ else ())}
    values = {key: value for key, value in vars(dataset).items() if key in needed}
    if values.pop("gene_lengths", ""):
        values["gene_lengths"] = source_path(dataset, "gene_lengths")
    return values


def block_flag(name, *keys):
    """Returns the user's settings of a config block, or only these `keys`, as a flag.

    Defaults are omitted, so that a changed default triggers no rerun.
    """
    block = config.get(name) or {}
    chosen = {key: block[key] for key in keys if key in block} if keys else block
    return as_is(as_flag(name, chosen))


def settings_of(*names):
    """Returns the user's settings of several config blocks as flags."""
    return as_is(" ".join(block_flag(name)(None) for name in names))


def data_flag(*settings):
    """Returns config keys that a job reading data depends on, as a flag: OF_DATA and these
    `settings` of the block data."""
    data = config.get("data") or {}
    block = {"data": {key: data[key] for key in settings if key in data}}
    return as_is(
        as_flag(
            "config", block | {key: config[key] for key in OF_DATA if key in config}
        )
    )
