"""Confusion matrices, normalised per true label."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atlasmap.figures.style import (
    new_figure,
    one_kind,
    place,
    run_name,
    runs_in,
    sentence,
    size_of,
    styled,
    text_color,
)

MOST_BATCHES, MOST_CELLS_ACROSS, MOST_COUNTED = 6, 60, 15
GAP, TITLE = 0.25, 0.42


@dataclass(frozen=True)
class Panel:
    """One matrix: `title`, and `counts` (true labels × predicted labels, mean over seeds)."""

    title: str
    counts: pd.DataFrame


@styled
def draw_confusion(confusion: pd.DataFrame, split: Literal["validation", "query"]) -> Figure:
    """Panels of the classifier's confusion matrices, row-normalised, pooled over seeds.

    `confusion` is long: seed, variant, strategy, batch, split, method, probabilities, level, truth,
    predicted, n. For `validation` there is one panel per variant. For `query`, rows are variants
    and strategies, and columns are batches with truth; with many batches or labels, there is one
    panel for all batches together, with strategies side by side.
    """
    if confusion.empty:
        return sentence("No cell has a known label: there is no confusion matrix to draw.")
    table = one_kind(confusion).astype({name: str for name in ("truth", "predicted", "batch")})
    reference = table["truth"][table["split"] != "query"]
    # Without rows of the reference, its labels are not known: none is marked as missing.
    known = reference if len(reference) else table["truth"]
    columns = sorted({*known, *table["predicted"]}, key=str.casefold)
    table = table[table["split"] == split]
    if table.empty:
        where = "validation" if split == "validation" else "query"
        return sentence(f"No {where} cell has a known label: there is no confusion matrix to draw.")
    novel = sorted(set(table["truth"]) - set(columns), key=str.casefold)
    rows = [name for name in columns if name in set(table["truth"])] + novel
    figure = draw_grid(panels(table, rows, columns), len(novel))
    notes = ["† The model was trained on no cell with this label."] if novel else []
    if (n_seeds := table["seed"].nunique()) > 1:
        notes.append(f"Numbers of cells are means of {n_seeds} seeds.")
    # Below the figure's edge: `save` extends the written area to include it.
    figure.text(0.01, 0, "\n".join(notes), fontsize=8, va="top")
    return figure


def panels(table: pd.DataFrame, rows: list[str], columns: list[str]) -> list[list[Panel]]:
    """Grid of panels (list of rows) for the `table` of one split, all with the same labels."""
    runs, batches = runs_in(table), batches_shown(table, len(columns))
    # Letters of a batch's name that fit in a panel's title beside the number of cells.
    room = int(panel_width(len(columns)) / 0.06) - 14
    grid = []
    for variant, strategy in runs:
        line = []
        for batch in batches:
            of_run = (table["variant"] == variant) & (table["strategy"] == strategy)
            part = table[of_run & (table["batch"] == batch)]
            counts = part.pivot_table("n", "truth", "predicted", aggfunc="sum", fill_value=0)
            counts = counts.reindex(index=rows, columns=columns, fill_value=0)
            counts = counts / max(part["seed"].nunique(), 1)
            where = "all batches" if batch == "all" else shortened(batch, room)
            where = where if (table["split"] == "query").all() else "validation"
            n = f"{counts.to_numpy().sum():,.0f} cells"
            line.append(Panel(f"{run_name(variant, strategy)}\n{where}, {n}", counts))
        grid.append(line)
    if len(batches) > 1:
        return grid
    # One panel per run: strategies side by side and variants below each other, or variants side by
    # side if there is only one strategy.
    flat = [line[0] for line in grid]
    wide = len({strategy for _, strategy in runs})
    wide = wide if wide > 1 and len(flat) % wide == 0 else min(len(flat), 3)
    return [flat[i : i + wide] for i in range(0, len(flat), wide)]


def shortened(text: str, most: int) -> str:
    """Shorten text to at most `most` letters by replacing its middle with an ellipsis."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def cell_size(n_columns: int) -> float:
    """Side of a matrix's cell, in inches."""
    return 0.28 if n_columns <= MOST_COUNTED else float(np.interp(n_columns, (15, 60), (0.2, 0.13)))


