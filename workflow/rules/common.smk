import functools
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

from snakemake.exceptions import WorkflowError

from atlasmap.jobs.partitions import largest, read_partitions
from atlasmap.config import (
    as_flag,
    check_mappable,
    check_slurm_resources,
    cost,
    final_of,
    found_beside,
    load_config,
    n_folds,
    variant_block,
    with_reference,
)
from atlasmap.data.contract import check_same_atlas
from atlasmap.data.sheet import Dataset, read_sheet
from atlasmap.errors import AtlasmapError
from atlasmap.exchange.files import cells_file, model_file
from atlasmap.files import check_input, from_home, slug, unslug
from atlasmap.jobs.packing import jobs, members
from atlasmap.settings import GPU_RULES, NUMERICS, DataConfig

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


def as_is(text):
    """A parameter with a user's text in it: of a plain one Snakemake takes braces for wildcards."""
    return lambda w: text


def repeated(flag, values):
    """A flag as often as there are values."""
    return " ".join(f"--{flag}={shlex.quote(str(value))}" for value in values)


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


def source_path(dataset, column="path"):
    """Where a file that the sheet names is, or will be once it is fetched."""
    named = getattr(dataset, column)
    for name, first in SOURCES.items():
        if first.path == named:
            return f"results/{CONFIG.atlas}/data/sources/{name}"
    path = DATA_DIR / from_home(named)
    check_input(path, f"`{column}` of {dataset.id} in {SHEET}")
    return str(path)


def gene_lengths(datasets):
    """Tables that counts of data sets are divided by."""
    return [source_path(d, "gene_lengths") for d in datasets if d.gene_lengths]


def prepared_reference():
    """What a query is aligned to: the prepared reference, or the registry of a trained one."""
    if TAKEN:
        return f"{FIRST_REFERENCE}/registry.json"
    return f"results/{CONFIG.atlas}/data/reference.h5ad"


def taken_source():
    """The files that a trained reference consists of."""
    path = Path(taken_folder())
    if CONFIG.reference.bundle:
        learned = [file for file in LEARNED if (path / file).is_file()]
        return [
            str(path / file)
            for file in [*BUNDLE, "reference_latent.h5ad", *learned, *OF_REFERENCE]
        ]
    return str(model_file(path))


def taken_adata():
    """Cells of a reference that scvi-tools saved; a bundle has its latent."""
    if CONFIG.reference.bundle:
        return []
    if CONFIG.reference.adata:
        return taken_file(CONFIG.reference.adata, "reference_cells.h5ad")
    beside = cells_file(model_file(Path(taken_folder())))
    return str(beside) if beside else []


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


def cohort_batches(cohort):
    """Query batches of a cohort."""
    return query_batches() if cohort == "all" else [cohort]


def owner(batch):
    """The query data set a batch belongs to."""
    return next(d for d in QUERIES if batch in batches_of(d))


def of_mappings(seed, variant, strategy, file):
    """A file of each mapping of a strategy: one a batch, or one for all."""
    top = f"results/{CONFIG.atlas}/seed{seed}/mapping/{variant}/{strategy}"
    together = strategy in ("joint", "de_novo")
    folders = ["all"] if together else query_batches()
    return [f"{top}/{folder}/{file}" for folder in folders]


def latent_of_reference(w):
    """The reference's latent that a strategy's labels come from."""
    if w.strategy == "de_novo":
        return f"results/{w.atlas}/seed{w.seed}/mapping/{w.variant}/de_novo/all/reference_latent.h5ad"
    return f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}/reference_latent.h5ad"


