"""User errors: the exception, and checks of paths, URLs and texts that a user names.

The workflow includes this file: it imports the standard library alone.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def from_home(path: str) -> Path:
    """Expand ~ to a home directory; if there is no such user, ~ is part of the name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


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
