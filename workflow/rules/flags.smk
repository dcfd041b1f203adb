# What jobs depend on, as flags of their commands.

import os
import shlex
from dataclasses import asdict, fields
from pathlib import Path

from atlasmap.config import as_flag
from atlasmap.settings import DataConfig


def as_is(text):
    """A parameter with a user's text in it: of a plain one Snakemake takes braces for wildcards."""
    return lambda w: text


def repeated(flag, values):
    """A flag as often as there are values."""
    return " ".join(f"--{flag}={shlex.quote(str(value))}" for value in values)


def row(dataset, *keys):
    """Columns of the sheet that a job depends on; others are no rerun trigger.

    Gene lengths, if any, by where they are.
    """
    needed = {
        "id",
        "path",
        "role",
        "batch_key",
        "counts",
        "gene_id",
        "obs_filter",
        *keys,
    }
    if CITESEQ:
        needed |= {"proteins", "protein_names", "protein_zeros"}
    values = {key: value for key, value in asdict(dataset).items() if key in needed}
    lengths = values.pop("gene_lengths", "")
    return values | (
        {"gene_lengths": source_path(dataset, "gene_lengths")} if lengths else {}
    )


def data_flag(*settings):
    """Keys of the config that a job reading data depends on; others are no rerun trigger."""
    keys = [f.name for f in fields(DataConfig) if f.name != "data" and f.name in config]
    data = config.get("data") or {}
    block = {"data": {key: data[key] for key in settings if key in data}}
    return as_is(as_flag("config", block | {key: config[key] for key in keys}))


def settings_of(*keys):
    """Config blocks as command-line flags: what the user set, so that defaults may be improved."""
    return as_is(" ".join(as_flag(key, config.get(key) or {}) for key in keys))


def block_flag(name, *keys):
    """Those keys of a config block that a job depends on; others are no rerun trigger."""
    block = config.get(name) or {}
    return as_is(as_flag(name, {key: block[key] for key in keys if key in block}))


def tree_flag(w, input):
    """The same as a command-line flag."""
    return f"--label_tree={shlex.quote(input.tree)}" if input.tree else ""


def tree_of_reference():
    """The same where the reference is prepared, which takes the Cell Ontology without a sheet."""
    if sheet := LABELLED and label_tree():
        return f"--label_tree={shlex.quote(sheet)}"
    return "--no-ontology" if CONFIG.label_tree == "none" else ""


def key_of_tree(atlas):
    """What training depends on of it."""
    if CONFIG.label_tree is None:
        return ""
    # pandas, which it needs, is slow to load
    from atlasmap.data.label_tree import LabelTree, read_tree, tree_key

    sheet = LABELLED and label_tree()
    tree = read_tree(Path(sheet)) if sheet else LabelTree({})
    return tree_key(tree, Path(f"results/{atlas}/data/reference.json"))


def beside_calibration(learned):
    """The bundle that was learned of, as a command-line flag."""
    return f"--bundle={shlex.quote(os.path.dirname(learned[0]))}" if learned else ""
