# Parsing of tab-separated text.

import csv
import re


def wrong_columns(path, expected, found, mend):
    """Returns a SHEET_COLUMNS error."""
    return AtlasmapError(
        "SHEET_COLUMNS", expected=expected, found=f"{found} of {path}", mend=mend
    )


def split_rows(text, path):
    """Returns (column names, rows of values); raises SHEET_COLUMNS, SHEET_QUOTES."""
    lines = [x for x in re.split("\r\n|\r|\n", text) if x.strip() and x[0] != "#"]
    if not lines or "\t" not in lines[0]:
        first = "".join(lines[:1]).strip()[:100]
        raise wrong_columns(
            path,
            "columns separated by tabs",
            f"{first!r} in the first line",
            "save it as tab-separated text",
        )
    header, *rows = (split_line(line, n, path) for n, line in enumerate(lines))
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise wrong_columns(
            path,
            "every column once",
            f"{listed(twice)} more than once in the first line",
            "leave one of them out",
        )
    for n, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise wrong_columns(
                path,
                f"{len(header)} tab-separated values in every row",
                f"{len(row)} in row {n}",
                "separate values by tabs; leave a value empty rather than out",
            )
    return header, rows


def split_line(line, n, path):
    """Returns the values of line `n` (from 0), without quotes that spreadsheets add around some."""
    try:
        (values,) = csv.reader([line], delimiter="\t", strict=True)
    except csv.Error as error:
        raise AtlasmapError(
            "SHEET_QUOTES",
            expected="values of under 131,072 characters, and a quote at the end of each that "
            "begins with one",
            found=f"{f'row {n}' if n else 'the first line'} of {path}: {error}",
            mend="take the quote out, or double quotes inside of a quoted value",
        ) from error
    return [value.strip() for value in values]
