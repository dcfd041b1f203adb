"""Logging of commands: level, text or JSON lines, colour only on a terminal."""

import json
import logging
import os
import resource
import sys
import time

import psutil

NOISY = ("matplotlib", "fontTools", "jax", "numba", "pooch")
RED, PLAIN = "\033[1;31m", "\033[0m"


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON object per line: time (UTC), level, logger, message; failure
    and traceback if there are any."""

    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= {"failure": record.failure} if hasattr(record, "failure") else {}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


def listen(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Log messages from `level` on to stderr; those of the libraries in NOISY only from warnings
    on."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # --verbose is for atlasmap's debugging messages, not for those of libraries.
    logging.getLogger().setLevel(max(level, logging.INFO))
    logging.getLogger("atlasmap").setLevel(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def keep_terminal() -> None:
    """Keep showing lines on the progress of a training on the terminal, if there is one. Called
    before stderr is redirected to a log file."""
    if not os.isatty(2):
        return
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w", encoding="utf-8"))
    handler.addFilter(lambda record: hasattr(record, "progress"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("atlasmap").addHandler(handler)


def used() -> str:
    """Text with the elapsed time, CPU time and peak memory of this process so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.time() - psutil.Process().create_time()
    cpu, peak = spent.ru_utime + spent.ru_stime, spent.ru_maxrss / 1024
    return f"{seconds:.1f} s, {cpu:.1f} s of processor time, {peak:.0f} MB at most"


def in_red(text: str) -> str:
    """`text` in red if stderr is a terminal and NO_COLOR (no-color.org) is not set, else
    unchanged."""
    colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"{RED}{text}{PLAIN}" if colored else text
