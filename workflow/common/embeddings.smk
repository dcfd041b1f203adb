# Embeddings that scib-metrics scores.


def parts_of_model(folder):
    """Returns model and variant, from the name of a reference model's folder."""
    model, _, variant = folder.partition("_")
    return dict(model=model, variant=variant)


def embeddings(seed):
    """Returns name → embedding (as passed to score_embeddings) for all embeddings of a seed."""
    path = f"{TOP}/data/reference.h5ad"
    runs = [dict(embedding="pca", cells="reference", path=path)]
    for folder in REFERENCE_FOLDERS:
        path = f"{TOP}/seed{seed}/reference/{folder}/reference_latent.h5ad"
        of = dict(embedding=folder, cells="reference", path=path)
        runs.append(of | parts_of_model(folder))
    for _, variant, strategy, path in mappings([seed]):
        folder = model_folder(variant)
        of = dict(embedding=f"{folder}_{strategy}", cells="atlas", path=path)
        runs.append(of | parts_of_model(folder) | dict(strategy=strategy))
    return {run["embedding"]: run for run in runs}


def scib_parts(w):
    """Returns the tables to gather: one per seed, or per seed and embedding in large atlases."""
    found = found_in_data(w)
    parts = [found["reference"], *found["queries"].values()]
    large = sum(part["n_cells"] for part in parts) > CONFIG.benchmark.split_above
    return [
        f"results/{w.atlas}/benchmark/scib/seed{seed}/{part}.csv"
        for seed in CONFIG.seeds
        for part in (embeddings(seed) if large else ["together"])
    ]


def runs_of(w):
    """Returns the embeddings that a job of score_embeddings scores."""
    named = embeddings(w.seed)
    return list(named.values()) if w.part == "together" else [named[w.part]]
