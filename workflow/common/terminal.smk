"""What a quiet run (`--quiet rules host`, as in the slurm profile) shows of Snakemake: a line for
each job that ends, and whatever is neither scheduling nor told by `atlasmap why`. Snakemake's own
log keeps its own words."""

import logging
import time
from urllib.parse import unquote

from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

DROPPED = {LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.RESOURCES_INFO}
# First words of what has no event.
SCHEDULING = (
    "Select jobs to execute",
    "Assuming unrestricted shared filesystem",
    "Building DAG of jobs",
    "Using shell",
    "Conda environments: ignored",
    "Singularity containers: ignored",
    "DAG of jobs will be updated",
    "Updating checkpoint dependencies",
    "Removing output files of failed job",
    "Exiting because a job execution failed",
)


class Terminal(logging.Formatter):
    """Filter and formatter of the terminal, over the handler's own."""

    def __init__(self, handler):
        super().__init__()
        self.formatter = handler.formatter
        self.filters = list(handler.filters)
        self.started = {}  # job → its rule and wildcards
        self.finished = []

    def filter(self, record):
        """Whether a record is shown. Those of jobs are remembered for the line at a job's end."""
        event, text = getattr(record, "event", None), str(record.msg or "")
        if event in (LogEvent.JOB_INFO, LogEvent.JOB_ERROR):
            self.started.setdefault(record.jobid, described(record))
        if event == LogEvent.JOB_FINISHED:
            self.finished.append(self.started.get(record.job_id, text))
        # Snakemake counts failed jobs among what `rules` silences.
        if event == LogEvent.JOB_ERROR:
            return True
        if event in DROPPED or text.startswith(SCHEDULING) or told_by_why(text):
            return False
        return all(own.filter(record) for own in self.filters)

    def format(self, record):
        """Text of a record: of a job that ends, how many have; of one that failed, its log."""
        event = getattr(record, "event", None)
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        if event == LogEvent.PROGRESS:
            names, self.finished = self.finished, []
            return f"{at} {record.done:>4} of {record.total}  {', '.join(names)}"
        if event == LogEvent.JOB_ERROR:
            logs = " ".join(map(str, record.log or []))
            return f"{at}  failed  {self.started[record.jobid]}  log: {logs}"
        return self.formatter.format(record)


def described(record):
    """Rule and wildcards of a job, but for the atlas, which is the run's."""
    wildcards = record.__dict__.get("wildcards") or {}
    named = [
        f"{key}={unquote(str(value).replace('~', '%'))}"  # batches as their files are named
        for key, value in wildcards.items()
        if key != "atlas"
    ]
    return " ".join([record.rule_name, *named])


def told_by_why(text):
    """Whether an error says no more than that a job's command failed."""
    return "returned non-zero exit status" in text or text.endswith(
        "At least one job did not complete successfully."
    )


def quieten(handlers, quiet):
    """Take over the terminal where Snakemake was asked to be quiet about rules, and no more."""
    asked = quiet or ()
    if Quietness.RULES not in asked or Quietness.PROGRESS in asked:
        return
    for handler in handlers:
        if handler.name == "DefaultStreamHandler":
            terminal = Terminal(handler)
            handler.filters = [terminal]
            handler.setFormatter(terminal)


if workflow.is_main_process:
    quieten(logger.handlers, workflow.output_settings.quiet)
