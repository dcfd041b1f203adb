# Memory, time and the cluster's preflight.

import json
import shlex

from atlasmap.jobs.partitions import largest
from atlasmap.settings import GPU_RULES


def limits(rule):
    """The most that any partition grants a rule's jobs."""
    return largest(PARTITIONS, gpu=bool(GPU) and rule in GPU_RULES)


def this_attempt(wildcards, attempt):
    """Which attempt a job is."""
    return attempt


# Rules whose jobs leave counts on disk where there is no room for them.
STREAMING = (
    "prepare_reference",
    "prepare_query",
    "hold_out",
    "train_scvi",
    "train_scanvi",
)
STREAMING += ("train_totalvi", "map_per_batch", "map_joint")


def memory(rule, base, per_input_mb=0, together=True):
    """mem_mb of a rule's jobs: as forecast, or by the size of all its inputs (or its largest).

    Grows with attempts, as far as a partition goes. Of jobs that leave counts on disk no more than
    data.memory_gb needs.
    """
    told, most = FORECAST.get(rule), limits(rule).mem_mb
    own = MEMORY_GB * 1000 / 0.8 if MEMORY_GB and rule in STREAMING else most

    def mem_mb(w, input, attempt):
        size = input.size_mb if together else max(input.size_files_mb)
        asked = told["mem_mb"] if told else base + per_input_mb * size
        return int(min(attempt * min(asked, own), most))

    return mem_mb


def minutes(rule, first, an_input=0):
    """runtime of a rule's jobs: as forecast, or `first` and so much for each input.

    Grows with attempts, as far as a partition goes: training is taken up where it was.
    """
    told, most = FORECAST.get(rule), limits(rule).minutes

    def runtime(w, input, attempt):
        asked = told["runtime"] if told else first + an_input * len(input)
        return int(min(attempt * asked, most))

    return runtime


def doctor_flags():
    """What the preflight of a cluster run is told: the most that each rule's jobs ask for."""
    needs = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            need = needs.setdefault(job.rule.name, dict(mem_mb=0, runtime=0, gpu=0))
            for name in need:  # those of inputs not yet there are yet to be told
                asked = job.resources.get(name)
                need[name] = max(need[name], asked if isinstance(asked, int) else 0)
    said = json.dumps([dict(rule=rule, **need) for rule, need in needs.items()])
    partitions = workflow.executor_settings.partition_config or PARTITION_FILE
    gpu = "--gpu" if any(need["gpu"] for need in needs.values()) else "--no-gpu"
    return (
        f"{gpu} --needs {shlex.quote(said)} --partitions {shlex.quote(str(partitions))}"
    )
