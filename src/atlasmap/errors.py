"""The one exception users see: a code, what was expected, what was found, how to mend it."""


class AtlasmapError(Exception):
    """Something the user can mend.

    `code` is short and stable (`COUNTS_NOT_INTEGER`); the other three are sentences.
    """

    def __init__(self, code: str, *, expected: str, found: str, mend: str):
        self.code, self.expected, self.found, self.mend = code, expected, found, mend
        super().__init__(f"{code}\n  expected: {expected}\n  found:    {found}\n  mend:     {mend}")


def listed(names, most: int = 8) -> str:
    """Names for an error message: all of a few, the first of many."""
    names = [str(name) for name in names]
    if len(names) <= most:
        return ", ".join(names) if names else "none"
    return f"{', '.join(names[:most])} … ({len(names)} in all)"
