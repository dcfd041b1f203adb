# Paths and texts that somebody named.

import re
from pathlib import Path
from urllib.parse import quote, unquote

SCHEMES = ("http://", "https://", "ftp://")


def slug(name):
    """A batch name as a file name: reversible, safe in shells, Slurm patterns and on every disk."""
    quoted = quote(name, safe="").replace("~", "%7E").replace("%", "~")
    return "~2E" + quoted[1:] if quoted.startswith(".") else quoted


def unslug(text):
    """The batch name that `slug` made a file name of."""
    return unquote(text.replace("~", "%"))


def from_home(path):
    """A path, of which ~ is somebody's home; of nobody's it is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_input(path, named):
    """A file or folder that somebody `named`; raises FILE_MISSING, PATH_BRACES."""
    if "{" in str(path) or "}" in str(path):
        raise AtlasmapError(
            "PATH_BRACES",
            expected="paths without { and }, which Snakemake takes for wildcards",
            found=f"{path} ({named})",
            mend="rename the file or folder, or make a link to it (ln -s)",
        )
    try:
        there = path.exists()
    except OSError:  # no file has so long a name
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
    """What somebody `named` can be fetched: URL_SCHEME."""
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
    """A text that somebody wrote, in UTF-8, with or without a byte-order mark.

    Raises TEXT_UNREADABLE if the file is no such text, or empty; `what` is the text's name.
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
