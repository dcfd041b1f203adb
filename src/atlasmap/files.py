"""Files that are written whole or not at all, with recorded checksums."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

RECORD = ".sha256"
MANIFEST = ".results"  # file that lists all results of an atlas's last finished run


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`; rename it onto `path` if the block ends without an error.

    The checksum of `path` is recorded beside it. Partial files of killed processes are removed.
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


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text atomically."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_table(path: Path, table) -> None:
    """Write a pandas table as .csv atomically."""
    with written_aside(path) as aside:
        table.to_csv(aside, index=False)


NAMES = ("batch", "mapping", "query", "label", "predicted", "truth", "name", "variant", "strategy")


def read_table(path: Path):
    """Read a .csv written by atlasmap as a pandas table; an empty file gives an empty table.

    Columns NAMES are text even for values like "01" or "NA", and never missing. In other columns,
    only empty values are missing.
    """
    import pandas as pd

    try:
        names = dict.fromkeys(NAMES, str)
        table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    return table.fillna(dict.fromkeys(table.columns.intersection(NAMES), ""))


def rename_recorded(source: Path, target: Path) -> None:
    """Rename, and record the checksum beside `target` in the format of `sha256sum -c`."""
    record = target.with_name(f".{target.name}{RECORD}")
    record.write_text(f"{sha256(source)}  {target.name}\n", encoding="utf-8")
    os.replace(source, target)


def recorded(folder: Path) -> dict[Path, str]:
    """Map every file below `folder` with a recorded checksum to that checksum."""
    records = {}
    for record in sorted(folder.rglob(f".*{RECORD}")):
        digest, name = record.read_text(encoding="utf-8").rstrip("\n").split("  ", 1)
        records[record.with_name(name)] = digest
    return records


@contextlib.contextmanager
def folder_aside(path: str | Path, last: str) -> Iterator[Path]:
    """Yield a scratch folder; move its files into `path` if the block ends without an error.

    `last` names the file that is moved last: if it exists, all others do.
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