def mapped(seed, variant, strategy, file="latent.h5ad"):
    """What says that these files are there: `file` of the joint mapping, or a marker for each job
    of query batches."""
    if strategy in ("joint", "de_novo"):
        return of_mappings(seed, variant, strategy, file)
    top = f"results/{CONFIG.atlas}/seed{seed}/mapping/{variant}/{strategy}/.mapped"
    done = {
        marker.stem: len(json.loads(marker.read_text()))
        for marker in Path(top).glob("*.json")
    }
    most = CONFIG.mapping.batches_per_job
    packed = jobs(query_batches(), most, lambda job: done.get(job, 0))
    return [f"{top}/{job}.json" for job in packed]


def histories_of(seed, variant, strategy):
    """Training histories of a strategy."""
    if strategy == "de_novo":
        top = f"results/{CONFIG.atlas}/seed{seed}/de_novo/all"
        folders = {model_folder(variant), *([] if CITESEQ else ["scvi"])}
        return [f"{top}/{folder}/history.csv" for folder in folders]
    return of_mappings(seed, variant, strategy, "history.csv")


def limits(rule):
    """The most that any partition grants a rule's jobs."""
    return largest(PARTITIONS, gpu=bool(GPU) and rule in GPU_RULES)


def this_attempt(wildcards, attempt):
    """Which attempt a job is."""
    return attempt


# Rules whose jobs leave counts on disk where there is no room for them.
STREAMING = (
    "prepare_reference",
    "prepare_query",
    "hold_out",
    "train_scvi",
    "train_scanvi",
)
STREAMING += ("train_totalvi", "map_per_batch", "map_joint")


def memory(rule, base, per_input_mb=0, together=True):
    """mem_mb of a rule's jobs: as forecast, or by the size of all its inputs (or its largest).

    Grows with attempts, as far as a partition goes. Of jobs that leave counts on disk no more than
    data.memory_gb needs.
    """
    told, most = FORECAST.get(rule), limits(rule).mem_mb
    own = MEMORY_GB * 1000 / 0.8 if MEMORY_GB and rule in STREAMING else most

    def mem_mb(w, input, attempt):
        size = input.size_mb if together else max(input.size_files_mb)
        asked = told["mem_mb"] if told else base + per_input_mb * size
        return int(min(attempt * min(asked, own), most))

    return mem_mb


def minutes(rule, first, an_input=0):
    """runtime of a rule's jobs: as forecast, or `first` and so much for each input.

    Grows with attempts, as far as a partition goes: training is taken up where it was.
    """
    told, most = FORECAST.get(rule), limits(rule).minutes

    def runtime(w, input, attempt):
        asked = told["runtime"] if told else first + an_input * len(input)
        return int(min(attempt * asked, most))

    return runtime


def settings_of(*keys):
    """Config blocks as command-line flags: what the user set, so that defaults may be improved."""
    return as_is(" ".join(as_flag(key, config.get(key) or {}) for key in keys))


def label_tree():
    """The sheet of labels and their parents, if there is one."""
    named = CONFIG.label_tree not in (None, "none")
    return named_input(CONFIG.label_tree, "`label_tree`") if named else []


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


def block_flag(name, *keys):
    """Those keys of a config block that a job depends on; others are no rerun trigger."""
    block = config.get(name) or {}
    return as_is(as_flag(name, {key: block[key] for key in keys if key in block}))


def found_in_data(w):
    """What was checked and found in the data."""
    path = checkpoints.write_contract.get(atlas=w.atlas).output[0]
    return json.loads(Path(path).read_text())


def held_out_runs(w):
    """Every fold, as calibrate is told; none where no batch is held out."""
    if CONFIG.calibration.scheme != "batches":
        return []
    found = found_in_data(w)
    sizes = len(found["reference"]["batches"]), found["reference"]["n_cells"]
    data = f"results/{w.atlas}/data/held_out"
    twins = f"results/{w.atlas}/seed{w.seed}/held_out"
    return [
        dict(
            fold=fold,
            twin=f"{data}/{fold}/reference.h5ad",
            latent=f"{twins}/{fold}/{w.folder}/reference_latent.h5ad",
            held_out=f"{data}/{fold}/query.h5ad",
            mapped=f"{twins}/{fold}/{w.folder}/mapped.h5ad",
        )
        for fold in range(n_folds(CONFIG.calibration.folds, *sizes))
    ]


