"""Why a job failed: its log, its record, Slurm's log and what Slurm knows, in one paragraph."""

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
NEARLY_ALL = 0.9  # of the memory asked for

# What Slurm writes into a job's log, or calls its state → the kind of failure.
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
    """What a job left: its log's text, its record, Slurm's log, and Slurm's facts."""

    log: Path
    text: str
    failure: Failure | None
    slurm_job: str | None
    slurm_text: str
    facts: dict[str, str]


def unfinished(log: Path) -> bool:
    """Whether a job's last attempt failed or is still running: success removes these traces."""
    if failure_path(log).exists():
        return True
    return any(path.samefile(log) for path in attempts(log))


def written_to(log: Path) -> bool:
    """Whether a process still writes to a log: it holds a lock until its end, however that comes.
    Where there are no locks (some network disks) nothing is known of it."""
    with open(log, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def attempts(log: Path) -> list[Path]:
    """Logs of a job's attempts that did not succeed."""
    return sorted(log.parent.glob(f"{glob.escape(log.stem)}.attempt*{log.suffix}"))


def find_log(asked: str | None, results: Path) -> Path:
    """The log that is meant by a path, the name of a rule or command, or nothing: of the jobs that
    failed the one that wrote last, else of those that run, else (of a rule) the last at all; raises
    WHY_NO_LOG."""
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
    """Whether a log is of a job of the rule that is `asked` for, by where it is."""
    rule = asked.replace("-", "_")
    return any(part.startswith(rule) for part in log.parts[log.parts.index("logs") + 1 :])


def command_of(log: Path) -> str | None:
    """The command that a log begins with: map-batches."""
    found = COMMAND.search(log.read_text(encoding="utf-8", errors="replace"))
    return found.group(1).split()[1] if found else None


def traces(log: Path) -> Traces:
    """Gather what a job left behind."""
    text, failure = log.read_text(encoding="utf-8", errors="replace"), read_failure(log)
    started = STARTED.findall(text)
    job = failure.slurm_job if failure else None
    job = job or (started[-1][0] if started else None)
    logs = sorted(SLURM_LOGS.glob(f"**/{job}.log")) if job else []
    slurm_text = "".join(path.read_text(errors="replace") for path in logs)
    facts = (slurm.accounted(job) or slurm.job(job)) if job else {}
    return Traces(log, text, failure, job, slurm_text, facts)


def megabytes(text: str) -> float:
    """Slurm's 1500M, 2G, 2Gn in MB; 0 if it is none."""
    found = re.match(r"([\d.]+)([KMGT]?)", text or "")
    return (
        float(found[1]) * {"K": 2**-10, "M": 1, "G": 2**10, "T": 2**20}[found[2] or "M"]
        if found
        else 0.0
    )


def kind(found: Traces) -> str:
    """The job's own word, else Slurm's, else what its memory suggests."""
    said = found.failure.kind if found.failure else None
    if said not in (None, "preempted"):  # a signal says nothing of who sent it
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
    """What Slurm says of the job, in a sentence."""
    if not found.slurm_job:
        return ""
    if not found.facts:
        return f"Slurm has forgotten job {found.slurm_job}."
    keys = ("State", "JobState", "Reason", "ExitCode", "Elapsed", "RunTime", "Timelimit",
            "TimeLimit", "MaxRSS", "ReqMem", "NodeList")  # fmt: skip
    said = [f"{key} {found.facts[key]}" for key in keys if found.facts.get(key)]
    return f"Slurm says of job {found.slurm_job}: {', '.join(said)}."


def name_of(log: Path) -> str:
    """A job's name, from where its log is."""
    parts = log.with_suffix("").parts
    return "/".join(parts[parts.index("logs") + 1 :]) if "logs" in parts else log.stem


def where_and_when(found: Traces) -> str:
    """Attempt, node, time."""
    if found.failure:
        failure = found.failure
        return f"attempt {failure.attempt}, on {failure.host}, {failure.time}"
    started = STARTED.findall(found.text)
    return f"attempt {started[-1][2]}, on {started[-1][1]}" if started else "not under Slurm"


def paragraph(found: Traces) -> str:
    """What failed, why, what to change, and the command to run it by hand."""
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
    """Slurm's log of the job that failed last, if it failed before atlasmap said anything.

    Snakemake keeps Slurm's logs of failed jobs only.
    """
    logs = list(SLURM_LOGS.glob(f"rule_{asked or ''}*/**/*.log"))
    if not logs:
        return None
    last = max(logs, key=lambda log: log.stat().st_mtime)
    own = LOG_OF_JOB.findall(last.read_text(errors="replace"))
    began = not own or (Path(own[-1]).is_file() and Path(own[-1]).stat().st_size)
    return None if began else last


def explain(asked: str | None, results: Path) -> str:
    """Why the job that is meant failed; raises WHY_NO_LOG."""
    slurms = None if asked and Path(asked).is_file() else never_began(asked)
    if slurms is None:
        return paragraph(traces(find_log(asked, results)))
    text = slurms.read_text(errors="replace")
    causes = list(dict.fromkeys(CAUSE.findall(text))) or ["it does not say why"]
    commands = SHELL_OF_JOB.findall(text) or ["see the log"]
    name = "/".join(slurms.parts[len(SLURM_LOGS.parts) : -1])
    told = f"{name} failed before atlasmap began. {' '.join(causes[-4:])}"
    return f"{textwrap.fill(told, 98)}\nLog: {slurms}\nBy hand: {commands[-1]}"
