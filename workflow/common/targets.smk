# Targets of a finished run.

import os

# Captions of figures, also used in report.html.
CAPTIONS = ["confusion", "embeddings", "loss_curves", "proteins", "reliability"]
CAPTIONS += ["risk_coverage", "scib_table", "shifts"]


def figures_drawn():
    """Returns figure → category, title and table, for the figures of this run.

    The table is None for a figure drawn from the atlases.
    """
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


def captions():
    """Returns the folder of the figures' captions, after caching all of them locally."""
    files = [of_source(f"workflow/report/{name}.rst") for name in CAPTIONS]
    return os.path.dirname(files[0])


def tables_drawn():
    """Returns the tables from which figures are drawn."""
    tables = dict.fromkeys(table for *_, table in FIGURES.values() if table)
    return [f"results/{{atlas}}/benchmark/{table}.csv" for table in tables]


def drawn_runs():
    """Returns the mappings whose maps are drawn, as a flag."""
    runs = [
        dict(variant=v, strategy=t, atlas=p) for _, v, t, p in mappings([FINAL.seed])
    ]
    return f"--runs {quoted(placed_runs(runs))}" if runs else ""


def drawn_final():
    """Returns the final mapping as a flag, with the requested risk if there is a calibration."""
    final = dict(variant=FINAL.variant, strategy=FINAL.strategy, seed=FINAL.seed)
    if CALIBRATED and not TAKEN:
        final["risk"] = CONFIG.calibration.risk
    return as_flag("final", final)


def final_targets(wildcards):
    """Returns all targets of a finished run; prints the forecast in a dry run."""
    say_forecast()
    return [*reported(wildcards), f"{TOP}/report.html"]


def reported(wildcards):
    """Returns all targets except the report, which is made from them."""
    # Listed explicitly: a missing checkpoint output of a new row would not trigger a run by itself.
    targets = [f"{TOP}/data/batches/{d.id}.json" for d in QUERIES]
    targets += [
        f"{TOP}/data/contract.json",
        f"{TOP}/benchmark/history.csv",
    ]
    if SCORED_BY_SCIB:
        targets.append(f"{TOP}/benchmark/scib.csv")
    if LABELLED:
        targets += [
            f"{TOP}/benchmark/classification.csv",
        ]
    targets += [f"{TOP}/figures/{name}.svg" for name in FIGURES]
    targets += [
        f"{TOP}/seed{seed}/reference/{folder}/{file}"
        for seed in CONFIG.seeds
        for folder in REFERENCE_FOLDERS
        for file in ("card.md", "seal.json")
    ]
    if CALIBRATED:
        targets += [
            f"{TOP}/seed{seed}/reference/{model_folder(variant)}/calibration.json"
            for seed in CONFIG.seeds
            for variant in MODELS
        ]
    if QUERIES:
        targets += [
            f"{TOP}/atlas.h5ad",
            f"{TOP}/explorer.html",
            *(path for *_, path in mappings(CONFIG.seeds)),
        ]
    if QUERIES and set(CONFIG.strategies) != {"de_novo"}:  # de_novo has no certificates
        targets.append(f"{TOP}/benchmark/certificates.csv")
    if QUERIES and OF_REFERENCE and FINAL.strategy != "de_novo":
        targets += [
            f"{TOP}/figures/protein_ridges.svg",
            f"{TOP}/figures/protein_dots.svg",
        ]
    if QUERIES and LABELLED:
        targets += [
            f"{TOP}/labels.csv",
            f"{TOP}/benchmark/trust.csv",
            f"{TOP}/benchmark/fitness.csv",
            f"{TOP}/benchmark/opinions.csv",
            *([] if TAKEN else [f"{TOP}/benchmark/gene_gap.csv"]),
        ]
    return targets
