# Command-line flags of single atlasmap commands.

import os
import shlex
import subprocess


def tree_flag(w, input):
    """Returns the flag that names the label tree (labels and their parents), or ""."""
    return f"--label_tree={shlex.quote(input.tree)}" if input.tree else ""


def tree_of_reference():
    """Returns the same flag for preparing the reference; without a sheet the command uses the Cell
    Ontology, unless `label_tree` is none."""
    if sheet := LABELLED and label_tree():
        return f"--label_tree={shlex.quote(sheet)}"
    return "--no-ontology" if CONFIG.label_tree == "none" else ""


def key_of_tree(atlas):
    """Returns a rerun trigger: the part of the label tree that preparing depends on, from
    `atlasmap tree-key`; the sheet's whole text if that command is not beside Snakemake.
    """
    if CONFIG.label_tree is None:
        return ""
    sheet = LABELLED and label_tree()
    if not INSTALLED:
        return open(sheet, encoding="utf-8").read() if sheet else "none"
    facts = placed(f"results/{atlas}/data/reference.json")
    command = [INSTALLED, "tree-key", "--facts", facts]
    return subprocess.run(
        [*command, *(["--label_tree", sheet] if sheet else [])],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout.strip()


def beside_calibration(learned):
    """Returns the flag that names the bundle of a calibration, or "" without one."""
    return f"--bundle={shlex.quote(os.path.dirname(learned[0]))}" if learned else ""


def fetch_flags(w):
    """Returns the arguments for fetching or simulating a source: path, checksum, settings."""
    source = SOURCES[w.source]
    made = source.path == "builtin:simulated"
    simulation = as_flag("simulation", config.get("simulate") or {}) if made else ""
    return f"{shlex.quote(source.path)} --sha256={source.sha256} {simulation}"


def reference_rows():
    """Returns the sheet's rows from which the reference is prepared, as flags."""
    rows = quoted([row(d, "label_key", "gene_lengths") for d in REFERENCES])
    choosing = quoted([row(d, "gene_lengths") for d in CHOOSING])
    return f"--datasets {rows}" + (f" --queries {choosing}" if CHOOSING else "")


def taken_flags(w, input):
    """Returns the arguments that name a trained reference."""
    kind = "--scvi_tools" if CONFIG.reference.scvi_tools else ""
    adata = repeated("adata", [input.adata] if input.adata else [])
    return f"{shlex.quote(placed(taken_folder()))} {kind} {adata}"


def required_flags():
    """Returns the flags with what the config requires of a trained reference."""
    variant = CONFIG.variants[:1] if LABELLED and not CITESEQ else []
    flags = [
        f"--counts {CONFIG.counts}",
        repeated("variant", variant),
        repeated("unlabeled", [CONFIG.unlabeled_category]),
        repeated("categorical", CONFIG.categorical_covariates),
        repeated("continuous", CONFIG.continuous_covariates),
        repeated("levels", CONFIG.label_levels),
        "--frozen" if set(CONFIG.strategies) == {"frozen"} else "",
    ]
    return " ".join(flags)


# The reference's cells, for certificates. A parameter, not an input: jobs read only a few cells,
# and the file exists wherever the bundle was trained.
PROBE = "" if TAKEN else f"--probe={placed(f'{TOP}/data/reference.h5ad')}"
