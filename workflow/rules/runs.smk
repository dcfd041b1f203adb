# What is scored and gathered.

import json
from pathlib import Path


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
