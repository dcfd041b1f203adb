# What is scored and gathered.

import shlex

# Tables of score_labels, besides fitness.csv.
OF_LABELS = ["classification", "classification_per_class", "confusion", "reliability"]
OF_LABELS += ["risk_coverage", "trust", "shifts", "opinions", "knn_sensitivity"]
# What a reference that was taken over cannot give is named in contract.json.
SCORED_BY_SCIB = CONFIG.benchmark.scope == "full" and not TAKEN
CERTIFIED = bool(QUERIES) and set(CONFIG.strategies) != {"de_novo"}


def mappings(seeds):
    """(seed, variant, strategy, path of the atlas) of everything that was mapped."""
    return [
        (s, v, t, f"{mapping_folder(s, v, t)}/atlas.h5ad")
        for s in seeds
        for v in MODELS
        for t in (CONFIG.strategies if QUERIES else [])
    ]


def all_mapped(file="latent.h5ad"):
    """Targets of all mappings."""
    return [
        target
        for seed, variant, strategy, _ in mappings(CONFIG.seeds)
        for target in mapped(seed, variant, strategy, file)
    ]


def label_runs():
    """What score_labels reads: every atlas, or without queries the reference's own latents."""
    if QUERIES:
        runs = mappings(CONFIG.seeds)
        return [dict(seed=s, variant=v, strategy=t, atlas=p) for s, v, t, p in runs]
    return [
        dict(
            seed=seed,
            variant=variant,
            strategy="",
            atlas=f"{TOP}/seed{seed}/reference/{model_folder(variant)}/reference_latent.h5ad",
        )
        for seed in CONFIG.seeds
        for variant in MODELS
    ]


# Second opinions on a mapping, and the seconds that each took: among the logs, for no two runs take
# the same time, and results are the same bits.
SECONDS = (
    "results/{atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.seconds.csv"
)
OPINIONS = []
if QUERIES and LABELLED and CONFIG.benchmark.scope != "none":
    OPINIONS = [*in_mapping("opinions.parquet"), SECONDS]


def opinion_flags(w, output):
    """Where second opinions are written, as flags of their commands."""
    if not output.opinions:
        return ""
    table, seconds = map(shlex.quote, output.opinions)
    return f"--opinions={table} --seconds={seconds} --seed {w.seed}"


def opinion_runs():
    """Second opinions on every mapping, and on those onto scVI's latent."""
    if not OPINIONS:
        return []
    return [
        dict(
            seed=seed,
            variant=variant,
            strategy=strategy,
            atlas=f"{mapping_folder(seed, variant, strategy)}/opinions.parquet",
            seconds=SECONDS.format(
                atlas=CONFIG.atlas, seed=seed, variant=variant, strategy=strategy
            ),
        )
        for seed in CONFIG.seeds
        for variant in [*MODELS, *([] if TAKEN or CITESEQ else ["scvi"])]
        for strategy in CONFIG.strategies
    ]


def gathered_flags():
    """Training histories and certificates of all mappings."""
    runs = [run[:3] for run in mappings(CONFIG.seeds)]
    histories = [path for run in runs for path in histories_of(*run)]
    certified = [run for run in runs if run[2] != "de_novo"]
    certificates = [
        path for run in certified for path in latents(*run, "certificate.json")
    ]
    return " ".join(
        [repeated("mapped", histories), repeated("certificates", certificates)]
    )


def told(runs):
    """Runs as a command is told, with paths as they are placed."""
    return [
        {
            key: placed(v) if isinstance(v, str) and "/" in v else v
            for key, v in run.items()
        }
        for run in runs
    ]


def labels_of_seeds():
    """labels.csv of the final mapping with each seed, the final one first; none of one seed."""
    seeds = sorted(CONFIG.seeds, key=lambda seed: seed != FINAL.seed)
    mapping = f"mapping/{FINAL_MODEL}/{FINAL.strategy}/labels.csv"
    of_seeds = [f"results/{{atlas}}/seed{seed}/{mapping}" for seed in seeds]
    return of_seeds if LABELLED and len(seeds) > 1 else []
