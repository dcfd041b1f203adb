"""Style shared by all figures: fonts, colours, sizes in inches, and how figures are written."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atlasmap.files import written_aside
from atlasmap.labels.palette import BLACK

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": "#1a1a1a",
    # A label with two dollar signs is not a formula.
    "text.parse_math": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    # Text stays text: it can be searched and edited.
    "svg.fonttype": "none",
    # Without a salt, ids in the svg are random.
    "svg.hashsalt": "atlasmap",
}
styled = mpl.rc_context(STYLE)
DPI = 200
MOST_PIXELS = 12_000

VARIANTS = ("prefix", "fixed", "linear")
STRATEGIES = ("per_batch", "joint", "frozen", "de_novo")


def new_figure(width: float, height: float) -> Figure:
    """Figure of a size in inches that is not registered with pyplot, so need not be closed."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float, **how) -> Axes:
    """Add axes; position (from the figure's left and top) and size are in inches."""
    whole, high = figure.get_size_inches()
    box = (left / whole, 1 - (top + height) / high, width / whole, height / high)
    return figure.add_axes(box, **how)


def size_of(figure: Figure, artist) -> tuple[float, float]:
    """Width and height in inches of a legend or text as it would be drawn."""
    box = artist.get_window_extent(figure.canvas.get_renderer())
    return box.width / figure.dpi, box.height / figure.dpi


@styled
def sentence(text: str) -> Figure:
    """Figure with only a text, which says why there is nothing to draw."""
    figure = new_figure(6, 1.2)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=10, wrap=True)
    return figure


def in_order(found, order: tuple[str, ...]) -> list[str]:
    """Distinct names in `found`: those in `order` first, in that order, then the others sorted."""
    found = {str(name) for name in found}
    return [name for name in order if name in found] + sorted(found - set(order))


def run_name(variant: str, strategy: str = "") -> str:
    """Name of a mapping in titles."""
    return f"{variant}, {strategy.replace('_', ' ')}" if strategy else variant


def runs_in(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(variant, strategy) pairs of a table, in the order figures show them."""
    pairs = set(zip(table["variant"], table["strategy"], strict=True))
    return [
        (variant, strategy)
        for variant in in_order((pair[0] for pair in pairs), VARIANTS)
        for strategy in in_order((pair[1] for pair in pairs), STRATEGIES)
        if (variant, strategy) in pairs
    ]


def one_kind(table: pd.DataFrame, probabilities: str = "raw") -> pd.DataFrame:
    """Rows of the classifier at the level of labels, with one kind of probabilities (raw or
    calibrated).

    A missing strategy is "", also if pandas read it as NaN.
    """
    wanted = {"method": "classifier", "level": "label", "probabilities": probabilities}
    for column, value in wanted.items():
        if column in table:
            table = table[table[column] == value]
    return table.assign(strategy=table["strategy"].fillna(""))


def text_color(background) -> str:
    """Black or white, whichever reads better on an RGB(A) colour."""
    return BLACK if np.dot(background[:3], (0.299, 0.587, 0.114)) > 0.55 else "white"


@styled
def save(figure: Figure, out: Path) -> None:
    """Write `out`.svg and `out`.png; the same figure gives the same bytes."""
    dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
    for kind, metadata in [("svg", {"Date": None}), ("png", {"Software": None})]:
        with written_aside(out.with_name(f"{out.name}.{kind}")) as aside:
            figure.savefig(
                aside,
                format=kind,
                dpi=dpi,
                metadata=metadata,
                bbox_inches="tight",
                pad_inches=0.08,
            )