def calibration_of(w):
    """What the reference that is mapped onto learned of itself, if it did."""
    if not CALIBRATED or w.variant == "scvi":
        return []
    top = f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}"
    return [f"{top}/{file}" for file in LEARNED]


def of_opinions(w):
    """The same for second opinions, which a model trained anew with the query is not weighed by."""
    if w.strategy == "de_novo" or not (learned := calibration_of(w)):
        return []
    top = os.path.dirname(learned[0])
    return [*learned, *(f"{top}/{file}" for file in BUNDLE)]


def beside_calibration(learned):
    """The bundle that was learned of, as a command-line flag."""
    return f"--bundle={shlex.quote(os.path.dirname(learned[0]))}" if learned else ""


def beside_reference(w):
    """What lies beside a reference's bundle for whoever maps onto it."""
    top = f"results/{w.atlas}/seed{w.seed}/reference/{w.folder}"
    mapped_onto = w.folder in map(model_folder, MODELS)
    made = ["umap.npz"] if mapped_onto and QUERIES else []
    made += LEARNED if mapped_onto and CALIBRATED else []
    made += OF_REFERENCE if w.folder == "totalvi" else []
    return [f"{top}/{file}" for file in made]


def mappings(seeds):
    """(seed, variant, strategy, path of the atlas) of everything that was mapped."""
    return [
        (
            seed,
            variant,
            strategy,
            f"results/{CONFIG.atlas}/seed{seed}/mapping/{variant}/{strategy}/atlas.h5ad",
        )
        for seed in seeds
        for variant in MODELS
        for strategy in (CONFIG.strategies if QUERIES else [])
    ]


def label_runs():
    """What score_labels reads: every atlas, or without queries the reference's own latents."""
    if QUERIES:
        return [
            dict(seed=s, variant=v, strategy=t, atlas=p)
            for s, v, t, p in mappings(CONFIG.seeds)
        ]
    return [
        dict(
            seed=seed,
            variant=variant,
            strategy="",
            atlas=f"results/{CONFIG.atlas}/seed{seed}/reference/{model_folder(variant)}/reference_latent.h5ad",
        )
        for seed in CONFIG.seeds
        for variant in MODELS
    ]


def opinion_runs():
    """Second opinions on every mapping, and on those onto scVI's latent."""
    if not QUERIES or not LABELLED or CONFIG.benchmark.scope == "none":
        return []
    models = [*MODELS, *([] if TAKEN or CITESEQ else ["scvi"])]
    return [
        dict(
            seed=seed,
            variant=variant,
            strategy=strategy,
            atlas=f"results/{CONFIG.atlas}/seed{seed}/mapping/{variant}/{strategy}/opinions.parquet",
            seconds=f"results/{CONFIG.atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.seconds.csv",
        )
        for seed in CONFIG.seeds
        for variant in models
        for strategy in CONFIG.strategies
    ]


def embeddings(seed):
    """name → every embedding of a seed, as score_embeddings is told."""
    top = f"results/{CONFIG.atlas}"
    path = f"{top}/data/reference.h5ad"
    runs = [dict(embedding="pca", cells="reference", path=path)]
    for folder in REFERENCE_FOLDERS:
        path = f"{top}/seed{seed}/reference/{folder}/reference_latent.h5ad"
        of = dict(embedding=folder, cells="reference", path=path)
        runs.append(of | parts_of_model(folder))
    for _, variant, strategy, path in mappings([seed]):
        folder = model_folder(variant)
        of = dict(embedding=f"{folder}_{strategy}", cells="atlas", path=path)
        runs.append(of | parts_of_model(folder) | dict(strategy=strategy))
    return {run["embedding"]: run for run in runs}


