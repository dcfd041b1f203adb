# Checks before the first job, and the forecast in a dry run. (Snakemake runs no onstart handlers of
# a module: docs/in_your_workflow.md lists commands that do the same.)

import functools
import json
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError


def preflight(command):
    """Run an atlasmap command before the first job, which prints what it finds; stop on failure."""
    if INSTALLED and subprocess.run([INSTALLED, *shlex.split(command)]).returncode:
        raise WorkflowError("No job was run, for what is said above.")


@functools.cache
def say_forecast():
    """In a dry run, print the forecast, once."""
    if not workflow.dryrun:
        return
    said = f"none; snakemake check, then atlasmap plan {PLAN.parent}"
    if FORECAST:
        made = json.loads(PLAN.read_text())
        said = f"{made['hours']:.2f} h of training and mapping (probed on {made['device']})"
    print(f"forecast: {said}", file=sys.stderr)


def kept_flags():
    """Returns flags with data sets that this run reads again although results exist, to check that
    they lose no cells; "" if there are none."""
    again = {job.rule.name for job in workflow.dag.needrun_jobs()}
    read = REFERENCES if "prepare_reference" in again else []
    read = [*read, *(QUERIES if {"find_batches", "prepare_query"} & again else [])]
    paths = [source_path(dataset) for dataset in read]
    if not Path(BEFORE).is_file() or not all(Path(path).exists() for path in paths):
        return ""
    files = " ".join(map(shlex.quote, paths))
    rows, config = quoted([row(d) for d in read]), data_flag("min_cells_per_batch")(
        None
    )
    return f"{files} --datasets {rows} --contract {BEFORE} {config}" if read else ""


def doctor_flags():
    """Returns flags for `atlasmap doctor`: the most that each rule's jobs ask for, partitions."""
    needs = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            need = needs.setdefault(job.rule.name, dict(mem_mb=0, runtime=0, gpu=0))
            for name in need:  # not a number yet if inputs are missing
                value = job.resources.get(name)
                need[name] = max(need[name], value if isinstance(value, int) else 0)
    said = quoted([dict(rule=rule, **need) for rule, need in needs.items()])
    partitions = workflow.executor_settings.partition_config or PARTITION_FILE
    gpu = "--gpu" if any(need["gpu"] for need in needs.values()) else "--no-gpu"
    return f"{gpu} --needs {said} --partitions {shlex.quote(str(partitions))}"
