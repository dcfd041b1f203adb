"""Terminal output of a quiet run (`--quiet rules host`, as in the slurm profile).

One line is shown per job that ends, plus messages that are neither about scheduling nor explained
by `atlasmap why`. Snakemake's log file is not affected.
"""

import logging
import time
from urllib.parse import unquote

from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

DROPPED = {LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.RESOURCES_INFO}
# Beginnings of scheduling messages that have no event.
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
    """Filter and formatter of the terminal handler, on top of the handler's own."""

    def __init__(self, handler):
        super().__init__()
        self.formatter = handler.formatter
        self.filters = list(handler.filters)
        self.started = {}  # job → its rule and wildcards
        self.finished = []

    def filter(self, record):
        """Returns whether a record is shown; remembers jobs for the line when they end."""
        event, text = getattr(record, "event", None), str(record.msg or "")
        if event in (LogEvent.JOB_INFO, LogEvent.JOB_ERROR):
            self.started.setdefault(record.jobid, described(record))
        if event == LogEvent.JOB_FINISHED:
            self.finished.append(self.started.get(record.job_id, text))
        # Shown here, because `--quiet rules` silences errors of jobs, too.
        if event == LogEvent.JOB_ERROR:
            return True
        if event in DROPPED or text.startswith(SCHEDULING) or told_by_why(text):
            return False
        return all(own.filter(record) for own in self.filters)

    def format(self, record):
        """Returns the text of a record: progress and names of jobs that ended, or a failed job and
        its log."""
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
    """Returns rule and wildcards of a job as text, without the wildcard atlas."""
    wildcards = record.__dict__.get("wildcards") or {}
    named = [
        f"{key}={unquote(str(value).replace('~', '%'))}"  # as `unslug`
        for key, value in wildcards.items()
        if key != "atlas"
    ]
    return " ".join([record.rule_name, *named])


def told_by_why(text):
    """Returns whether an error says only that a job's command failed."""
    return "returned non-zero exit status" in text or text.endswith(
        "At least one job did not complete successfully."
    )


def quieten(handlers, quiet):
    """Install `Terminal` if Snakemake was asked to be quiet about rules, but not about progress."""
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