def parts_of_model(folder):
    """Model and variant, of the folder of a reference's model."""
    model, _, variant = folder.partition("_")
    return dict(model=model, variant=variant)


def scib_parts(w):
    """Tables to gather: one a seed, or one a seed and embedding for large atlases."""
    contract = json.loads(
        Path(checkpoints.write_contract.get(atlas=w.atlas).output[0]).read_text()
    )
    cells = [contract["reference"], *contract["queries"].values()]
    large = sum(part["n_cells"] for part in cells) > CONFIG.benchmark.split_above
    return [
        f"results/{w.atlas}/benchmark/scib/seed{seed}/{part}.csv"
        for seed in CONFIG.seeds
        for part in (embeddings(seed) if large else ["together"])
    ]


def runs_of(w):
    """Embeddings of one job of score_embeddings."""
    named = embeddings(w.seed)
    return list(named.values()) if w.part == "together" else [named[w.part]]


@functools.cache
def say_forecast():
    """In a dry run, once: what the run will cost."""
    if not workflow.dryrun:
        return
    if FORECAST:
        print(cost(json.loads(PLAN.read_text())), file=sys.stderr)
    else:
        first = "snakemake check"
        print(
            f"forecast: none; {first}, then atlasmap plan {PLAN.parent}",
            file=sys.stderr,
        )


# What a reference that was taken over cannot give is named in contract.json.
SCORED_BY_SCIB = CONFIG.benchmark.scope == "full" and not TAKEN


def figures_drawn():
    """Figure → category, title and table (none: it is of the atlases), of those that this atlas
    has."""
    own, told = not TAKEN, CALIBRATED and QUERIES and FINAL.strategy != "de_novo"
    drawn = {
        "loss_curves": (
            own and (LABELLED or CITESEQ),
            "Training",
            "Loss curves",
            "history",
        ),
        "confusion_validation": (
            own and LABELLED,
            "Labels",
            "Confusion, validation",
            "confusion",
        ),
        "confusion_query": (
            QUERIES and LABELLED,
            "Labels",
            "Confusion, query",
            "confusion",
        ),
        "embeddings": (QUERIES, "Atlas", "Embeddings", None),
        "scib_table": (SCORED_BY_SCIB, "Benchmark", "scib-metrics", "scib"),
        "reliability": (LABELLED, "Labels", "Reliability", "reliability"),
        "risk_coverage": (LABELLED, "Labels", "Risk and coverage", "risk_coverage"),
        "shifts": (told, "Labels", "Labels that moved", "shifts"),
    }
    return {name: rest for name, (there, *rest) in drawn.items() if there}


FIGURES = figures_drawn()


def tables_drawn():
    """Tables that figures are of."""
    tables = dict.fromkeys(table for *_, table in FIGURES.values() if table)
    return [f"results/{{atlas}}/benchmark/{table}.csv" for table in tables]


def drawn_runs():
    """Mappings whose maps are drawn, as a flag."""
    runs = [
        dict(variant=v, strategy=t, atlas=p) for _, v, t, p in mappings([FINAL.seed])
    ]
    return f"--runs {shlex.quote(json.dumps(runs))}" if runs else ""


def drawn_final():
    """The final mapping, as flags."""
    final = dict(variant=FINAL.variant, strategy=FINAL.strategy, seed=FINAL.seed)
    if CALIBRATED and not TAKEN:
        final["risk"] = CONFIG.calibration.risk
    return as_flag("final", final)


def final_targets(wildcards):
    """Everything a finished atlas has."""
    say_forecast()
    return [*reported(wildcards), f"results/{CONFIG.atlas}/report.html"]


