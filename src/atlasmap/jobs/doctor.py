"""Preflight checks: whether this cluster has everything that a run needs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

import yaml

from atlasmap.errors import AtlasmapError
from atlasmap.jobs.partitions import UNREADABLE, Limits, minutes_of, partitions_in
from atlasmap.jobs.slurm import ask, record

LEAST_DISK_GB, SECONDS_OF_SKEW = 5, 5
JOB_MINUTES, SECONDS_FOR_JOB = 2, 600
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
PACKAGES = ("atlasmap", "torch", "snakemake", "snakemake-executor-plugin-slurm", "anndata")
GRES = re.compile(r"\bgpu(?::[^:,()]+)*:(\d+)(?=[(,]|$)")


@dataclass(frozen=True)
class Finding:
    """The result of one check; `mend` says what to do if its level is not "ok"."""

    level: Literal["ok", "note", "error"]
    what: str
    found: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f"\n{'':20}→ {self.mend}" if self.mend else ""
        return f"{self.level:6}{self.what:14}{self.found}{mend}"


@dataclass(frozen=True)
class Need:
    """The most resources that jobs of a rule ask for: MB, minutes, GPUs."""

    rule: str
    mem_mb: int = 0
    runtime: int = 0
    gpu: int = 0


@dataclass(frozen=True)
class Partition:
    """A Slurm partition: time limit (minutes), MB and GPUs per node (inf: no limit)."""

    name: str
    up: bool
    minutes: float
    mem_mb: float
    gpus: int

    def within(self, limits: Limits) -> "Partition":
        """Returns the partition with the lower of its own and the given limits."""
        minutes, mem_mb = min(self.minutes, limits.minutes), min(self.mem_mb, limits.mem_mb)
        return replace(self, minutes=minutes, mem_mb=mem_mb, gpus=int(min(self.gpus, limits.gpus)))

    def lacks(self, need: Need) -> str | None:
        """Returns why a job does not fit into the partition; None if it does."""
        for asked, limit, unit in [
            (need.runtime, self.minutes, "min"),
            (need.mem_mb, self.mem_mb, "MB"),
            (need.gpu, self.gpus, "GPUs"),
        ]:
            if asked > limit:
                return f"{self.name} allows {limit:.0f} {unit}"
        return None


def partitions() -> list[Partition]:
    """Returns the cluster's partitions: time limits from scontrol, node sizes from sinfo."""
    nodes: dict[str, tuple[float, int]] = {}
    for line in (ask("sinfo", "-h", "-N", "-o", "%R|%m|%G") or "").splitlines():
        name, memory, gres = line.split("|")
        gpus = sum(map(int, GRES.findall(gres)))
        most = nodes.get(name, (0.0, 0))
        nodes[name] = (max(most[0], float(memory.rstrip("+"))), max(most[1], gpus))
    out = []
    for line in (ask("scontrol", "--oneliner", "show", "partition") or "").splitlines():
        facts = record(line)
        if "PartitionName" in facts:
            name = facts["PartitionName"]
            limit = minutes_of(facts.get("MaxTime", "UNLIMITED"))
            up = facts.get("State") == "UP"
            out.append(Partition(name, up, limit, *nodes.get(name, (float("inf"), 0))))
    return out


