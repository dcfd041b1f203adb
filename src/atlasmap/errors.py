"""The exception for user errors: a code, what was expected, what was found, how to mend it."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class AtlasmapError(Exception):
    """An error that the user can fix.

    `code` is short and stable (`COUNTS_NOT_INTEGER`); the other three arguments are phrases.
    """

    def __init__(self, code: str, *, expected: str, found: str, mend: str):
        self.code, self.expected, self.found, self.mend = code, expected, found, mend
        super().__init__(f"{code}\n  expected: {expected}\n  found:    {found}\n  mend:     {mend}")


SHEET = re.compile(r"`(\w+)` in the sheet")
CONFIG = re.compile(r"`([\w.]+)(?:: ([\w.\[\]]+))?` in the config|(?<=\()(data\.\w+)(?=\))")


@contextmanager
def said_as_flags(config: str = "--config.", **names: str) -> Iterator[None]:
    """Rewrite errors inside the context to name a command's flags instead of sheet columns and
    config keys.

    `config`: prefix of the flags for config keys; `names`: column → flag, where these differ.
    """

    def of_column(found: re.Match) -> str:
        return f"`--{names.get(found[1], found[1])}`"

    def of_key(found: re.Match) -> str:
        return f"`{config}{found[1] or found[3]}{' ' + found[2] if found[2] else ''}`"

    try:
        yield
    except AtlasmapError as error:
        texts = (error.expected, error.found, error.mend)
        said = (CONFIG.sub(of_key, SHEET.sub(of_column, text)) for text in texts)
        expected, found, mend = said
        raise AtlasmapError(error.code, expected=expected, found=found, mend=mend) from error


@contextmanager
def leaving() -> Iterator[None]:
    """Exit with code 2 at an AtlasmapError inside the context, printing it without a traceback."""
    try:
        yield
    except AtlasmapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def listed(names, most: int = 8) -> str:
    """Join names for a message; of more than `most`, the first ones and the total number."""
    names = [str(name) for name in names]
    if len(names) <= most:
        return ", ".join(names) if names else "none"
    return f"{', '.join(names[:most])} … ({len(names)} in all)"
