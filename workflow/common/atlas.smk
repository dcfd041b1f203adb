# The atlas of this config and sheet: what follows from them is in the other files beside this one.

import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.sourcecache import LocalSourceFile

HERE = workflow.current_basedir
# In a module with `prefix:` Snakemake places files itself, but not what parameters say of them.
placed = workflow.modifier.path_modifier.replace_prefix


def of_source(path):
    """A file of the workflow's own source, by its path there: a local copy if it is deployed."""
    file = HERE.join(f"../../{path}")
    if isinstance(file, LocalSourceFile):
        return os.path.normpath(file.get_path_or_uri(secret_free=True))
    return workflow.sourcecache.get_path(file)


def found_beside(path):
    """A path of the config: absolute, else from the working directory, else of the source."""
    given = from_home(path)
    if given.is_absolute() or given.exists():
        return given
    try:
        return Path(of_source(path))
    except Exception:  # each host has its own way to say that there is no such file
        return given


def load_schema(name):
    """A schema of workflow/schemas."""
    import yaml

    with workflow.sourcecache.open(HERE.join(f"../schemas/{name}")) as file:
        return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


SCHEMA = load_schema("config.schema.yaml")
CONFIG = load_config(config, SCHEMA, "../schemas/config.schema.yaml")
# A trained reference is mapped onto: nothing is trained here.
TAKEN = bool(CONFIG.reference.bundle or CONFIG.reference.scvi_tools)
if CONFIG.reference.bundle:
    bundle = found_beside(CONFIG.reference.bundle)
    CONFIG.variants = variants_with(CONFIG, config, bundle)
TOP = f"results/{CONFIG.atlas}"

SHEET = found_beside(CONFIG.datasets)
ROWS = read_sheet(SHEET, load_schema("datasets.schema.yaml"), trained=TAKEN)
DATASETS = {dataset.id: dataset for dataset in ROWS}
REFERENCES = [dataset for dataset in ROWS if dataset.role == "reference"]
QUERIES = [dataset for dataset in ROWS if dataset.role == "query"]
if QUERIES:
    check_mappable(CONFIG)
# Whose cells have a say in the choice of genes, besides the reference's.
CHOOSING = QUERIES if CONFIG.data.genes_from == "all" else []
DATA_DIR = found_beside(CONFIG.data_dir) if CONFIG.data_dir else SHEET.parent
LABELLED = CONFIG.labels == "given"
CITESEQ = CONFIG.modality == "citeseq"
# What query batches are mapped onto: totalVI, a scANVI variant, or scVI itself without labels.
MODELS = ["totalvi"] if CITESEQ else CONFIG.variants if LABELLED else ["scvi"]
FINAL = final_of(CONFIG)
FINAL_MODEL = FINAL.variant if FINAL.variant in MODELS else MODELS[0]
# How queries are mapped, as config blocks; the first is about the surgery itself.
SURGERY = ["totalvi_surgery", "denoise"] if CITESEQ else ["surgery"]
# How held-out batches are mapped: as queries are, by surgery if any are.
TRAINED = {"per_batch", "joint"} & set(CONFIG.strategies)
HELD_OUT_STRATEGY = "per_batch" if TRAINED else "frozen"

# What is there already, and what `atlasmap plan` wrote, if it was asked.
BEFORE = placed(f"{TOP}/data/contract.json")
PLAN = Path(placed(f"{TOP}/forecast.json"))
FORECAST = json.loads(PLAN.read_text())["resources"] if PLAN.is_file() else {}
# For the record in contract.json: from the working directory, which may be copied or moved.
CONFIGFILES = [Path(os.path.abspath(file)) for file in workflow.overwrite_configfiles]
CONFIGFILES = [
    file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    for file in CONFIGFILES
]
if workflow.is_main_process:
    check_same_atlas(Path(BEFORE), CONFIGFILES, list(DATASETS))

# The package's command, where it is installed beside Snakemake: so that .venv/bin/snakemake works
# without activating anything, in cluster jobs too. (Elsewhere: --sdm conda.)
BIN = os.path.dirname(sys.executable)
INSTALLED = os.path.join(BIN, "atlasmap")
INSTALLED = INSTALLED if os.path.isfile(INSTALLED) else ""
if INSTALLED:
    shell.prefix(f"export PATH={shlex.quote(BIN)}:$PATH; ")
