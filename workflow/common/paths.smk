# Paths, URLs and text files that the user gives.

import re
from pathlib import Path
from urllib.parse import quote, unquote

SCHEMES = ("http://", "https://", "ftp://")


def slug(name):
    """Encode a batch name as a file name: reversible, safe in shells, Slurm and file systems."""
    quoted = quote(name, safe="").replace("~", "%7E").replace("%", "~")
    return "~2E" + quoted[1:] if quoted.startswith(".") else quoted


def unslug(text):
    """Returns the batch name that `slug` encoded."""
    return unquote(text.replace("~", "%"))


def from_home(path):
    """Expand ~ to a home directory; if there is no such user, ~ is part of the name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_input(path, named):
    """Raise FILE_MISSING or PATH_BRACES for an unusable path; `named`: where it was given."""
    if "{" in str(path) or "}" in str(path):
        raise AtlasmapError(
            "PATH_BRACES",
            expected="paths without { and }, which Snakemake takes for wildcards",
            found=f"{path} ({named})",
            mend="rename the file or folder, or make a link to it (ln -s)",
        )
    try:
        there = path.exists()
    except OSError:  # for example, the name is too long
        there = False
    if not there:
        raise AtlasmapError(
            "FILE_MISSING",
            expected=f"the file or folder that {named} names",
            found=f"nothing at {str(path.absolute())[:500]}",
            mend="correct the path; those of the sheet start from its folder, or `data_dir` in the "
            "config",
        )


def check_url(url, named):
    """Raise URL_SCHEME if a URL cannot be downloaded; `named`: where it was given."""
    if url.lower().startswith(SCHEMES):
        return
    local = url.lower().startswith("file://")
    raise AtlasmapError(
        "URL_SCHEME",
        expected=f"{named}: a path, or a URL of http, https or ftp",
        found=url,
        mend=(
            "give the path without file://"
            if local
            else "download it, and give its path"
        ),
    )


def read_text(path, what):
    """Read a text file in UTF-8, with or without a byte-order mark.

    Raises TEXT_UNREADABLE if it is empty or no such text; `what` names the text in the error.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
        if text.strip() and not re.search("[\0-\x08]", text):
            return text
        found = "a binary file" if text.strip() else "an empty file"
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        found = f"bytes in line {line} that are no UTF-8"
    raise AtlasmapError(
        "TEXT_UNREADABLE",
        expected=f"{what}: text in UTF-8",
        found=f"{path}: {found}",
        mend="save it as text in UTF-8: iconv -f UTF-16 (or LATIN1) -t UTF-8 OLD > NEW; export the "
        "sheet of a workbook; gunzip what is compressed",
    )
