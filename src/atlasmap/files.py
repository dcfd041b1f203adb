"""Files that are either whole or not there, and file names for any batch name."""

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

RECORD = ".sha256"
MANIFEST = ".results"  # names of all results of an atlas's last finished run


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`; rename it onto `path` if the block ends without an error.

    Its checksum is recorded beside it. What a killed process left aside is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".*.partial.{glob.escape(path.name)}"):
        stale.unlink(missing_ok=True)
    aside = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield aside
        rename_recorded(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def rename_recorded(source: Path, target: Path) -> None:
    """Rename, and record the checksum beside `target` in the form `sha256sum -c` reads."""
    record = target.with_name(f".{target.name}{RECORD}")
    record.write_text(f"{sha256(source)}  {target.name}\n", encoding="utf-8")
    os.replace(source, target)


def recorded(folder: Path) -> dict[Path, str]:
    """Every file below `folder` whose checksum was recorded, and that checksum."""
    records = {}
    for record in sorted(folder.rglob(f".*{RECORD}")):
        digest, name = record.read_text(encoding="utf-8").rstrip("\n").split("  ", 1)
        records[record.with_name(name)] = digest
    return records


@contextlib.contextmanager
def folder_aside(path: str | Path, last: str) -> Iterator[Path]:
    """Yield a scratch folder; move its files into `path` if the block ends without an error.

    `last` names the file that is moved last: where it is there, the others are.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for stale in path.glob(".partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path) as scratch:
        yield Path(scratch)
        (path / last).unlink(missing_ok=True)
        for file in sorted(Path(scratch).iterdir(), key=lambda file: file.name == last):
            rename_recorded(file, path / file.name)


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
