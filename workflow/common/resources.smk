# Memory, time and place of jobs.

import os
import re
from pathlib import Path
from types import SimpleNamespace

NO_LIMIT = float("inf")
GPU = 0 if CONFIG.device == "cpu" else 1
# What a job may use; among the resources, for another figure makes no result outdated.
MEMORY_GB = CONFIG.data.memory_gb
MEMORY = f"--memory_gb {MEMORY_GB}" if MEMORY_GB else ""
RUNNING = f"--checkpoint_minutes {CONFIG.checkpoint_minutes} {MEMORY}"
CHECKING = f"--config.data.memory_gb {MEMORY_GB}" if MEMORY_GB else ""
# Another floor checks the reference's genes otherwise, and changes nothing of it.
SHARED = f"--config.data.min_gene_overlap {CONFIG.data.min_gene_overlap}"


def minutes_of(text):
    """Slurm's [days-]hours:minutes:seconds in minutes; a number is minutes already."""
    if isinstance(text, (int, float)):
        return float(text)
    if text in ("UNLIMITED", "infinite", "NONE", ""):
        return NO_LIMIT
    days, _, clock = text.rpartition("-")
    parts = [float(part) for part in clock.split(":")]
    if len(parts) == 1 and not days:
        return parts[0]
    while len(parts) < 3:
        parts.insert(0, 0.0) if not days else parts.append(0.0)
    return int(days or 0) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60


def read_partitions(path):
    """Limits of each partition, as the Slurm plugin reads them; raises PARTITIONS_INVALID."""
    import yaml

    try:
        named = yaml.safe_load(path.read_text(encoding="utf-8"))["partitions"]
        return [
            SimpleNamespace(
                minutes=minutes_of(limits.get("max_runtime", NO_LIMIT)),
                mem_mb=float(limits.get("max_mem_mb", NO_LIMIT)),
                gpus=float(limits.get("max_gpu", 0)),
            )
            for limits in (limits or {} for limits in named.values())
        ]
    except (
        OSError,
        TypeError,
        KeyError,
        ValueError,
        AttributeError,
        yaml.YAMLError,
    ) as error:
        raise AtlasmapError(
            "PARTITIONS_INVALID",
            expected=f"partitions and their limits in {path}, as slurm/partitions.yaml has them",
            found=f"{type(error).__name__}: {error}",
            mend="atlasmap doctor --write_partitions",
        ) from error


def most(partitions, gpu):
    """The most minutes and memory that any partition grants to jobs with, or without, a GPU."""
    fit = [limits for limits in partitions if limits.gpus >= gpu]
    return (
        max((limits.minutes for limits in fit), default=NO_LIMIT),
        max((limits.mem_mb for limits in fit), default=NO_LIMIT),
    )


def partition_file():
    """Where the partitions are: as the environment says, else those of the profile in the working
    directory (a deployed copy) or beside the workflow."""
    own = Path("profiles/slurm/partitions.yaml")
    if given := os.environ.get("SNAKEMAKE_SLURM_PARTITIONS"):
        return Path(given)
    return own if own.is_file() else Path(of_source(str(own)))


def check_slurm_resources(given):
    """Resources from a profile or the command line that would break Slurm jobs: SLURM_RESOURCE."""
    extra = str(given.get("slurm_extra") or "")
    if "gpus" in given:
        found, mend = f"gpus={given['gpus']}", "say gpu (it becomes --gpus), or gres"
    elif re.search(r"--job-name\b|(^|[\s'\"])-J", extra):
        found = f"slurm_extra={extra}"
        mend = "leave the job's name to Snakemake, which finds its jobs by it"
    else:
        return
    raise AtlasmapError(
        "SLURM_RESOURCE",
        expected="resources that the Slurm plugin can work with",
        found=found,
        mend=mend,
    )


def this_attempt(wildcards, attempt):
    """Which attempt a job is."""
    return attempt


def asked(
    name,
    mb,
    minutes,
    mb_per_mb=0,
    minutes_per_input=0,
    gpu=False,
    streams=False,
    largest=False,
):
    """Resources of a rule's jobs, as forecast, or by what is given here: memory by the size of all
    inputs (or of the largest), time by their number. Both grow with attempts, as far as a partition
    goes: training is taken up where it was. Jobs that leave counts on disk (`streams`) ask for no
    more than data.memory_gb needs."""
    forecast, (most_minutes, most_mb) = FORECAST.get(name), most(
        PARTITIONS, gpu and GPU
    )
    own = MEMORY_GB * 1000 / 0.8 if MEMORY_GB and streams else most_mb

    def mem_mb(wildcards, input, attempt):
        size = max(input.size_files_mb) if largest else input.size_mb
        need = forecast["mem_mb"] if forecast else mb + mb_per_mb * size
        return int(min(attempt * min(need, own), most_mb))

    def runtime(wildcards, input, attempt):
        need = (
            forecast["runtime"]
            if forecast
            else minutes + minutes_per_input * len(input)
        )
        return int(min(attempt * need, most_minutes))

    out = dict(attempt=this_attempt, mem_mb=mem_mb, runtime=runtime)
    return out | (dict(gpu=GPU, device=CONFIG.device, running=RUNNING) if gpu else {})


# Not in the profile: a path there would be looked for in the folder that --directory names.
PARTITION_FILE = partition_file()
os.environ.setdefault("SNAKEMAKE_SLURM_PARTITIONS", str(PARTITION_FILE))
PARTITIONS = read_partitions(PARTITION_FILE) if PARTITION_FILE.is_file() else []
for given in (
    workflow.resource_settings.default_resources or {},
    *workflow.resource_settings.overwrite_resources.values(),
):
    check_slurm_resources({name: resource.raw for name, resource in given.items()})
