"""How a command speaks: how much, as text or as lines of JSON, in colour on a terminal alone."""

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
    """A record as a line of JSON: time (UTC), level, logger, message."""

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
    """Send what is logged from `level` on to stderr; those that chatter from warnings on."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Libraries' own debugging is not what is asked for.
    logging.getLogger().setLevel(max(level, logging.INFO))
    logging.getLogger("atlasmap").setLevel(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def keep_terminal() -> None:
    """Before stderr becomes a file: lines on how far a training is go on to the terminal, too, if
    there is one."""
    if not os.isatty(2):
        return
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w", encoding="utf-8"))
    handler.addFilter(lambda record: hasattr(record, "progress"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("atlasmap").addHandler(handler)


def used() -> str:
    """Time and memory that this process has used so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.time() - psutil.Process().create_time()
    cpu, peak = spent.ru_utime + spent.ru_stime, spent.ru_maxrss / 1024
    return f"{seconds:.1f} s, {cpu:.1f} s of processor time, {peak:.0f} MB at most"


def in_red(text: str) -> str:
    """Red where stderr is a terminal and NO_COLOR (no-color.org) is not set."""
    colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"{RED}{text}{PLAIN}" if colored else text
