# Flags of single commands.

import os
import shlex
import subprocess


def tree_flag(w, input):
    """The sheet of labels and their parents."""
    return f"--label_tree={shlex.quote(input.tree)}" if input.tree else ""


def tree_of_reference():
    """The same where the reference is prepared, which takes the Cell Ontology without a sheet."""
    if sheet := LABELLED and label_tree():
        return f"--label_tree={shlex.quote(sheet)}"
    return "--no-ontology" if CONFIG.label_tree == "none" else ""


def key_of_tree(atlas):
    """What preparing depends on of the sheet, as `atlasmap tree-key` says; its text where that
    command is not installed beside Snakemake."""
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
    """The bundle that was learned of, as a command-line flag."""
    return f"--bundle={shlex.quote(os.path.dirname(learned[0]))}" if learned else ""


def fetch_flags(w):
    """What is fetched or made, by its checksum if that is known."""
    source = SOURCES[w.source]
    made = source.path == "builtin:simulated"
    simulation = as_flag("simulation", config.get("simulate") or {}) if made else ""
    return f"{shlex.quote(source.path)} --sha256={source.sha256} {simulation}"


def reference_rows():
    """Rows of the sheet that the reference is prepared of."""
    rows = quoted([row(d, "label_key", "gene_lengths") for d in REFERENCES])
    choosing = quoted([row(d, "gene_lengths") for d in CHOOSING])
    return f"--datasets {rows}" + (f" --queries {choosing}" if CHOOSING else "")


def taken_flags(w, input):
    """A trained reference, as its command is told."""
    kind = "--scvi_tools" if CONFIG.reference.scvi_tools else ""
    adata = repeated("adata", [input.adata] if input.adata else [])
    return f"{shlex.quote(placed(taken_folder()))} {kind} {adata}"


def counted_on():
    """What the config counts on of a trained reference."""
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


# The reference's own cells, for certificates. No input: jobs read a few of them, and it is there
# wherever the bundle was trained.
PROBE = "" if TAKEN else f"--probe={placed(f'{TOP}/data/reference.h5ad')}"
