"""Query Slurm through its commands; where it gives no answer, functions return None or {}."""

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
    """Returns the output of a Slurm command; None if it is missing, fails or times out."""
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
    """Parse one line of `scontrol --oneliner show` into key → value."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|\s*$)", text))


def job(job_id: str) -> dict[str, str]:
    """Returns scontrol's record of a job; {} once scontrol has forgotten the job."""
    return record(ask("scontrol", "--oneliner", "show", "job", job_id) or "")


def accounted(job_id: str) -> dict[str, str]:
    """Returns sacct's record of a job, with MaxRSS over all its steps; {} without accounting."""
    keys = ["JobID", "State", "ExitCode", "MaxRSS", "ReqMem", "Elapsed", "Timelimit", "NodeList"]
    text = ask("sacct", "-j", job_id, "-n", "-P", "--units=M", f"--format={','.join(keys)}")
    rows = [dict(zip(keys, line.split("|"), strict=False)) for line in (text or "").splitlines()]
    if not rows:
        return {}
    worst = max((float(row["MaxRSS"].rstrip("M") or 0) for row in rows), default=0)
    return rows[0] | {"MaxRSS": f"{worst:.0f}M"}


def moment(text: str) -> float | None:
    """Convert Slurm's local time to a Unix timestamp; None for Unknown, None, UNLIMITED."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def job_times(anew: bool = False, environment=os.environ) -> JobTimes | None:
    """Returns start and end of the current Slurm job; None outside a job or without a limit.

    Read from SLURM_JOB_START_TIME and SLURM_JOB_END_TIME (set since Slurm 23); where these are
    missing, or with `anew`, scontrol is asked.
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
    """Returns whether the walltime is about to end: a SIGTERM then comes from the time limit."""
    times = job_times()
    return times is not None and time.time() > times.end - SECONDS_OF_GRACE


def asked_times(job_id: str) -> JobTimes | None:
    """Returns start and end as scontrol reports them now; a limit may change during the job."""
    facts = job(job_id)
    start, end = moment(facts.get("StartTime", "")), moment(facts.get("EndTime", ""))
    return None if start is None or end is None else JobTimes(start, end)
