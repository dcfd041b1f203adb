# Query batches and the files of their mappings.

import json
from pathlib import Path


def batches_of(dataset):
    """Returns file names of a query data set's batches; known once the checkpoint has run."""
    found = checkpoints.find_batches.get(atlas=CONFIG.atlas, dataset=dataset.id)
    return [slug(name) for name in json.loads(Path(found.output[0]).read_text())]


def query_batches():
    """Returns file names of all query batches, sorted; raises BATCH_NAME_TWICE."""
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
    """Returns the query data set that a batch belongs to."""
    return next(d for d in QUERIES if batch in batches_of(d))


def queries(w):
    """Returns the files of all prepared query batches."""
    return [prepared(batch) for batch in query_batches()]


def query_facts(w):
    """Returns the files with facts about each query batch."""
    return [f"results/{w.atlas}/data/queries/{batch}.json" for batch in query_batches()]


def prepared(batch):
    """Returns the file of a prepared query batch."""
    return f"{TOP}/data/queries/{batch}.h5ad"


def queries_of_job(w):
    """Returns the files of the query batches that a job of map_per_batch maps."""
    return [prepared(batch) for batch in members(w.job, query_batches())]


def all_counts(w):
    """Returns the prepared reference, if it is trained here, and all prepared query batches."""
    return [*([] if TAKEN else [f"{TOP}/data/reference.h5ad"]), *queries(w)]


def mapping_folder(seed, variant, strategy):
    """Returns the folder of a variant's mappings by a strategy."""
    return f"{TOP}/seed{seed}/mapping/{variant}/{strategy}"


def latents(seed, variant, strategy="per_batch", file="latent.h5ad"):
    """Returns a file of each mapping of a strategy (one per batch, or one for all batches), with
    the module's prefix, for use in parameters."""
    top = placed(mapping_folder(seed, variant, strategy))
    folders = ["all"] if strategy in ("joint", "de_novo") else query_batches()
    return [f"{top}/{folder}/{file}" for folder in folders]


def mapped(seed, variant, strategy, file="latent.h5ad"):
    """Returns targets of a (variant, strategy): the `file` of the joint mapping, or one marker per
    job that maps query batches."""
    top = mapping_folder(seed, variant, strategy)
    if strategy in ("joint", "de_novo"):
        return [f"{top}/all/{file}"]
    done = {
        marker.stem: len(json.loads(marker.read_text()))
        for marker in Path(placed(f"{top}/.mapped")).glob("*.json")
    }
    most = CONFIG.mapping.batches_per_job
    jobs = packed(query_batches(), most, lambda job: done.get(job, 0))
    return [f"{top}/.mapped/{job}.json" for job in jobs]


def histories_of(seed, variant, strategy):
    """Returns training histories of a strategy, with the module's prefix, for parameters."""
    if strategy == "de_novo":
        top = placed(f"{TOP}/seed{seed}/de_novo/all")
        folders = {model_folder(variant), *([] if CITESEQ else ["scvi"])}
        return [f"{top}/{folder}/history.csv" for folder in folders]
    return latents(seed, variant, strategy, "history.csv")