def of_commands() -> Iterator[Finding]:
    """Check Slurm's commands, accounting, and how long squeue remembers finished jobs."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        mend = "run this on a login node of the cluster, or load its Slurm module"
        yield Finding("error", "Slurm", f"no {', '.join(missing)}", mend)
        return
    settings = ask("scontrol", "show", "config")
    if settings is None:
        yield Finding("error", "Slurm", "slurmctld does not answer", "ask: scontrol ping")
        return
    version = (ask("sbatch", "--version") or "").strip()
    yield Finding("ok", "Slurm", f"{version}; its commands are there and answer")
    known = dict(re.findall(r"^(\w+)\s*=\s*(\S+)", settings, re.MULTILINE))
    off = known.get("AccountingStorageType", "").endswith("none")
    if off or ask("sacct", "-n", "-X") is None:
        found = "off" if off else "does not answer"
        mend = "nothing to do: status comes from squeue; atlasmap why asks scontrol, which forgets"
        yield Finding("note", "accounting", found, f"{mend} after {known.get('MinJobAge')} s")
    else:
        yield Finding("ok", "accounting", "on")
    age = int(known.get("MinJobAge", 300))
    if age < 60:
        found = f"squeue forgets a finished job after {age} s"
        mend = "set slurm-status-command: sacct in slurm/config.yaml"
        if off:
            mend = "ask the administrators for a MinJobAge of 60 s or more: without accounting "
            mend += "nobody else knows how a job ended"
        yield Finding("note", "status", found, mend)


def read_partitions(path: Path) -> dict[str, Limits]:
    """Returns partition → limits of a partition file; raises PARTITIONS_INVALID."""
    try:
        return partitions_in(path)
    except UNREADABLE as error:
        raise AtlasmapError(
            "PARTITIONS_INVALID",
            expected=f"partitions and their limits in {path}, as slurm/partitions.yaml has them",
            found=f"{type(error).__name__}: {error}",
            mend="atlasmap doctor --write_partitions",
        ) from error


def of_partitions(chosen: Path, needs: list[Need]) -> Iterator[Finding]:
    """Check that the partitions in the file `chosen` exist, and that jobs with `needs` fit."""
    there = {partition.name: partition for partition in partitions()}
    listed = ", ".join(there) or "none"
    again = f"atlasmap doctor --write_partitions writes {chosen} anew; the cluster has: {listed}"
    try:
        allowed = read_partitions(chosen)
    except AtlasmapError as error:
        yield Finding("error", "partitions", error.found, again)
        return
    unknown = [name for name in allowed if name not in there or not there[name].up]
    if unknown or not allowed:
        found = f"{', '.join(unknown) or 'none listed'}: not there or not up"
        yield Finding("error", "partitions", found, again)
    usable = [there[name].within(allowed[name]) for name in allowed if name not in unknown]
    for partition in usable:
        limits = f"{partition.minutes:.0f} min, {partition.mem_mb:.0f} MB, {partition.gpus} GPUs"
        yield Finding("ok", "partition", f"{partition.name}: up to {limits}")
    misfits = {need: [partition.lacks(need) for partition in usable] for need in needs}
    misfits = {need: why for need, why in misfits.items() if all(why)}
    for need, why in misfits.items():
        asked = f"{need.mem_mb} MB, {need.runtime} min, {need.gpu} GPUs"
        mend = f"snakemake --set-resources {need.rule}:runtime=… (or mem_mb, gpu), or " + again
        found = f"{need.rule} asks for {asked}; {'; '.join(map(str, why)) or 'no partition'}"
        yield Finding("error", "limits", found, mend)
    if needs and usable and not misfits:
        yield Finding("ok", "limits", f"the jobs of {len(needs)} rules fit")


def of_packages() -> Iterator[Finding]:
    """Check that the required packages are installed."""
    installed = {distribution.name for distribution in metadata.distributions()}
    versions = {name: metadata.version(name) for name in PACKAGES if name in installed}
    missing = [name for name in PACKAGES if name not in versions]
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    if missing:
        yield Finding("error", "packages", f"{text}; no {', '.join(missing)}", "make env")
    else:
        yield Finding("ok", "packages", text)


def of_gpu(wanted: bool) -> Iterator[Finding]:
    """Check whether torch can use a GPU on this node; an error if a GPU is `wanted`."""
    import torch

    from atlasmap.device import usable_cuda

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    why = usable_cuda()
    if why is None:
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        about = f"{name}, {memory:.0f} GiB, compute capability {capability[0]}.{capability[1]}"
        yield Finding("ok", "GPU", f"{about}, CUDA {torch.version.cuda}")
    else:
        mend = "install a CUDA build of torch (envs/README.md), choose another gpu_model, or "
        mend += "compute without GPUs: --config device=cpu"
        found = f"{why} (CUDA_VISIBLE_DEVICES: {visible})"
        yield Finding("error" if wanted else "note", "GPU", found, mend if wanted else "")


def of_disk(folder: Path, what: str) -> Iterator[Finding]:
    """Check write access, free space, and the clock skew between file system and this machine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            skew = os.stat(file.name).st_mtime - time.time()
            file.write(b"x")
    except OSError as error:
        yield Finding("error", what, f"{folder}: {error.strerror}", "make it writable, or give "
                      "another with --directory")  # fmt: skip
        return
    free = shutil.disk_usage(folder).free / 2**30
    if free < LEAST_DISK_GB:
        level = "error" if what == "results" else "note"
        yield Finding(level, what, f"{folder}: {free:.1f} GiB free", f"free {LEAST_DISK_GB} GiB")
    else:
        yield Finding("ok", what, f"{folder}: writable, {free:.0f} GiB free")
    if abs(skew) > SECONDS_OF_SKEW:
        found = f"files in {folder} are {skew:+.0f} s off this machine's clock"
        yield Finding("error", "clock", found, "Snakemake compares times of files: ask the admins")


