"""How a command speaks: how much, as text or as lines of JSON, in colour on a terminal alone."""

import json
import logging
import os
import sys

NOISY = ("matplotlib", "fontTools", "jax", "numba", "pooch")
RED, PLAIN = "\033[1;31m", "\033[0m"


class JsonLines(logging.Formatter):
    """A record as a line of JSON: time (UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
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
    for name in NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def in_red(text: str) -> str:
    """Red where stderr is a terminal and NO_COLOR (no-color.org) is not set."""
    colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"{RED}{text}{PLAIN}" if colored else text
