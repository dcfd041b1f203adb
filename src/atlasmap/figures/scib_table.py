"""The table of scib-metrics as a figure, in the style of scib_metrics.benchmark.Benchmarker."""

import math
import re
import textwrap
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plottable import ColumnDefinition, Table

from atlasmap.evaluation.scib import AGGREGATES, BATCH, BIO
from atlasmap.figures.style import (
    new_figure,
    place,
    run_name,
    sentence,
    styled,
    text_color,
)
from atlasmap.labels.palette import BLACK

NAMES = {
    "isolated_labels": "Isolated\nlabels",
    "kmeans_nmi": "KMeans\nNMI",
    "kmeans_ari": "KMeans\nARI",
    "silhouette_label": "Silhouette\nlabel",
    "clisi_knn": "cLISI",
    "bras": "BRAS",
    "ilisi_knn": "iLISI",
    "kbet_per_label": "KBET",
    "graph_connectivity": "Graph\nconnectivity",
    "pcr_comparison": "PCR\ncomparison",
    "bio_conservation": "Bio\nconservation",
    "batch_correction": "Batch\ncorrection",
    "total": "Total",
}
BLOCKS = {"reference": "Reference cells", "atlas": "Reference and query cells"}
GROUPS = dict.fromkeys(BIO, "Bio conservation") | dict.fromkeys(BATCH, "Batch correction")
GROUPS |= dict.fromkeys(AGGREGATES, "Aggregate score")
MODELS = {"pca": "PCA", "scvi": "scVI", "scanvi": "scANVI", "totalvi": "totalVI"}
COLUMN, BAR, ROW, HEAD = 0.78, 1.05, 0.4, 0.16
BARS = mpl.colormaps["YlGnBu"].resampled(256)


class InOrder(Table):
    """A plottable.Table with groups in the order of the columns: plottable keeps them in a set,
    whose order differs between processes."""

    def _get_col_groups(self):
        groups = (column.get("group") for column in self.column_definitions.values())
        return [group for group in dict.fromkeys(groups) if group is not None]


@dataclass(frozen=True)
class Block:
    """One table: its `title`, `mean` and `spread` (standard deviation) over seeds (embeddings ×
    metrics; NaN if not computed), and `skipped` (reason → metrics)."""

    title: str
    mean: pd.DataFrame
    spread: pd.DataFrame
    skipped: dict[str, list[str]]


@styled
def draw_scib_table(scib: pd.DataFrame) -> Figure:
    """Draw metrics as circles and aggregate scores as bars, with embeddings sorted by total: one
    table for reference cells, then one for all cells.

    `scib` has columns seed, embedding, model, variant, strategy, cells (reference or atlas), n,
    the metrics, and scib_metrics (its version). A value is a number, or `skipped(reason)`, which is
    drawn as a dash with the reason below the table.
    """
    if scib.empty:
        return sentence("There is no scib-metrics table to draw.")
    blocks = [block(part, cells) for cells in BLOCKS if len(part := scib[scib["cells"] == cells])]
    if not blocks:
        return sentence("The scib-metrics table holds neither reference nor atlas rows.")
    longest = max(len(name) for part in blocks for name in part.mean.index)
    first = max(1.2, 0.085 * longest + 0.15)
    width = first + COLUMN * (len(BIO) + len(BATCH)) + BAR * len(AGGREGATES)
    notes = [line for note in footnotes(blocks, scib) for line in textwrap.wrap(note, 150)]
    heights = [HEAD + (len(part.mean) + 2) * ROW for part in blocks]
    figure = new_figure(width + 0.2, sum(heights) + 0.2 * len(blocks) + 0.16 * len(notes))
    top = 0.0
    for part, height in zip(blocks, heights, strict=True):
        ax = place(figure, 0.1, top + HEAD, width, height - HEAD)
        draw_block(ax, part, first)
        ax.set_title(part.title, loc="left", fontweight="bold", fontsize=10, pad=-4)
        top += height + 0.2
    high = figure.get_figheight()
    figure.text(0.1 / (width + 0.2), 1 - top / high, "\n".join(notes), fontsize=7, va="top")
    return figure


def block(table: pd.DataFrame, cells: str) -> Block:
    """The table of one kind of cells (`cells`: reference or atlas), averaged over seeds, best total
    first."""
    metrics = [name for name in NAMES if name in table]
    numbers = table[metrics].apply(pd.to_numeric, errors="coerce")
    by_name = numbers.assign(embedding=table.apply(embedding_name, axis=1)).groupby("embedding")
    mean = by_name.mean().sort_values([*AGGREGATES[::-1]], ascending=False, kind="stable")
    spread = by_name.std().reindex(mean.index)
    sizes = sorted(set(table["n"].astype(int)))
    n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    skipped: dict[str, list[str]] = {}
    for metric in metrics:
        for value in table[metric].astype(str).drop_duplicates():
            if found := re.fullmatch(r"skipped\((.*)\)", value):
                skipped.setdefault(found[1], []).append(NAMES[metric].replace("\n", " "))
    return Block(f"{BLOCKS[cells]} ({n} cells)", mean, spread, skipped)


