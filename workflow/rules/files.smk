# Where files are, and which there will be.

import json
import os
from pathlib import Path

from atlasmap.config import n_folds
from atlasmap.errors import AtlasmapError
from atlasmap.exchange.files import cells_file, model_file
from atlasmap.files import check_input, from_home, slug, unslug
from atlasmap.jobs.packing import jobs


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


def label_tree():
    """The sheet of labels and their parents, if there is one."""
    named = CONFIG.label_tree not in (None, "none")
    return named_input(CONFIG.label_tree, "`label_tree`") if named else []


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


def beside_reference(w):
    """What lies beside a reference's bundle for whoever maps onto it."""
    top = f"results/{w.atlas}/seed{w.seed}/reference/{w.folder}"
    mapped_onto = w.folder in map(model_folder, MODELS)
    made = ["umap.npz"] if mapped_onto and QUERIES else []
    made += LEARNED if mapped_onto and CALIBRATED else []
    made += OF_REFERENCE if w.folder == "totalvi" else []
    return [f"{top}/{file}" for file in made]
