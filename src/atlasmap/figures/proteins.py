"""Proteins of CITE-seq: raw counts and denoised values, and fractions of foreground."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.stats import gaussian_kde

from atlasmap.figures.style import new_figure, place, sentence, styled
from atlasmap.labels.palette import BLUE

ROLES = {"reference": "#9a9a9a", "query": BLUE}
KINDS = {"raw": "Counts", "denoised": "Denoised (foreground alone)"}
MOST_PROTEINS = 40
MOST_CELLS = 20_000  # largest number of cells that a density is estimated from
PANEL, ROW, GAP, LEFT, TOP, BOTTOM = 2.6, 0.3, 0.3, 1.5, 0.62, 0.5
GRID = 201  # points of a density
CELL, LARGEST = 0.2, 0.17  # inches: distance of dots, and size of a dot of probability 1
SHARES = (0.25, 0.5, 1.0)


def chosen(foreground: pd.DataFrame) -> list[str]:
    """Names of all proteins, or of the MOST_PROTEINS whose foreground varies most, in their
    order."""
    if foreground.shape[1] <= MOST_PROTEINS:
        return list(foreground)
    most = foreground.var().nlargest(MOST_PROTEINS).index
    return [name for name in foreground if name in most]


def how_many(shown: list[str], of: pd.DataFrame) -> str:
    """Addition to a title that says how many proteins are left out; empty if none."""
    if len(shown) == of.shape[1]:
        return ""
    return f" ({len(shown)} of {of.shape[1]} proteins, those whose foreground varies most)"


@styled
def draw_ridges(
    raw: pd.DataFrame, denoised: pd.DataFrame, foreground: pd.DataFrame, role: pd.Series
) -> Figure:
    """Draw one row per protein: densities of log counts (of cells where it was measured) and of log
    denoised values, for reference and query.

    Tables are cells × proteins; `role` of each cell is reference or query.
    """
    if not foreground.shape[1]:
        return sentence("There are no proteins to draw.")
    names = chosen(foreground)
    height = len(names) * ROW
    figure = new_figure(LEFT + 2 * PANEL + GAP + 0.1, TOP + height + BOTTOM)
    for column, (kind, table) in enumerate((("raw", raw), ("denoised", denoised))):
        ax = place(figure, LEFT + column * (PANEL + GAP), TOP, PANEL, height)
        draw_column(ax, np.log1p(table[names]), role)
        ax.set_title(KINDS[kind], fontweight="bold")
        ax.set_xlabel("log(1 + value)")
        ax.set_yticks(np.arange(len(names))[::-1] + 0.1, names if column == 0 else [])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    shown = [name for name in ROLES if (role == name).any()]
    handles = [Line2D([], [], color=ROLES[name], linewidth=4) for name in shown]
    at = (LEFT / figure.get_figwidth(), 1.0)
    figure.legend(handles, shown, loc="upper left", ncols=2, bbox_to_anchor=at)
    figure.text(1, 1, how_many(names, foreground), ha="right", va="top", fontsize=7)
    return figure


def draw_column(ax: Axes, logs: pd.DataFrame, role: pd.Series) -> None:
    """Draw the densities of one kind of values, the first protein on top."""
    grid = np.linspace(0, float(np.nanmax(logs.to_numpy())) * 1.1 + 1e-3, GRID)
    for k, name in enumerate(logs):
        base = logs.shape[1] - 1 - k
        for group, color in ROLES.items():
            height = density(logs.loc[(role == group).to_numpy(), name].dropna().to_numpy(), grid)
            if height is not None:
                top = base + 0.9 * height
                ax.fill_between(grid, base, top, color=color, alpha=0.45, linewidth=0)
                ax.plot(grid, top, color=color, linewidth=0.7)
        ax.axhline(base, color="#d0d0d0", linewidth=0.4, zorder=0)
    ax.set_xlim(0, grid[-1])
    ax.set_ylim(-0.1, logs.shape[1] + 0.1)


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
    """Density on the grid, scaled to a maximum of 1; None for fewer than 3 or all-equal values."""
    if len(values) < 3 or np.ptp(values) == 0:
        return None
    if len(values) > MOST_CELLS:
        values = np.random.default_rng(0).choice(values, MOST_CELLS, replace=False)
    height = gaussian_kde(values)(grid)
    return height / height.max()


@styled
def draw_dots(denoised: pd.DataFrame, foreground: pd.DataFrame, group: pd.Series) -> Figure:
    """Draw a dot per group of cells (rows) and protein (columns): mean foreground probability
    (size) and mean log denoised value (colour).

    Tables are cells × proteins; `group` is that of each cell. Proteins are ordered by clustering.
    """
    if not foreground.shape[1]:
        return sentence("There are no proteins to draw.")
    names = chosen(foreground)
    by = group.to_numpy()
    share = foreground[names].groupby(by).mean()
    level = np.log1p(denoised[names]).groupby(by).mean()
    if len(names) > 2:
        order = leaves_list(linkage(share.T, "average", optimal_ordering=True))
        names = [names[k] for k in order]
    share, level = share[names], level[names]
    width, height = CELL * len(names), CELL * len(share)
    left = 0.35 + 0.075 * max(len(str(name)) for name in share.index)
    below = 0.2 + 0.075 * max(map(len, names))
    figure = new_figure(left + width + 1.5, 0.35 + max(height, 1.9) + below)
    ax = place(figure, left, 0.35, width, height)
    x, y = np.meshgrid(np.arange(len(names)), np.arange(len(share))[::-1])
    sizes = (72 * LARGEST) ** 2 * share.to_numpy()
    dots = ax.scatter(x, y, s=sizes, c=level.to_numpy(), cmap="viridis_r", linewidth=0)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_ylim(-0.6, len(share) - 0.4)
    ax.set_xticks(np.arange(len(names)), names, rotation=90)
    ax.set_yticks(np.arange(len(share))[::-1], share.index)
    ax.tick_params(length=0)
    ax.set_title(f"Foreground proteins{how_many(names, foreground)}", fontweight="bold", loc="left")
    bar = place(figure, left + width + 0.25, 0.35, 0.12, 0.9)
    figure.colorbar(dots, cax=bar).set_label("log(1 + denoised)")
    for k, value in enumerate(SHARES):
        at = place(figure, left + width + 0.15, 1.45 + 0.22 * k, 0.3, 0.2)
        at.scatter([0], [0], s=(72 * LARGEST) ** 2 * value, color="#606060", linewidth=0)
        at.text(1.6, 0, f"{value:.0%} foreground", va="center", fontsize=7)
        at.set(xlim=(-1, 1), ylim=(-1, 1))
        at.axis("off")
    return figure
