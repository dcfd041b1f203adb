# What a finished atlas has, and what is looked at before the first job.

import functools
import json
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from atlasmap.config import as_flag, cost

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