def reported(wildcards):
    """Everything that the report is made of, and what goes beside it."""
    # Named here, because a new row's missing checkpoint would not trigger anything by itself.
    targets = [f"results/{CONFIG.atlas}/data/batches/{d.id}.json" for d in QUERIES]
    targets += [
        f"results/{CONFIG.atlas}/data/contract.json",
        f"results/{CONFIG.atlas}/benchmark/history.csv",
    ]
    if SCORED_BY_SCIB:
        targets.append(f"results/{CONFIG.atlas}/benchmark/scib.csv")
    if LABELLED:
        targets += [
            f"results/{CONFIG.atlas}/benchmark/classification.csv",
        ]
    targets += [f"results/{CONFIG.atlas}/figures/{name}.svg" for name in FIGURES]
    targets += [
        f"results/{CONFIG.atlas}/seed{seed}/reference/{folder}/{file}"
        for seed in CONFIG.seeds
        for folder in REFERENCE_FOLDERS
        for file in ("card.md", "seal.json")
    ]
    if CALIBRATED:
        targets += [
            f"results/{CONFIG.atlas}/seed{seed}/reference/{model_folder(variant)}/calibration.json"
            for seed in CONFIG.seeds
            for variant in MODELS
        ]
    if QUERIES:
        targets += [
            f"results/{CONFIG.atlas}/atlas.h5ad",
            f"results/{CONFIG.atlas}/explorer.html",
            *(path for *_, path in mappings(CONFIG.seeds)),
        ]
    if QUERIES and set(CONFIG.strategies) != {"de_novo"}:  # which certifies nothing
        targets.append(f"results/{CONFIG.atlas}/benchmark/certificates.csv")
    if QUERIES and OF_REFERENCE and FINAL.strategy != "de_novo":
        targets += [
            f"results/{CONFIG.atlas}/figures/protein_ridges.svg",
            f"results/{CONFIG.atlas}/figures/protein_dots.svg",
        ]
    if QUERIES and LABELLED:
        targets += [
            f"results/{CONFIG.atlas}/labels.csv",
            f"results/{CONFIG.atlas}/benchmark/trust.csv",
            f"results/{CONFIG.atlas}/benchmark/fitness.csv",
            f"results/{CONFIG.atlas}/benchmark/opinions.csv",
            *([] if TAKEN else [f"results/{CONFIG.atlas}/benchmark/gene_gap.csv"]),
        ]
    return targets


def look(command):
    """Run a command before the first job; what it finds, it says itself."""
    words = [sys.executable, "-m", "atlasmap.commands.main", *shlex.split(command)]
    if subprocess.run(words).returncode:
        raise WorkflowError("No job was run, for what is said above.")


def kept_flags():
    """Data sets that are read anew where results are made of them: as their command is told."""
    again = {job.rule.name for job in workflow.dag.needrun_jobs()}
    read = REFERENCES if "prepare_reference" in again else []
    read = [*read, *(QUERIES if {"find_batches", "prepare_query"} & again else [])]
    paths = [source_path(dataset) for dataset in read]
    if not Path(BEFORE).is_file() or not all(Path(path).exists() for path in paths):
        return ""
    rows = shlex.quote(json.dumps([row(dataset) for dataset in read]))
    files = " ".join(map(shlex.quote, paths))
    config = data_flag("min_cells_per_batch")(None)
    return f"{files} --datasets {rows} --contract {BEFORE} {config}" if read else ""


def doctor_flags():
    """What the preflight of a cluster run is told: the most that each rule's jobs ask for."""
    needs = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            need = needs.setdefault(job.rule.name, dict(mem_mb=0, runtime=0, gpu=0))
            for name in need:  # those of inputs not yet there are yet to be told
                asked = job.resources.get(name)
                need[name] = max(need[name], asked if isinstance(asked, int) else 0)
    said = json.dumps([dict(rule=rule, **need) for rule, need in needs.items()])
    partitions = workflow.executor_settings.partition_config or PARTITION_FILE
    gpu = "--gpu" if any(need["gpu"] for need in needs.values()) else "--no-gpu"
    return (
        f"{gpu} --needs {shlex.quote(said)} --partitions {shlex.quote(str(partitions))}"
    )
