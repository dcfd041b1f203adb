# The config, the sheet, and what follows from them.

import json
import os
import shlex
import sys
from pathlib import Path

from atlasmap.config import (
    check_mappable,
    check_slurm_resources,
    final_of,
    found_beside,
    load_config,
    with_reference,
)
from atlasmap.data.contract import check_same_atlas
from atlasmap.data.sheet import Dataset, read_sheet
from atlasmap.files import check_input
from atlasmap.jobs.partitions import read_partitions
from atlasmap.settings import NUMERICS

# So that .venv/bin/snakemake works without activating anything, in cluster jobs too.
shell.prefix(f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; ")

ROOT = Path(workflow.current_basedir).parent.parent
# Not in the profile: a path there would be looked for in the folder that --directory names.
PARTITION_FILE = Path(
    os.environ.setdefault(
        "SNAKEMAKE_SLURM_PARTITIONS", str(ROOT / "slurm" / "partitions.yaml")
    )
)
CONDA = str(ROOT / "envs" / "atlasmap.yaml")


CONFIG = load_config(config)
# A trained reference is mapped onto: nothing is trained here.
TAKEN = CONFIG.reference.given
if CONFIG.reference.bundle:
    CONFIG = with_reference(CONFIG, config, found_beside(CONFIG.reference.bundle, ROOT))
SHEET = found_beside(CONFIG.datasets, ROOT)
DATASETS = {dataset.id: dataset for dataset in read_sheet(SHEET, trained=TAKEN)}
if any(dataset.role == "query" for dataset in DATASETS.values()):
    check_mappable(CONFIG)
REFERENCES = [d for d in DATASETS.values() if d.role == "reference"]
QUERIES = [d for d in DATASETS.values() if d.role == "query"]
# Whose cells have a say in the choice of genes, besides the reference's.
CHOOSING = QUERIES if CONFIG.data.genes_from == "all" else []
DATA_DIR = found_beside(CONFIG.data_dir, ROOT) if CONFIG.data_dir else SHEET.parent
LABELLED = CONFIG.labels == "given"
CITESEQ = CONFIG.modality == "citeseq"
# What query batches are mapped onto: totalVI, a scANVI variant, or scVI itself without labels.
MODELS = ["totalvi"] if CITESEQ else CONFIG.variants if LABELLED else ["scvi"]
FINAL = final_of(CONFIG)
FINAL_MODEL = FINAL.variant if FINAL.variant in MODELS else MODELS[0]
# For the record in contract.json: from the working directory, which may be copied or moved.
CONFIGFILES = [
    (
        Path(os.path.abspath(file)).relative_to(Path.cwd())
        if Path(os.path.abspath(file)).is_relative_to(Path.cwd())
        else Path(os.path.abspath(file))
    )
    for file in workflow.overwrite_configfiles
]
# What is there already loses no cell, and is overwritten by no other config, unasked.
BEFORE = f"results/{CONFIG.atlas}/data/contract.json"
if workflow.is_main_process:
    check_same_atlas(Path(BEFORE), CONFIGFILES, list(DATASETS))
PARTITIONS = read_partitions(PARTITION_FILE) if PARTITION_FILE.is_file() else {}
GPU = 0 if CONFIG.device == "cpu" else 1
# What a job may use; among the resources, for another figure makes no result outdated.
MEMORY_GB = CONFIG.data.memory_gb
MEMORY = f"--memory_gb {MEMORY_GB}" if MEMORY_GB else ""
RUNNING = f"--checkpoint_minutes {CONFIG.checkpoint_minutes} {MEMORY}"
# Another floor checks the reference's genes otherwise, and changes nothing of it.
SHARED = f"--config.data.min_gene_overlap {CONFIG.data.min_gene_overlap}"
CHECKING = f"--config.data.memory_gb {MEMORY_GB}" if MEMORY_GB else ""
BUNDLE = [
    "settings.json",
    "registry.json",
    "weights.safetensors",
    "history.csv",
    "golden.npz",
]


# What a reference learned of its own labels.
LEARNED = ["calibration.json", "profiles.npz"]


def model_folder(variant):
    """Folder of the reference model that is mapped onto."""
    return variant if variant in ("scvi", "totalvi") else f"scanvi_{variant}"


# The reference's models: scVI and a scANVI for each variant, totalVI, or what was taken over.
REFERENCE_FOLDERS = list(
    dict.fromkeys([*([] if TAKEN or CITESEQ else ["scvi"]), *map(model_folder, MODELS)])
)
# How queries are mapped, as config blocks; the first is about the surgery itself.
SURGERY = ["totalvi_surgery", "denoise"] if CITESEQ else ["surgery"]
DENOISED = ["denoised.h5ad"] if CITESEQ else []
# Without training nothing else makes sure that every query is checked before the first is mapped.
CONTRACT = ancient(f"results/{CONFIG.atlas}/data/contract.json") if TAKEN else []
# The reference's own cells, for certificates. No input: jobs read a few of them, and it is there
# wherever the bundle was trained.
PROBE = "" if TAKEN else f"--probe=results/{CONFIG.atlas}/data/reference.h5ad"
FIRST_REFERENCE = (
    f"results/{CONFIG.atlas}/seed{CONFIG.seeds[0]}/reference/{REFERENCE_FOLDERS[-1]}"
)


def taken_file(path, name):
    """A file of a trained reference: where it is, or will be once it is fetched."""
    if "://" in path:
        return f"results/{CONFIG.atlas}/data/sources/{name}"
    return named_input(path, "`reference`")


def named_input(path, key):
    """A file or folder that a key of the config names; raises FILE_*, PATH_BRACES."""
    found = found_beside(path, ROOT)
    check_input(found, key)
    return str(found)


def taken_folder():
    """Where a trained reference is, as its command is told."""
    if CONFIG.reference.bundle:
        return taken_file(CONFIG.reference.bundle, "")
    return taken_file(CONFIG.reference.scvi_tools, "reference_model.pt")


# Whether labels are weighed by what the reference learned of itself; a bundle brings that along.
CALIBRATED = LABELLED and (
    (Path(taken_folder()) / "calibration.json").is_file()
    if TAKEN and CONFIG.reference.bundle
    else CONFIG.calibration.scheme != "none" and not TAKEN
)
# What totalVI says of the reference's own proteins; whoever shares a bundle may leave it out.
OF_REFERENCE = (
    DENOISED
    if not TAKEN
    or (CONFIG.reference.bundle and (Path(taken_folder()) / "denoised.h5ad").is_file())
    else []
)
# How held-out batches are mapped: as queries are, by surgery if any are.
TRAINED = {"per_batch", "joint"} & set(CONFIG.strategies)
HELD_OUT_STRATEGY = "per_batch" if TRAINED else "frozen"
# What `atlasmap plan` wrote, if it was asked.
PLAN = Path(f"results/{CONFIG.atlas}/forecast.json")
FORECAST = json.loads(PLAN.read_text())["resources"] if PLAN.is_file() else {}
# Data sets that are fetched or made: file name → the row that names the source first.
SOURCES = {}
for dataset in DATASETS.values():
    if dataset.remote and dataset.path not in {d.path for d in SOURCES.values()}:
        SOURCES[dataset.fetched_as] = dataset
    if "://" in dataset.gene_lengths:
        SOURCES[f"{dataset.id}.gene_lengths.txt"] = Dataset(
            id=dataset.id, path=dataset.gene_lengths, role=dataset.role
        )
# so are the files of a reference at a URL
for name, path in {
    "reference_model.pt": CONFIG.reference.scvi_tools,
    "reference_cells.h5ad": CONFIG.reference.adata,
}.items():
    if path and "://" in path:
        SOURCES[name] = Dataset(id=Path(name).stem, path=path, role="reference")

GIVEN = [
    workflow.resource_settings.default_resources or {},
    *workflow.resource_settings.overwrite_resources.values(),
]
for given in GIVEN:
    check_slurm_resources({name: resource.raw for name, resource in given.items()})


wildcard_constraints:
    atlas=CONFIG.atlas.replace(".", r"\."),
    seed=r"\d+",
    fold=r"\d+",
    variant="|".join({*MODELS, "scvi"}),
    strategy="|".join(CONFIG.strategies),
    folder="|".join(REFERENCE_FOLDERS),
    batch=r"[^/]+",
    job=r"[^/]+",
    dataset="|".join([dataset.id for dataset in QUERIES] or ["none"]),
    source="|".join(SOURCES or ["none"]),
