# Errors that a user can mend, as the package words them. (Parsing needs nothing but Snakemake.)

import sys
from contextlib import contextmanager

from snakemake.exceptions import WorkflowError


class AtlasmapError(WorkflowError):
    """A short, stable `code`, and three sentences. Snakemake shows it without a traceback."""

    def __init__(self, code, *, expected, found, mend):
        self.code, self.expected, self.found, self.mend = code, expected, found, mend
        super().__init__(
            f"{code}\n  expected: {expected}\n  found:    {found}\n  mend:     {mend}"
        )


@contextmanager
def leaving():
    """An error inside ends the process with exit code 2."""
    try:
        yield
    except AtlasmapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def listed(names, most=8):
    """Names for an error message: all of a few, the first of many."""
    names = [str(name) for name in names]
    if len(names) <= most:
        return ", ".join(names) if names else "none"
    return f"{', '.join(names[:most])} … ({len(names)} in all)"
