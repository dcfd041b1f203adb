"""Tables and pages for people: Markdown, and HTML for the report."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

STYLE = """<style>
body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
pre { background: #f6f6f6; padding: .8em; overflow-x: auto }
</style>"""


def plain(text: Any) -> str:
    """Escape a user's text for Markdown."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", str(text))


def number(value: float) -> str:
    """Format a number with about two significant digits; "–" for a missing value."""
    if pd.isna(value):
        return "–"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if 0 < abs(value) < 0.095 else f"{value:.2f}"


def table(frame: pd.DataFrame, names: Mapping[str, str] = {}) -> str:
    """Format a data frame as a Markdown table; floats by `number`.

    `names`: columns to rename → new name.
    """
    shown = frame.rename(columns=dict(names)).copy()
    sides = ["right" if shown[key].dtype.kind in "if" else "left" for key in shown]
    for key in shown:
        if shown[key].dtype.kind == "f":
            counted = key in ("n", "cells", "N cells") and (shown[key] % 1 == 0).all()
            shown[key] = shown[key].map("{:.0f}".format if counted else number)
        elif shown[key].dtype.kind not in "iu":
            shown[key] = shown[key].map(plain)
    return shown.to_markdown(index=False, disable_numparse=True, colalign=sides)


def pairs(values: dict[str, Any]) -> str:
    """Format keys and values as a Markdown table."""
    said = {key: "–" if value is None else plain(value) for key, value in values.items()}
    return pd.DataFrame(said.items(), columns=["", "value"]).to_markdown(
        index=False, disable_numparse=True
    )


def as_html(markdown: str) -> str:
    """Convert Markdown to a complete HTML page."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return f'<!doctype html><html><head><meta charset="utf-8">{STYLE}</head><body>{body}</body>\n'
