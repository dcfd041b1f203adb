# Query batches, and what is mapped of them.

import json
import os
from pathlib import Path


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


def queries(w):
    """All prepared query batches."""
    return [prepared(batch) for batch in query_batches()]


def query_facts(w):
    """What was found in each query batch."""
    return [f"results/{w.atlas}/data/queries/{batch}.json" for batch in query_batches()]


def prepared(batch):
    """A prepared query batch."""
    return f"{TOP}/data/queries/{batch}.h5ad"


def queries_of_job(w):
    """Those that a job of map_per_batch maps."""
    return [prepared(batch) for batch in members(w.job, query_batches())]


def all_counts(w):
    """The prepared reference, where there is one, and all query batches."""
    return [*([] if TAKEN else [f"{TOP}/data/reference.h5ad"]), *queries(w)]


def mapping_folder(seed, variant, strategy):
    """Where a variant's mappings by a strategy are."""
    return f"{TOP}/seed{seed}/mapping/{variant}/{strategy}"


def latents(seed, variant, strategy="per_batch", file="latent.h5ad"):
    """A file of each mapping of a strategy, as a parameter: one per batch, or one for all."""
    top = placed(mapping_folder(seed, variant, strategy))
    folders = ["all"] if strategy in ("joint", "de_novo") else query_batches()
    return [f"{top}/{folder}/{file}" for folder in folders]


def mapped(seed, variant, strategy, file="latent.h5ad"):
    """Targets of one (variant, strategy): the `file` of the joint mapping, or one marker per job of
    query batches."""
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
    """Training histories of a strategy, as parameters."""
    if strategy == "de_novo":
        top = placed(f"{TOP}/seed{seed}/de_novo/all")
        folders = {model_folder(variant), *([] if CITESEQ else ["scvi"])}
        return [f"{top}/{folder}/history.csv" for folder in folders]
    return latents(seed, variant, strategy, "history.csv")
