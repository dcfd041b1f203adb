"""Atomic writing of files with checksums, checked reading, and file names of batches."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from atlasmap.errors import AtlasmapError

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


# First bytes of common files that are no UTF-8 text: what they are, and how to convert them.
ICONV = "iconv -f {} -t UTF-8 OLD > NEW, or save it as text in UTF-8"
NO_TEXT = {
    b"\xff\xfe": ("text in UTF-16", ICONV.format("UTF-16")),
    b"\xfe\xff": ("text in UTF-16", ICONV.format("UTF-16")),
    b"PK\x03\x04": ("a workbook (.xlsx, .ods) or an archive", "export the sheet as text in UTF-8"),
    b"\xd0\xcf\x11\xe0": ("a workbook (.xls)", "export the sheet as text in UTF-8"),
    b"\x1f\x8b": ("compressed (gzip)", "uncompress it: gunzip"),
}


def read_text(path: Path, what: str) -> str:
    """Read a user's UTF-8 text, with or without a byte-order mark.

    Raises TEXT_UNREADABLE if the file is missing, empty or not UTF-8; `what` names the text in the
    message.
    """
    if not path.is_file():
        found, mend = "no such file", "correct its path"
    elif not (raw := path.read_bytes()).strip(b"\xef\xbb\xbf \t\r\n"):
        found, mend = "an empty file", f"write {what} into it, or leave its path out"
    elif kind := next((kind for begins, kind in NO_TEXT.items() if raw.startswith(begins)), None):
        found, mend = kind
    elif b"\0" in raw:
        found, mend = "a binary file, or text in UTF-16", ICONV.format("UTF-16")
    else:
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            found = f"bytes in line {line} that are no UTF-8 (latin-1?)"
            mend = ICONV.format("LATIN1")
    raise AtlasmapError(
        "TEXT_UNREADABLE",
        expected=f"{what}: text in UTF-8",
        found=f"{path}: {found}",
        mend=mend,
    )


def from_home(path: str) -> Path:
    """Expand ~ in a path; unchanged if the user of ~user is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_input(path: Path, named: str) -> None:
    """Raise FILE_MISSING, FILE_KIND or PATH_BRACES unless `path` is a usable file or folder.

    `named`: the setting that names it, for the message.
    """
    if "{" in str(path) or "}" in str(path):
        raise AtlasmapError(
            "PATH_BRACES",
            expected="paths without { and }, which Snakemake takes for wildcards",
            found=f"{path} ({named})",
            mend="rename the file or folder, or make a link to it (ln -s)",
        )
    try:
        there = path.exists()
    except OSError:  # the name is too long for a file
        there = False
    if not there:
        raise AtlasmapError(
            "FILE_MISSING",
            expected=f"the file or folder that {named} names",
            found=f"nothing at {str(path.absolute())[:500]}",
            mend="correct the path; those of the sheet start from its folder, or `data_dir` in the "
            "config",
        )
    if not (path.is_file() or path.is_dir()):
        raise AtlasmapError(
            "FILE_KIND",
            expected=f"a file or folder that {named} names",
            found=f"a pipe, socket or device: {path.absolute()}",
            mend="write it to a file first",
        )


SCHEMES = ("http://", "https://", "ftp://")


def check_url(url: str, named: str) -> None:
    """Raise URL_SCHEME unless `url` is http, https or ftp; `named` describes it in the message."""
    if url.lower().startswith(SCHEMES):
        return
    local = url.lower().startswith("file://")
    raise AtlasmapError(
        "URL_SCHEME",
        expected=f"{named}: a path, or a URL of http, https or ftp",
        found=url,
        mend="give the path without file://" if local else "download it, and give its path",
    )


def slug(name: str) -> str:
    """Convert a batch name to a file name: reversible, safe in shells, Slurm patterns and file
    systems."""
    quoted = quote(name, safe="").replace("~", "%7E").replace("%", "~")
    return "~2E" + quoted[1:] if quoted.startswith(".") else quoted


def unslug(text: str) -> str:
    """Inverse of `slug`: the batch name of a file name."""
    return unquote(text.replace("~", "%"))
