# Constants derived from the config and the sheet of data sets; the other files here build on them.

import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.sourcecache import LocalSourceFile

HERE = workflow.current_basedir
# In a module with `prefix:`, Snakemake prefixes inputs and outputs, but not paths in parameters.
placed = workflow.modifier.path_modifier.replace_prefix


def of_source(path):
    """Returns the local path of a workflow source file (cached if the workflow is remote)."""
    file = HERE.join(f"../../{path}")
    if isinstance(file, LocalSourceFile):
        return os.path.normpath(file.get_path_or_uri(secret_free=True))
    return workflow.sourcecache.get_path(file)


def found_beside(path):
    """Resolve a path of the config: absolute, else relative to the working directory, else to the
    workflow's source."""
    given = from_home(path)
    if given.is_absolute() or given.exists():
        return given
    try:
        return Path(of_source(path))
    except Exception:  # each host raises another exception for a missing file
        return given


def load_schema(name):
    """Returns a schema of workflow/schemas."""
    import yaml

    with workflow.sourcecache.open(HERE.join(f"../schemas/{name}")) as file:
        return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


SCHEMA = load_schema("config.schema.yaml")
CONFIG = load_config(config, SCHEMA, "../schemas/config.schema.yaml")
# The config gives a trained reference, so none is trained here.
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
# Data sets, besides the reference, from which genes are selected.
CHOOSING = QUERIES if CONFIG.data.genes_from == "all" else []
DATA_DIR = found_beside(CONFIG.data_dir) if CONFIG.data_dir else SHEET.parent
LABELLED = CONFIG.labels == "given"
CITESEQ = CONFIG.modality == "citeseq"
# Models that queries are mapped onto: totalVI, scANVI variants, or scVI if there are no labels.
MODELS = ["totalvi"] if CITESEQ else CONFIG.variants if LABELLED else ["scvi"]
FINAL = final_of(CONFIG)
FINAL_MODEL = FINAL.variant if FINAL.variant in MODELS else MODELS[0]
# Config blocks that affect the mapping of queries; the first sets the surgery itself.
SURGERY = ["totalvi_surgery", "denoise"] if CITESEQ else ["surgery"]
# Held-out batches are mapped as queries are: by surgery if any strategy trains, else frozen.
TRAINED = {"per_batch", "joint"} & set(CONFIG.strategies)
HELD_OUT_STRATEGY = "per_batch" if TRAINED else "frozen"

# Contract of existing results, and the forecast of `atlasmap plan` if there is one.
BEFORE = placed(f"{TOP}/data/contract.json")
PLAN = Path(placed(f"{TOP}/forecast.json"))
FORECAST = json.loads(PLAN.read_text())["resources"] if PLAN.is_file() else {}
# Recorded in contract.json, relative to the working directory, which may be copied or moved.
CONFIGFILES = [Path(os.path.abspath(file)) for file in workflow.overwrite_configfiles]
CONFIGFILES = [
    file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    for file in CONFIGFILES
]
if workflow.is_main_process:
    check_same_atlas(Path(BEFORE), CONFIGFILES, list(DATASETS))

# If the atlasmap command is installed beside Snakemake, add it to PATH: .venv/bin/snakemake then
# works without activating the environment, in cluster jobs too. (Otherwise: --sdm conda.)
BIN = os.path.dirname(sys.executable)
INSTALLED = os.path.join(BIN, "atlasmap")
INSTALLED = INSTALLED if os.path.isfile(INSTALLED) else ""
if INSTALLED:
    shell.prefix(f"export PATH={shlex.quote(BIN)}:$PATH; ")
