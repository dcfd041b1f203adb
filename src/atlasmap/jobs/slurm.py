"""What Slurm knows: asked of its own commands, with None for an answer that is not to be had."""

import os
import re
import shutil
import subprocess
import time
from datetime import datetime

from atlasmap.training.stopping import JobTimes

SECONDS_TO_ANSWER = 20
SECONDS_OF_GRACE = 15.0


def ask(*command: str) -> str | None:
    """Output of a Slurm command; None if it is not there, fails, or does not answer."""
    if shutil.which(command[0]) is None:
        return None
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return run.stdout


def record(text: str) -> dict[str, str]:
    """Key → value of one line of `scontrol --oneliner show`."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|\s*$)", text))


def job(job_id: str) -> dict[str, str]:
    """What scontrol knows of a job; empty once it has forgotten it."""
    return record(ask("scontrol", "--oneliner", "show", "job", job_id) or "")


def accounted(job_id: str) -> dict[str, str]:
    """What sacct knows of a job, its steps' worst memory included; empty without accounting."""
    keys = ["JobID", "State", "ExitCode", "MaxRSS", "ReqMem", "Elapsed", "Timelimit", "NodeList"]
    text = ask("sacct", "-j", job_id, "-n", "-P", "--units=M", f"--format={','.join(keys)}")
    rows = [dict(zip(keys, line.split("|"), strict=False)) for line in (text or "").splitlines()]
    if not rows:
        return {}
    worst = max((float(row["MaxRSS"].rstrip("M") or 0) for row in rows), default=0)
    return rows[0] | {"MaxRSS": f"{worst:.0f}M"}


def moment(text: str) -> float | None:
    """Slurm's local time as seconds since 1970; None for Unknown, None, UNLIMITED."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def job_times(anew: bool = False, environment=os.environ) -> JobTimes | None:
    """Start and end of the job this process is in; None outside of one or without a limit.

    SLURM_JOB_END_TIME is there from Slurm 23 on; before that, and `anew`, scontrol is asked.
    """
    job_id = environment.get("SLURM_JOB_ID")
    if job_id is None:
        return None
    if not anew and "SLURM_JOB_START_TIME" in environment and "SLURM_JOB_END_TIME" in environment:
        return JobTimes(
            float(environment["SLURM_JOB_START_TIME"]), float(environment["SLURM_JOB_END_TIME"])
        )
    return asked_times(job_id)


def near_end() -> bool:
    """Whether this job's walltime is what ends it: Slurm's SIGTERM comes at the limit."""
    times = job_times()
    return times is not None and time.time() > times.end - SECONDS_OF_GRACE


def asked_times(job_id: str) -> JobTimes | None:
    """Start and end as scontrol says now: a limit may be raised while the job runs."""
    facts = job(job_id)
    start, end = moment(facts.get("StartTime", "")), moment(facts.get("EndTime", ""))
    return None if start is None or end is None else JobTimes(start, end)
