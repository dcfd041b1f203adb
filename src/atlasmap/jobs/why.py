"""Explain why a job failed, from its log, its failure record, Slurm's log and Slurm's records."""

import fcntl
import glob
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from atlasmap.errors import AtlasmapError
from atlasmap.jobs import slurm
from atlasmap.jobs.failures import (
    MEND,
    NO_MEMORY,
    Failure,
    crash_of,
    failure_path,
    read_failure,
)

SLURM_LOGS = Path(".snakemake/slurm_logs")
STARTED = re.compile(r"slurm job (\d+) on (\S*), attempt (\d+)")
LOG_OF_JOB = re.compile(r"^ +log: ([^\s,]+\.log)", re.MULTILINE)
SHELL_OF_JOB = re.compile(r"^ +(atlasmap --log .+)$", re.MULTILINE)
CAUSE = re.compile(r"^(?:\w+(?:Error|Exception): .+|slurmstepd.*: .+|.*not found)$", re.MULTILINE)
COMMAND = re.compile(r"^\d\d:\d\d:\d\d (atlasmap .+)$", re.MULTILINE)
NEARLY_ALL = 0.9  # fraction of the requested memory

# Patterns in Slurm's job state or log → kind of failure.
SIGNS = {
    r"\bRUNNING|\bPENDING|COMPLETING": "running",
    r"out.of.memory|oom.?kill|memory limit": "host_memory",
    r"TIME LIMIT|TIMEOUT": "walltime",
    r"PREEMPT": "preempted",
    r"NODE_?FAIL": "node",
    r"CANCELLED": "cancelled",
}
SAID = {
    "host_memory": "It was killed for using more memory than it asked for",
    "walltime": "Its walltime ran out",
    "preempted": "It was preempted",
    "node": "Its node failed",
    "cancelled": "It was cancelled",
    "killed": "It was killed from outside, or the machine went down: its log just ends",
    "crash": "It crashed by itself; where it was stands at the end of its log",
}
CHANGE = MEND | {
    "node": "nothing: run snakemake again",
    "cancelled": "nothing, if that was meant: run snakemake again",
    "killed": "look at the node (dmesg, the administrators); run snakemake again",
}


@dataclass(frozen=True)
class Traces:
    """What a job left behind: its log, its failure record, Slurm's log and Slurm's records."""

    log: Path
    text: str
    failure: Failure | None
    slurm_job: str | None
    slurm_text: str
    facts: dict[str, str]


def unfinished(log: Path) -> bool:
    """Returns whether a job's last attempt failed or still runs; success removes these traces."""
    if failure_path(log).exists():
        return True
    return any(path.samefile(log) for path in attempts(log))


