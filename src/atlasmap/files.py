"""Files that are either whole or not there, and file names for any batch name."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`; rename it onto `path` if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(path: str | Path, last: str) -> Iterator[Path]:
    """Yield a scratch folder; move its files into `path` if the block ends without an error.

    `last` names the file that is moved last: where it is there, the others are.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path) as scratch:
        yield Path(scratch)
        (path / last).unlink(missing_ok=True)
        for file in sorted(Path(scratch).iterdir(), key=lambda file: file.name == last):
            os.replace(file, path / file.name)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(name: str) -> str:
    """A batch name as a file name: reversible, safe in shells, Slurm patterns and on every disk."""
    quoted = quote(name, safe="").replace("~", "%7E").replace("%", "~")
    return "~2E" + quoted[1:] if quoted.startswith(".") else quoted


def unslug(text: str) -> str:
    """The batch name that `slug` made a file name of."""
    return unquote(text.replace("~", "%"))
