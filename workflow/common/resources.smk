# Memory, time, GPUs and partitions of jobs.

import os
import re
from pathlib import Path

GPU = 0 if CONFIG.device == "cpu" else 1
# Flags that do not affect results; passed as resources, which trigger no rerun.
MEMORY_GB = CONFIG.data.memory_gb
MEMORY = f"--memory_gb {MEMORY_GB}" if MEMORY_GB else ""
RUNNING = f"--checkpoint_minutes {CONFIG.checkpoint_minutes} {MEMORY}"
CHECKING = f"--config.data.memory_gb {MEMORY_GB}" if MEMORY_GB else ""
# The least gene overlap is only checked, and does not change the prepared reference: no rerun.
SHARED = f"--config.data.min_gene_overlap {CONFIG.data.min_gene_overlap}"


def read_partitions(path):
    """Returns the limits of each partition; raises PARTITIONS_INVALID."""
    try:
        return list(partitions_in(path).values())
    except UNREADABLE as error:
        raise AtlasmapError(
            "PARTITIONS_INVALID",
            expected=f"partitions and their limits in {path}, as slurm/partitions.yaml has them",
            found=f"{type(error).__name__}: {error}",
            mend="atlasmap doctor --write_partitions",
        ) from error


def largest_limits(partitions, gpu):
    """Returns the largest limits (minutes, MB) of any partition with at least `gpu` GPUs."""
    fit = [limits for limits in partitions if limits.gpus >= gpu]
    return (
        max((limits.minutes for limits in fit), default=NO_LIMIT),
        max((limits.mem_mb for limits in fit), default=NO_LIMIT),
    )


def partition_file():
    """Returns the partition file: $SNAKEMAKE_SLURM_PARTITIONS, else that of the profile in the
    working directory (a deployed copy), else that beside the workflow."""
    own = Path("profiles/slurm/partitions.yaml")
    if given := os.environ.get("SNAKEMAKE_SLURM_PARTITIONS"):
        return Path(given)
    return own if own.is_file() else Path(of_source(str(own)))


def check_slurm_resources(given):
    """Raise SLURM_RESOURCE for resources (of a profile or the command line) that break jobs."""
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
    """Resource function: the number of the job's attempt."""
    return attempt


def needs(
    name,
    mb,
    minutes,
    mb_per_mb=0,
    minutes_per_input=0,
    gpu=False,
    streams=False,
    largest=False,
):
    """Returns the resources of jobs of `name`, by the forecast, else by the arguments.

    Memory (MB): `mb` + `mb_per_mb` × size of all inputs (`largest`: of the largest input). Time:
    `minutes` + `minutes_per_input` × number of inputs. Both are multiplied by the attempt, up to
    the partitions' limits; training resumes from its checkpoint. `gpu`: jobs train on a GPU.
    `streams`: counts stay on disk, so that memory is bounded by data.memory_gb.
    """
    forecast = FORECAST.get(name)
    most_minutes, most_mb = largest_limits(PARTITIONS, gpu and GPU)
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


# Set here, because a path in the profile would be relative to the folder of --directory.
PARTITION_FILE = partition_file()
os.environ.setdefault("SNAKEMAKE_SLURM_PARTITIONS", str(PARTITION_FILE))
PARTITIONS = read_partitions(PARTITION_FILE) if PARTITION_FILE.is_file() else []
for given in (
    workflow.resource_settings.default_resources or {},
    *workflow.resource_settings.overwrite_resources.values(),
):
    check_slurm_resources({name: resource.raw for name, resource in given.items()})
