import json
import os
import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path

from atlasmap.config import as_flag, found_beside, load_config, variant_block
from atlasmap.data.sheet import read_sheet
from atlasmap.errors import AtlasmapError
from atlasmap.files import slug, unslug
from atlasmap.settings import NUMERICS, DataConfig

# So that .venv/bin/snakemake works without activating anything, in cluster jobs too.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

ROOT = Path(workflow.current_basedir).parent.parent
CONDA = str(ROOT / "envs" / "atlasmap.yaml")

CONFIG = load_config(config)
SHEET = found_beside(CONFIG.datasets, ROOT)
DATASETS = {dataset.id: dataset for dataset in read_sheet(SHEET)}
REFERENCES = [d for d in DATASETS.values() if d.role == "reference"]
QUERIES = [d for d in DATASETS.values() if d.role == "query"]
DATA_DIR = found_beside(CONFIG.data_dir, ROOT) if CONFIG.data_dir else SHEET.parent
DATA_FLAG = as_flag(
    "config", {f.name: config[f.name] for f in fields(DataConfig) if f.name in config}
)
LABELLED = CONFIG.labels == "given"
# What query batches are mapped onto: a scANVI variant, or scVI itself without labels.
MODELS = CONFIG.variants if LABELLED else ["scvi"]
FINAL_MODEL = CONFIG.final.variant if LABELLED else "scvi"
FINAL_SEED = CONFIG.seeds[0] if CONFIG.final.seed is None else CONFIG.final.seed
# For the record in contract.json; not in params, where a change would trigger reruns.
CONFIGFILES = " ".join(
    f"--configfiles={shlex.quote(str(Path(f).absolute()))}"
    for f in workflow.overwrite_configfiles
)
GPU = 0 if CONFIG.device == "cpu" else 1
BUNDLE = [
    "settings.json",
    "registry.json",
    "weights.safetensors",
    "history.csv",
    "golden.npz",
]
# Data sets that are fetched or made: file name → the row that names the source first.
SOURCES = {}
for dataset in DATASETS.values():
    if dataset.remote and dataset.path not in {d.path for d in SOURCES.values()}:
        suffix = Path(dataset.path).suffix if "://" in dataset.path else ".h5ad"
        SOURCES[dataset.id + suffix] = dataset


wildcard_constraints:
    atlas=CONFIG.atlas.replace(".", r"\."),
    seed=r"\d+",
    variant="|".join(MODELS),
    strategy="|".join(CONFIG.strategies),
    batch=r"[^/]+",
    dataset="|".join(QUERIES and [d.id for d in QUERIES] or ["none"]),
    source="|".join(SOURCES or ["none"]),


def dataset_path(dataset):
    """Where a data set's file is, or will be once it is fetched."""
    for name, first in SOURCES.items():
        if first.path == dataset.path:
            return f"results/{CONFIG.atlas}/data/sources/{name}"
    path = DATA_DIR / Path(dataset.path).expanduser()
    if not path.exists():
        raise AtlasmapError(
            "FILE_MISSING",
            expected=f"the file that {SHEET} names for {dataset.id}",
            found=f"nothing at {path.absolute()}",
            mend="correct `path` in the sheet, or `data_dir` in the config",
        )
    return str(path)


def rows(datasets):
    """Rows of the sheet as a command-line flag's value."""
    return shlex.quote(json.dumps([asdict(d) for d in datasets]))


def batches_of(dataset):
    """File names of a query data set's batches; known once the checkpoint has run."""
    found = checkpoints.find_batches.get(atlas=CONFIG.atlas, dataset=dataset.id)
    return [slug(name) for name in json.loads(Path(found.output[0]).read_text())]


def query_batches():
    """File names of all query batches, sorted; a name in two data sets is an error."""
    owners = {}
    for dataset in QUERIES:
        for batch in batches_of(dataset):
            if batch in owners:
                raise AtlasmapError(
                    "BATCH_NAME_TWICE",
                    expected="every query batch in one data set",
                    found=f"{unslug(batch)} in {owners[batch]} and in {dataset.id}",
                    mend="rename it in one of them, or give another batch_key",
                )
            owners[batch] = dataset.id
    return sorted(owners)


def owner(batch):
    """The query data set a batch belongs to."""
    return next(d for d in QUERIES if batch in batches_of(d))


def model_folder(variant):
    """Folder of the reference model that is mapped onto."""
    return "scvi" if variant == "scvi" else f"scanvi_{variant}"


def mapping_folders(strategy):
    """Folders of a strategy's mappings: one a batch, or one for all."""
    return ["all"] if strategy == "joint" else query_batches()


def memory(base, per_input_mb):
    """mem_mb of a job: grows with its input and with each attempt."""
    return lambda w, input, attempt: int(
        attempt * (base + per_input_mb * input.size_mb)
    )


def minutes(first):
    """runtime of a job: grows with each attempt."""
    return lambda w, attempt: attempt * first


def settings_of(*keys):
    """Config blocks as command-line flags: what the user set, so that defaults may be improved."""
    return " ".join(as_flag(key, config.get(key) or {}) for key in keys)


def final_targets(wildcards):
    """Everything a finished atlas has."""
    top = f"results/{CONFIG.atlas}"
    targets = [f"{top}/data/contract.json", f"{top}/benchmark/history.csv"]
    targets += [f"{top}/benchmark/scib.csv", f"{top}/figures/scib_table.svg"]
    if LABELLED:
        targets += [
            f"{top}/figures/loss_curves.svg",
            f"{top}/figures/confusion_validation.svg",
        ]
    if not QUERIES:
        return targets + expand(
            top + "/seed{seed}/reference/{folder}/reference_latent.h5ad",
            seed=CONFIG.seeds,
            folder=[model_folder(model) for model in MODELS],
        )
    targets += [f"{top}/atlas.h5ad", f"{top}/figures/embeddings.svg"]
    if LABELLED:
        targets += [f"{top}/labels.csv", f"{top}/benchmark/classification.csv"]
        targets += [
            f"{top}/figures/confusion_query.svg",
            f"{top}/figures/reliability.svg",
        ]
    return targets + expand(
        top + "/seed{seed}/mapping/{model}/{strategy}/atlas.h5ad",
        seed=CONFIG.seeds,
        model=MODELS,
        strategy=CONFIG.strategies,
    )
