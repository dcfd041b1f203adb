# Errors that a user can fix, in the package's format. Defined here because parsing the workflow
# must need nothing but Snakemake.

import sys
from contextlib import contextmanager

from snakemake.exceptions import WorkflowError


class AtlasmapError(WorkflowError):
    """An error with a short, stable `code`, what was expected and found, and how to fix it.

    Snakemake shows a WorkflowError without a traceback.
    """

    def __init__(self, code, *, expected, found, mend):
        self.code, self.expected, self.found, self.mend = code, expected, found, mend
        super().__init__(
            f"{code}\n  expected: {expected}\n  found:    {found}\n  mend:     {mend}"
        )


@contextmanager
def leaving():
    """Context manager: an AtlasmapError inside ends the process with exit code 2."""
    try:
        yield
    except AtlasmapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def listed(names, most=8):
    """Join names for an error message: all, or the first `most` and their total number."""
    names = [str(name) for name in names]
    if len(names) <= most:
        return ", ".join(names) if names else "none"
    return f"{', '.join(names[:most])} … ({len(names)} in all)"
