"""Progress of a run, from its logs and failure records, and the time left by the forecast."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import MANIFEST
from atlasmap.forecast.cost import rule_of
from atlasmap.jobs.failures import failure_path, read_failure
from atlasmap.jobs.why import command_of, name_of, unfinished
from atlasmap.training.stopping import in_words

EPOCH = re.compile(r"^\d\d:\d\d:\d\d (.+: epoch \d+ of \d+, .+)$", re.MULTILINE)
STATES = ("done", "running", "failed")


@dataclass(frozen=True)
class Job:
    """A job, as its log shows it.

    `state` is one of STATES; `quiet`: minutes since the log last changed; `why`: the error code of
    a failed job.
    """

    log: Path
    command: str
    state: str
    quiet: float
    why: str = ""


def job_of(log: Path) -> Job | None:
    """Returns the job of a log; None if it never began."""
    command = command_of(log)
    if not command:
        return None
    quiet = (time.time() - log.stat().st_mtime) / 60
    if failure_path(log).exists():
        failure = read_failure(log)
        return Job(log, command, "failed", quiet, failure.code if failure else "")
    return Job(log, command, "running" if unfinished(log) else "done", quiet)


def jobs_of(folder: Path) -> list[Job]:
    """Returns all jobs of results/{atlas} that have begun; raises STATUS_NONE."""
    logs = sorted((folder / "logs").rglob("*.log"))
    found = [job for log in logs if ".attempt" not in log.name and (job := job_of(log))]
    if not found:
        raise AtlasmapError(
            "STATUS_NONE",
            expected=f"logs of jobs below {folder / 'logs'}",
            found="none",
            mend="give results/{atlas} of a run that has begun",
        )
    return found


def latest_atlas(results: Path = Path("results")) -> Path:
    """Returns the folder of the atlas whose logs changed last; raises STATUS_NONE."""
    logs = [path for path in results.glob("*/logs") if path.is_dir()]
    if not logs:
        raise AtlasmapError(
            "STATUS_NONE",
            expected=f"logs of jobs below {results}/{{atlas}}/logs",
            found=f"none, seen from {Path.cwd()}",
            mend="go where Snakemake runs, or give results/{atlas} of a run that has begun",
        )
    return max(logs, key=lambda path: max(p.stat().st_mtime for p in [path, *path.rglob("*.log")])
               ).parent  # fmt: skip


def by_command(jobs: list[Job]) -> pd.DataFrame:
    """Count jobs per command (rows) and state (columns), rows ordered by earliest log change."""
    table = pd.DataFrame({"command": [j.command for j in jobs], "state": [j.state for j in jobs]})
    counts = pd.crosstab(table["command"], table["state"]).reindex(columns=STATES, fill_value=0)
    first = {}
    for job in sorted(jobs, key=lambda job: job.log.stat().st_mtime):
        first.setdefault(job.command, len(first))
    return counts.loc[sorted(counts.index, key=first.get)]


def seconds_left(folder: Path, jobs: list[Job]) -> float | None:
    """Returns forecast seconds of jobs that are not done yet; None without a forecast."""
    plan = folder / "forecast.json"
    if not plan.is_file():
        return None
    done = pd.Series([rule_of(job.log) for job in jobs if job.state == "done"], dtype=object)
    n = done.value_counts()
    rows = json.loads(plan.read_text(encoding="utf-8"))["forecast"]
    return sum(max(0, row["jobs"] - n.get(row["rule"], 0)) * row["seconds"] for row in rows)


def said_last(log: Path) -> str:
    """Returns the last line of a log on training progress; "" if there is none."""
    found = EPOCH.findall(log.read_text(encoding="utf-8", errors="replace"))
    return found[-1] if found else ""


def lost_results(folder: Path) -> list[str]:
    """Returns results listed in a finished run's manifest that no longer exist."""
    names = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    return [name for name in names if not (folder / name).exists()]


def status_text(folder: Path) -> str:
    """Returns the status as text: jobs per state, failures, silent jobs, and the time left."""
    jobs = jobs_of(folder)
    lines = [by_command(jobs).rename_axis(columns=None).to_string(), ""]
    for job in jobs:
        if job.state == "failed":
            lines.append(f"failed:  {job.log}  {job.why}   (atlasmap why {job.log})")
        if job.state == "running" and (said := said_last(job.log)):
            lines.append(f"{name_of(job.log)}: {said}")
        if job.state == "running" and job.quiet > 10:
            lines.append(f"quiet for {job.quiet:.0f} min: {job.log}   (killed? look at its end)")
    left = seconds_left(folder, jobs)
    ended = (folder / MANIFEST).is_file() and all(job.state == "done" for job in jobs)
    if ended and (lost := lost_results(folder)):
        lines.append(f"finished, but since then these results were removed: {listed(lost)}; run "
                     "snakemake again to make them")  # fmt: skip
    elif ended:
        lines.append("finished")
    elif left is None:
        lines.append(f"time left: not known; atlasmap plan {folder} makes a forecast")
    else:
        said = f"{in_words(left)} of training and mapping, one job after the other"
        lines.append(f"time left by the forecast: {said}")
    return "\n".join(lines)
