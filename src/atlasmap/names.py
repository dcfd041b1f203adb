"""Batch names as file names. (The workflow includes this file: it imports the standard library
alone.)"""

from urllib.parse import quote, unquote


def slug(name: str) -> str:
    """Convert a batch name to a file name: reversible, safe in shells, Slurm patterns and file
    systems."""
    quoted = quote(name, safe="").replace("~", "%7E").replace("%", "~")
    return "~2E" + quoted[1:] if quoted.startswith(".") else quoted


def unslug(text: str) -> str:
    """Inverse of `slug`: the batch name of a file name."""
    return unquote(text.replace("~", "%"))