def panel_width(n_columns: int) -> float:
    """Width of a matrix in inches, at least that of a title."""
    return max(n_columns * cell_size(n_columns), 1.9)


def batches_shown(table: pd.DataFrame, n_labels: int) -> list[str]:
    """Batches with a panel: each batch, or only "all" if panels would be too many or too wide."""
    batches = sorted(set(table["batch"]) - {"all"})
    if not batches or len(batches) > MOST_BATCHES:
        return ["all"]
    if len(batches) > 1 and len(batches) * n_labels > MOST_CELLS_ACROSS:
        return ["all"]
    return batches


def draw_grid(grid: list[list[Panel]], n_novel: int) -> Figure:
    """Draw all panels at the same scale, with true labels on the left, predicted labels at the
    bottom, and one colour bar."""
    shape = grid[0][0].counts.shape
    cell = cell_size(shape[1])
    font = float(np.clip(cell * 72 * 0.62, 5.5, 8))
    wide, high = panel_width(shape[1]), shape[0] * cell
    left, bottom = label_room(grid[0][0].counts, font)
    n_columns = max(len(line) for line in grid)
    figure = new_figure(
        left + n_columns * (wide + GAP) + 0.75, len(grid) * (high + TITLE + GAP) + bottom
    )
    for i, line in enumerate(grid):
        for j, panel in enumerate(line):
            top = i * (high + TITLE + GAP) + TITLE
            ax = place(figure, left + j * (wide + GAP), top, wide, high)
            image = draw_panel(ax, panel, n_novel, font)
            below = i + 1 < len(grid) and j < len(grid[i + 1])
            ax.tick_params(labelleft=j == 0, labelbottom=not below)
            ax.set_ylabel("True label" if j == 0 else "")
            ax.set_xlabel("" if below else "Predicted label")
    tall = float(np.clip(high, 1.0, 2.0))
    bar = place(figure, left + n_columns * (wide + GAP), TITLE, 0.12, tall)
    figure.colorbar(image, cax=bar, label="Share of true label", ticks=[0, 0.5, 1])
    return figure


def label_room(counts: pd.DataFrame, font: float) -> tuple[float, float]:
    """Inches that tick labels and axis titles need on the left and at the bottom."""
    figure = new_figure(1, 1)
    wide = [
        max(size_of(figure, figure.text(0, 0, name, fontsize=font))[0] for name in names)
        for names in (counts.index, counts.columns)
    ]
    return wide[0] + 0.35, wide[1] + 0.4


def draw_panel(ax: Axes, panel: Panel, n_novel: int, font: float):
    """Draw one matrix, with true labels that the reference lacks (the last `n_novel`) below a line;
    returns the image."""
    counts = panel.counts.to_numpy(float)
    total = counts.sum(axis=1, keepdims=True)
    # A label without cells has no fractions: its row is blank, not zero.
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_facecolor("#f0f0f0")
    ax.set_xticks(range(counts.shape[1]), panel.counts.columns, rotation=90, fontsize=font)
    novel = [f"{name} †" for name in panel.counts.index[len(counts) - n_novel :]]
    names = [*panel.counts.index[: len(counts) - n_novel], *novel]
    ax.set_yticks(range(counts.shape[0]), names, fontsize=font)
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set(visible=True, color="#808080", linewidth=0.5)
    ax.set_title(panel.title, fontsize=8, pad=4)
    if 0 < n_novel < len(counts):
        ax.axhline(len(counts) - n_novel - 0.5, color="#404040", linewidth=0.8)
    if max(counts.shape) <= MOST_COUNTED:
        for i, j in zip(*np.nonzero(counts), strict=True):
            color = text_color(image.cmap(share[i, j]))
            text = f"{counts[i, j]:.0f}" if counts[i, j] >= 0.5 else "<1"
            ax.text(j, i, text, ha="center", va="center", fontsize=5.5, color=color)
    return image
