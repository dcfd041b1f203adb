"""A look before the leap: is everything there that a run on this cluster needs?"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import yaml

from atlasmap.cluster.slurm import ask, record

LEAST_DISK_GB, SECONDS_OF_SKEW = 5, 5
JOB_MINUTES, SECONDS_FOR_JOB = 2, 600
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
PACKAGES = ("atlasmap", "torch", "snakemake", "snakemake-executor-plugin-slurm", "anndata")
GRES = re.compile(r"gpu(?::[^:,()]+)*?:(\d+)")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do where it is not `ok`."""

    level: Literal["ok", "note", "error"]
    what: str
    found: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f"\n{'':20}→ {self.mend}" if self.mend else ""
        return f"{self.level:6}{self.what:14}{self.found}{mend}"


@dataclass(frozen=True)
class Need:
    """What the jobs of a rule ask for."""

    rule: str
    mem_mb: int = 0
    runtime: int = 0
    gpu: int = 0


@dataclass(frozen=True)
class Partition:
    """A partition as Slurm describes it: minutes, MB a node, GPUs a node (inf: no limit)."""

    name: str
    up: bool
    minutes: float
    mem_mb: float
    gpus: int

    def lacks(self, need: Need) -> str | None:
        """Why a job does not fit; None if it does."""
        for asked, limit, unit in [
            (need.runtime, self.minutes, "min"),
            (need.mem_mb, self.mem_mb, "MB"),
            (need.gpu, self.gpus, "GPUs"),
        ]:
            if asked > limit:
                return f"{self.name} allows {limit:.0f} {unit}"
        return None


def minutes_of(text: str) -> float:
    """Slurm's [days-]hours:minutes:seconds in minutes."""
    if text in ("UNLIMITED", "infinite", "NONE", ""):
        return float("inf")
    days, _, clock = text.rpartition("-")
    parts = [float(part) for part in clock.split(":")]
    while len(parts) < 3:
        parts.insert(0, 0.0) if not days else parts.append(0.0)
    return int(days or 0) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60


def partitions() -> list[Partition]:
    """The cluster's partitions: limits from scontrol, sizes of nodes from sinfo."""
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
    """Slurm's commands, accounting, and how long squeue remembers."""
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
        yield Finding(
            "note", "status", found, "set slurm-status-command: sacct in slurm/config.yaml"
        )


def of_partitions(chosen: Path, needs: list[Need]) -> Iterator[Finding]:
    """The partitions that jobs may go to, against the cluster's and against what rules ask."""
    there = {partition.name: partition for partition in partitions()}
    listed = ", ".join(there) or "none"
    again = f"atlasmap doctor --write_partitions writes {chosen} anew; the cluster has: {listed}"
    try:
        names = list(yaml.safe_load(chosen.read_text())["partitions"])
    except (OSError, TypeError, KeyError, yaml.YAMLError):
        yield Finding("error", "partitions", f"{chosen} does not list any", again)
        return
    unknown = [name for name in names if name not in there or not there[name].up]
    if unknown:
        yield Finding("error", "partitions", f"{', '.join(unknown)}: not there or not up", again)
    usable = [there[name] for name in names if name in there and there[name].up]
    for partition in usable:
        limits = f"{partition.minutes:.0f} min, {partition.mem_mb:.0f} MB, {partition.gpus} GPUs"
        yield Finding("ok", "partition", f"{partition.name}: up to {limits}")
    for need in needs:
        why = [partition.lacks(need) for partition in usable]
        if all(why):
            asked = f"{need.mem_mb} MB, {need.runtime} min, {need.gpu} GPUs"
            mend = f"snakemake --set-resources {need.rule}:runtime=… (or mem_mb, gpu), or " + again
            found = f"{need.rule} asks for {asked}; {'; '.join(map(str, why)) or 'no partition'}"
            yield Finding("error", "limits", found, mend)
    if needs and usable and not any(all(p.lacks(n) for p in usable) for n in needs):
        yield Finding("ok", "limits", f"the jobs of {len(needs)} rules fit")


def of_packages() -> Iterator[Finding]:
    """What is installed."""
    installed = {distribution.name for distribution in metadata.distributions()}
    versions = {name: metadata.version(name) for name in PACKAGES if name in installed}
    missing = [name for name in PACKAGES if name not in versions]
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    if missing:
        yield Finding("error", "packages", f"{text}; no {', '.join(missing)}", "make env")
    else:
        yield Finding("ok", "packages", text)


def of_gpu(wanted: bool) -> Iterator[Finding]:
    """Whether torch can compute on a GPU, in a job that has one."""
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
    """Write access, free space, and whether the disk's clock is this machine's."""
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
        yield Finding("error", what, f"{folder}: {free:.1f} GiB free", f"free {LEAST_DISK_GB} GiB")
    else:
        yield Finding("ok", what, f"{folder}: writable, {free:.0f} GiB free")
    if abs(skew) > SECONDS_OF_SKEW:
        found = f"files in {folder} are {skew:+.0f} s off this machine's clock"
        yield Finding("error", "clock", found, "Snakemake compares times of files: ask the admins")


def in_a_job(chosen: Path, results: Path, gpu: bool) -> list[str]:
    """Look around in a job of a minute; what it said, line by line."""
    usable = {partition.name: partition for partition in partitions()}
    names = [name for name in yaml.safe_load(chosen.read_text())["partitions"] if name in usable]
    fits = [name for name in names if not usable[name].lacks(Need("", gpu=int(gpu)))]
    if not fits:
        return [str(Finding("error", "job", f"no partition of {chosen} has what it needs"))]
    inside = [sys.executable, "-m", "atlasmap.commands.main", "doctor", "--inside"]
    inside += ["--results", str(results), *([] if gpu else ["--no-gpu"])]
    with tempfile.TemporaryDirectory(dir=results, prefix=".doctor-") as scratch:
        said = Path(scratch) / "said"
        command = ["sbatch", "--wait", "--parsable", f"--time={JOB_MINUTES}", "--mem=1500"]
        command += [f"--partition={fits[0]}", f"--output={said}", *(["--gpus=1"] if gpu else [])]
        command += ["--wrap", shlex.join(inside)]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_JOB)
        except subprocess.TimeoutExpired:
            found = f"no answer within {SECONDS_FOR_JOB // 60} min: is the queue full?"
            return [str(Finding("error", "job", found, f"squeue -p {fits[0]}"))]
        text = said.read_text() if said.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith(("ok", "note", "error", " "))]
    return lines or [str(Finding("error", "job", text.strip() or "said nothing", "sinfo -R"))]


def write_partitions(path: Path) -> Finding:
    """The partition file from what Slurm says of its partitions."""
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