def embedding_name(row: pd.Series) -> str:
    """Name of an embedding in the table, for example "scANVI fixed, per batch"."""
    if row["model"] not in MODELS:
        return MODELS.get(row["embedding"], row["embedding"])
    return run_name(f"{MODELS[row['model']]} {row['variant']}".strip(), row["strategy"])


def footnotes(blocks: list[Block], scib: pd.DataFrame) -> list[str]:
    """Notes below the tables: reasons for dashes, number of seeds, version of scib-metrics."""
    notes = [
        f"– {reason}: {', '.join(metrics)} ({part.title.split(' (')[0].lower()})"
        for part in blocks
        for reason, metrics in part.skipped.items()
    ]
    n_seeds = scib["seed"].nunique()
    if n_seeds > 1:
        notes.append(f"Mean of {n_seeds} seeds; bars: mean ± standard deviation.")
    versions = ", ".join(sorted(set(scib["scib_metrics"].astype(str))))
    notes.append(f"scib-metrics {versions}; total = 0.6 bio conservation + 0.4 batch correction.")
    return notes


def draw_block(ax: Axes, part: Block, first: float) -> None:
    """Draw one table, on axes that have their final size; `first`: width of the first column, in
    inches."""
    shown = part.mean.copy().astype(object)
    for name in AGGREGATES:
        shown[name] = list(zip(part.mean[name], part.spread[name], strict=True))
    columns = [
        ColumnDefinition("embedding", title="Embedding", width=first / COLUMN, textprops=LEFT)
    ]
    columns += [circle_column(name) for name in shown if name not in AGGREGATES]
    columns += [bar_column(name) for name in AGGREGATES]
    table = InOrder(
        shown.reset_index(),
        index_col="embedding",
        column_definitions=columns,
        ax=ax,
        row_dividers=True,
        footer_divider=True,
        textprops={"fontsize": 8, "ha": "center"},
        row_divider_kw={"linewidth": 0.6, "linestyle": (0, (1, 5))},
        cell_kw={"linewidth": 0, "edgecolor": "none"},
        column_border_kw={"linewidth": 0.8},
    )
    for name in part.mean.columns.difference(AGGREGATES):
        color_circles(table.get_column(name).cells, part.mean[name])


LEFT = {"ha": "left", "weight": "bold"}


def circle_column(name: str) -> ColumnDefinition:
    """Column of a metric, with its values in circles."""
    style = {"ha": "center", "fontsize": 7.5, "bbox": {"boxstyle": "circle", "pad": 0.3}}
    formatter = "{:.2f}".format
    return ColumnDefinition(
        name,
        title=NAMES[name],
        textprops=style,
        group=GROUPS[name],
        formatter=lambda value: "–" if math.isnan(value) else formatter(value),
    )


def color_circles(cells: list, values: pd.Series) -> None:
    """Colour a column's circles by value, on the same scale (0 to 1) in every column; dashes have
    no circle."""
    for cell, value in zip(cells, values, strict=True):
        if math.isnan(value):
            cell.text.set_bbox(None)
            cell.text.set_color(BLACK)
        else:
            color = BARS(float(np.clip(0.75 * value, 0, 1)))
            cell.text.set_bbox({"boxstyle": "circle", "pad": 0.3, "color": color})
            cell.text.set_color(text_color(color))


def bar_column(name: str) -> ColumnDefinition:
    """Column of an aggregate score, with its values as bars from 0 to 1."""
    return ColumnDefinition(
        name,
        title=NAMES[name],
        width=BAR / COLUMN,
        plot_fn=draw_bar,
        group=GROUPS[name],
        border="left" if name == AGGREGATES[0] else None,
    )


def draw_bar(ax: Axes, value: tuple[float, float]) -> None:
    """Draw the bar and text of one (mean, spread); a dash if the mean is NaN, and no spread if that
    is NaN."""
    mean, spread = value
    ax.set(xlim=(-0.04, 1.04), ylim=(0, 1))
    if math.isnan(mean):
        ax.text(0.04, 0.5, "–", ha="left", va="center", fontsize=8)
        return
    # The light half of the colour map, so that dark text is legible on the bar and beside it.
    ax.barh(0.5, mean, height=0.95, color=BARS(float(np.clip(0.55 * mean, 0, 1))))
    text = f"{mean:.2f}" if math.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"
    ax.text(0.04, 0.5, text, ha="left", va="center", fontsize=7.5, color=BLACK)