def written_to(log: Path) -> bool:
    """Returns whether a process still writes to a log, which it locks until the process ends.

    Always False on file systems without locks (some network disks).
    """
    with open(log, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def attempts(log: Path) -> list[Path]:
    """Returns the logs of a job's attempts that did not succeed."""
    return sorted(log.parent.glob(f"{glob.escape(log.stem)}.attempt*{log.suffix}"))


def find_log(asked: str | None, results: Path) -> Path:
    """Returns the log to explain: `asked` is a path, the name of a rule or command, or None.

    Among logs that match: the most recent of a failed job, else of a running job, else, if `asked`
    is given, of any job. Raises WHY_NO_LOG.
    """
    if asked and Path(asked).is_file():
        return Path(asked)
    logs = [log for log in results.glob("*/logs/**/*.log") if ".attempt" not in log.name]
    named = [log for log in logs if of_rule(log, asked or "")]
    named = named or [log for log in logs if command_of(log) == asked]
    begun = [log for log in named if unfinished(log)]
    found = [log for log in begun if not written_to(log)] or begun or (named if asked else [])
    if not found:
        raise AtlasmapError(
            "WHY_NO_LOG",
            expected=f"a log below {results}/*/logs, of {asked or 'a job that failed'}",
            found="none: nothing has failed, or the job never began",
            mend="see what Snakemake printed, or .snakemake/log",
        )
    return max(found, key=lambda log: log.stat().st_mtime)


def of_rule(log: Path, asked: str) -> bool:
    """Returns whether a log belongs to the rule `asked`, by its path below logs/."""
    rule = asked.replace("-", "_")
    return any(part.startswith(rule) for part in log.parts[log.parts.index("logs") + 1 :])


def command_of(log: Path) -> str | None:
    """Returns the atlasmap command named in a log (such as map-batches), or None."""
    found = COMMAND.search(log.read_text(encoding="utf-8", errors="replace"))
    return found.group(1).split()[1] if found else None


def traces(log: Path) -> Traces:
    """Collect what a job left behind."""
    text, failure = log.read_text(encoding="utf-8", errors="replace"), read_failure(log)
    started = STARTED.findall(text)
    job = failure.slurm_job if failure else None
    job = job or (started[-1][0] if started else None)
    logs = sorted(SLURM_LOGS.glob(f"**/{job}.log")) if job else []
    slurm_text = "".join(path.read_text(errors="replace") for path in logs)
    facts = (slurm.accounted(job) or slurm.job(job)) if job else {}
    return Traces(log, text, failure, job, slurm_text, facts)


def megabytes(text: str) -> float:
    """Convert Slurm's sizes (1500M, 2G, 2Gn) to MB; 0 if the text is no size."""
    found = re.match(r"([\d.]+)([KMGT]?)", text or "")
    return (
        float(found[1]) * {"K": 2**-10, "M": 1, "G": 2**10, "T": 2**20}[found[2] or "M"]
        if found
        else 0.0
    )


def kind(found: Traces) -> str:
    """Returns the kind of failure: by the job's record or log, else Slurm's, else memory use."""
    said = found.failure.kind if found.failure else None
    if said not in (None, "preempted"):  # a signal does not tell who sent it
        return said
    if not said and written_to(found.log):
        return "running"
    if not said and NO_MEMORY in found.text:
        return "host_memory"
    if not said and crash_of(found.log):
        return "crash"
    state = f"{found.facts.get('State', '')} {found.facts.get('JobState', '')}"
    for sign, name in SIGNS.items():
        if re.search(sign, state, re.IGNORECASE):
            return name
    if said:
        return said
    for sign, name in SIGNS.items():
        if re.search(sign, found.slurm_text, re.IGNORECASE):
            return name
    asked = megabytes(found.facts.get("ReqMem", ""))
    if asked and megabytes(found.facts.get("MaxRSS", "")) > NEARLY_ALL * asked:
        return "host_memory"
    return "killed"


def slurms_word(found: Traces) -> str:
    """Returns a sentence with Slurm's record of the job; "" if it did not run under Slurm."""
    if not found.slurm_job:
        return ""
    if not found.facts:
        return f"Slurm has forgotten job {found.slurm_job}."
    keys = ("State", "JobState", "Reason", "ExitCode", "Elapsed", "RunTime", "Timelimit",
            "TimeLimit", "MaxRSS", "ReqMem", "NodeList")  # fmt: skip
    said = [f"{key} {found.facts[key]}" for key in keys if found.facts.get(key)]
    return f"Slurm says of job {found.slurm_job}: {', '.join(said)}."


def name_of(log: Path) -> str:
    """Returns a job's name: the path of its log below logs/, without suffix."""
    parts = log.with_suffix("").parts
    return "/".join(parts[parts.index("logs") + 1 :]) if "logs" in parts else log.stem


def where_and_when(found: Traces) -> str:
    """Returns attempt, node and, if it was recorded, time of the failure as text."""
    if found.failure:
        failure = found.failure
        return f"attempt {failure.attempt}, on {failure.host}, {failure.time}"
    started = STARTED.findall(found.text)
    return f"attempt {started[-1][2]}, on {started[-1][1]}" if started else "not under Slurm"


def paragraph(found: Traces) -> str:
    """Returns what failed, why, what to change, and the command to run the job by hand."""
    failure, what = found.failure, kind(found)
    commands = [failure.command] if failure else COMMAND.findall(found.text)
    hand = f"Log: {found.log}\nBy hand: {commands[-1] if commands else 'see the log'}"
    if not unfinished(found.log):
        return f"{name_of(found.log)} did not fail: its last attempt ended well.\n{hand}"
    if what == "running" and not failure:
        said = f"{name_of(found.log)} is waiting or running. {slurms_word(found)}".rstrip()
        return f"{said}\n{hand}"
    if failure and what == failure.kind:
        why, change = f"{failure.code}: {failure.found}", failure.mend
        if failure.expected:
            why = f"{why.rstrip('.')}; expected: {failure.expected}"
    else:
        why, change = SAID.get(what, SAID["killed"]), CHANGE.get(what, CHANGE["killed"])
    sentences = [
        f"{name_of(found.log)} failed ({what}; {where_and_when(found)}).",
        f"{why.strip().rstrip('.')}.",
        slurms_word(found),
        f"What to do: {change.rstrip('.')}.",
    ]
    if failure and not failure.transient:
        sentences.append("Without a change another attempt is not made.")
    text = textwrap.fill(" ".join(sentence for sentence in sentences if sentence), 98)
    return f"{text}\n{hand}"


def never_began(asked: str | None) -> Path | None:
    """Returns Slurm's log of the last failed job if it failed before atlasmap wrote its own log.

    `asked`: the rule, or None for any. Snakemake keeps Slurm's logs of failed jobs only.
    """
    logs = list(SLURM_LOGS.glob(f"rule_{asked or ''}*/**/*.log"))
    if not logs:
        return None
    last = max(logs, key=lambda log: log.stat().st_mtime)
    own = LOG_OF_JOB.findall(last.read_text(errors="replace"))
    began = not own or (Path(own[-1]).is_file() and Path(own[-1]).stat().st_size)
    return None if began else last


def explain(asked: str | None, results: Path) -> str:
    """Returns an explanation of why the job `asked` (see `find_log`) failed; raises WHY_NO_LOG."""
    slurms = None if asked and Path(asked).is_file() else never_began(asked)
    if slurms is None:
        return paragraph(traces(find_log(asked, results)))
    text = slurms.read_text(errors="replace")
    causes = list(dict.fromkeys(CAUSE.findall(text))) or ["it does not say why"]
    commands = SHELL_OF_JOB.findall(text) or ["see the log"]
    name = "/".join(slurms.parts[len(SLURM_LOGS.parts) : -1])
    told = f"{name} failed before atlasmap began. {' '.join(causes[-4:])}"
    return f"{textwrap.fill(told, 98)}\nLog: {slurms}\nBy hand: {commands[-1]}"
