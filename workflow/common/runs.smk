# Mappings, and the runs that are scored and gathered.

import shlex

# Tables of score_labels, besides fitness.csv.
OF_LABELS = ["classification", "classification_per_class", "confusion", "reliability"]
OF_LABELS += ["risk_coverage", "trust", "shifts", "opinions", "knn_sensitivity"]
# contract.json names what is left out because a given reference cannot provide it.
SCORED_BY_SCIB = CONFIG.benchmark.scope == "full" and not TAKEN
CERTIFIED = bool(QUERIES) and set(CONFIG.strategies) != {"de_novo"}


def mappings(seeds):
    """Returns (seed, variant, strategy, path of the atlas) of all mappings."""
    return [
        (s, v, t, f"{mapping_folder(s, v, t)}/atlas.h5ad")
        for s in seeds
        for v in MODELS
        for t in (CONFIG.strategies if QUERIES else [])
    ]


def all_mapped(file="latent.h5ad"):
    """Returns the targets of all mappings."""
    return [
        target
        for seed, variant, strategy, _ in mappings(CONFIG.seeds)
        for target in mapped(seed, variant, strategy, file)
    ]


def label_runs():
    """Returns the runs that score_labels scores: every atlas, or the reference's latents if there
    are no queries."""
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


# Second opinions on a mapping, and their run times. The latter are among the logs, because they
# differ between runs, whereas results are bit-identical.
SECONDS = (
    "results/{atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.seconds.csv"
)
OPINIONS = []
if QUERIES and LABELLED and CONFIG.benchmark.scope != "none":
    OPINIONS = [*in_mapping("opinions.parquet"), SECONDS]


def opinion_flags(w, output):
    """Returns flags that say where second opinions are written; "" if there are none."""
    if not output.opinions:
        return ""
    table, seconds = map(shlex.quote, output.opinions)
    return f"--opinions={table} --seconds={seconds} --seed {w.seed}"


def opinion_runs():
    """Returns the second opinions on every mapping, and on mappings onto scVI's latent."""
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
    """Returns training histories and certificates of all mappings, as flags."""
    runs = [run[:3] for run in mappings(CONFIG.seeds)]
    histories = [path for run in runs for path in histories_of(*run)]
    certified = [run for run in runs if run[2] != "de_novo"]
    certificates = [
        path for run in certified for path in latents(*run, "certificate.json")
    ]
    return " ".join(
        [repeated("mapped", histories), repeated("certificates", certificates)]
    )


def placed_runs(runs):
    """Returns runs for a command line: paths with the module's prefix."""
    return [
        {
            key: placed(v) if isinstance(v, str) and "/" in v else v
            for key, v in run.items()
        }
        for run in runs
    ]


def labels_of_seeds():
    """Returns labels.csv of the final mapping for each seed, the final seed first; empty if there
    is only one seed."""
    seeds = sorted(CONFIG.seeds, key=lambda seed: seed != FINAL.seed)
    mapping = f"mapping/{FINAL_MODEL}/{FINAL.strategy}/labels.csv"
    of_seeds = [f"results/{{atlas}}/seed{seed}/{mapping}" for seed in seeds]
    return of_seeds if LABELLED and len(seeds) > 1 else []