def profile_flags(profile: Path, gpu: bool) -> list[str]:
    """Returns the sbatch flags that the profile implies: account, QoS, constraint, and the GPU."""
    given = yaml.safe_load(profile.read_text(encoding="utf-8")) if profile.is_file() else {}
    listed = given.get("default-resources") or []
    pairs = listed.items() if isinstance(listed, dict) else (str(x).split("=", 1) for x in listed)
    known = {str(key): str(value).strip("'\"") for key, value in pairs}
    names = {"slurm_account": "--account", "qos": "--qos", "constraint": "--constraint"}
    flags = [f"{flag}={known[name]}" for name, flag in names.items() if name in known]
    if gpu:
        asked = (given.get("set-resources") or {}).get("train_scvi") or {}
        model = asked.get("gpu_model") if isinstance(asked, dict) else None
        flags.append(f"--gpus={model}:1" if model else "--gpus=1")
    return flags


def in_a_job(chosen: Path, results: Path, gpu: bool) -> list[str]:
    """Run the checks inside a short Slurm job; returns the lines that it printed."""
    usable = {partition.name: partition for partition in partitions()}
    need = Need("", gpu=int(gpu))
    allowed = read_partitions(chosen)
    fits = [n for n in allowed if n in usable and not usable[n].within(allowed[n]).lacks(need)]
    if not fits:
        return [str(Finding("error", "job", f"no partition of {chosen} has what it needs"))]
    inside = [sys.executable, "-m", "atlasmap.commands.main", "doctor", "--inside"]
    inside += ["--results", str(results), *([] if gpu else ["--no-gpu"])]
    with tempfile.TemporaryDirectory(dir=results, prefix=".doctor-") as scratch:
        said = Path(scratch) / "said"
        command = ["sbatch", "--wait", "--job-name=doctor", f"--time={JOB_MINUTES}", "--mem=1500"]
        command += [f"--partition={fits[0]}", f"--output={said}"]
        command += [*profile_flags(chosen.with_name("config.yaml"), gpu), "--wrap"]
        try:
            done = subprocess.run(
                [*command, shlex.join(inside)], capture_output=True, text=True,
                timeout=SECONDS_FOR_JOB,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            ask("scancel", "--name=doctor", "--me")
            found = f"no answer within {SECONDS_FOR_JOB // 60} min: is the queue full?"
            return [str(Finding("error", "job", found, f"squeue -p {fits[0]}"))]
        text = said.read_text() if said.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith(("ok", "note", "error", " "))]
    found = (done.stderr + text).strip() or "said nothing"
    return lines or [str(Finding("error", "job", found, "slurm/config.yaml; sinfo -R"))]


def write_partitions(path: Path) -> Finding:
    """Write the partition file `path` from the limits of Slurm's partitions that are up."""
    found = {
        partition.name: {
            key: value
            for key, value in [
                ("max_runtime", partition.minutes),
                ("max_mem_mb", partition.mem_mb),
                ("max_gpu", partition.gpus),
            ]
            if value not in (float("inf"), 0)
        }
        for partition in partitions()
        if partition.up
    }
    if not found:
        return Finding("error", "partitions", "Slurm names none that is up", "sinfo")
    numbers = {n: {k: int(v) for k, v in limits.items()} for n, limits in found.items()}
    aside = path.with_name(f".{path.name}.partial")
    comment = (
        "# Written by `atlasmap doctor --write_partitions`; leave out what jobs must not use.\n"
    )
    aside.write_text(comment + yaml.safe_dump({"partitions": numbers}, sort_keys=False))
    os.replace(aside, path)
    return Finding("ok", "partitions", f"{path} written: {', '.join(found)}")
