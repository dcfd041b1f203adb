"""Reliability diagrams: accuracy of the classifier against its confidence."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from atlasmap.figures.style import (
    STRATEGIES,
    VARIANTS,
    in_order,
    new_figure,
    one_kind,
    place,
    sentence,
    styled,
)
from atlasmap.labels.palette import BLACK, BLUE, GREEN, ORANGE, RED

# Equals training.history.N_BINS, which is not imported as that would load torch.
N_BINS = 15
COLORS = {"": BLACK, "per_batch": BLUE, "joint": RED, "frozen": GREEN, "de_novo": ORANGE}
SIZE, BELOW, GAP, LEFT, TOP, BOTTOM = 2.1, 0.55, 0.3, 0.55, 0.32, 0.75
ROW = SIZE + 0.1 + BELOW + 0.85  # height of the row of one kind of probabilities


@styled
def draw_reliability(reliability: pd.DataFrame) -> Figure:
    """Draw one panel per variant: accuracy against confidence in bins of equal numbers of cells,
    and below it a histogram of confidence; below these, the same for calibrated probabilities, if
    there are any.

    `reliability` has columns seed, variant, strategy, batch, split, method, probabilities, level,
    bins, bin, confidence, accuracy, n. There is one line for validation cells, and one per strategy
    for query cells (all batches). Seeds are pooled, each bin weighted by its cells. Vertical lines
    are 95 % intervals.
    """
    if reliability.empty:
        return sentence("No cell has a known label: there is no reliability to draw.")
    kinds = {}
    for kind in ("raw", "calibrated"):
        table = one_kind(reliability, kind)
        table = table[table["split"].isin(["validation", "query"]) & (table["batch"] == "all")]
        if len(table):
            kinds[kind] = table
    if not kinds:
        return sentence("No validation or query cell has a known label: no reliability to draw.")
    variants = in_order(pd.concat(kinds.values())["variant"], VARIANTS)
    wide = max(LEFT + len(variants) * (SIZE + GAP), 4)
    figure = new_figure(wide, TOP + len(kinds) * ROW - (ROW - SIZE - 0.1 - BELOW) + BOTTOM)
    handles = {}
    for k, (kind, table) in enumerate(kinds.items()):
        handles |= draw_row(figure, TOP + k * ROW, table, variants, kind if k else "")
    names = list(reversed(handles))
    middle = (LEFT + (len(variants) * (SIZE + GAP) - GAP) / 2) / wide
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="lower center",
        bbox_to_anchor=(middle, 0),
        ncols=len(names),
    )
    return figure


def draw_row(
    figure: Figure, top: float, table: pd.DataFrame, variants: list[str], kind: str
) -> dict:
    """Draw one kind of probabilities, with a panel per variant; returns legend handles by name."""
    handles, first = {}, None
    for i, variant in enumerate(variants):
        left = LEFT + i * (SIZE + GAP)
        ax = place(figure, left, top, SIZE, SIZE)
        low = place(figure, left, top + SIZE + 0.1, SIZE, BELOW, sharex=ax, sharey=first)
        first = first or low
        handles |= draw_variant(ax, low, table[table["variant"] == variant])
        ax.set_title(f"{variant}, {kind}" if kind else variant, fontweight="bold")
        for panel, name in ((ax, "Accuracy"), (low, "Cells")):
            panel.set_ylabel(name if i == 0 else "")
            panel.tick_params(labelleft=i == 0)
    return handles


def draw_variant(ax: Axes, low: Axes, table: pd.DataFrame) -> dict:
    """Draw the curves of one variant, and their histograms below; returns legend handles by
    name."""
    ax.plot([0, 1], [0, 1], color="#808080", linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    ax.tick_params(labelbottom=False)
    low.set_xlabel("Confidence")
    low.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    handles = {}
    edges = np.linspace(0, 1, N_BINS + 1)
    for strategy in reversed(in_order(table["strategy"], ("", *STRATEGIES))):
        own = table[table["strategy"] == strategy]
        curve, widths = (pooled(own[own["bins"] == kind]) for kind in ("count", "width"))
        share = np.zeros(N_BINS)
        share[widths.index.astype(int)] = widths["n"] / widths["n"].sum()
        color = COLORS.get(strategy, BLUE)
        name = f"query, {strategy.replace('_', ' ')}" if strategy else "validation"
        x, y, n = curve["confidence"], curve["accuracy"], curve["n"]
        (handles[name],) = ax.plot(x, y, color=color, linewidth=1.2, zorder=3)
        right = zip((y * n).round().astype(int), n.astype(int), strict=True)
        sure = [binomtest(k, of).proportion_ci(method="wilson") for k, of in right]
        ax.vlines(
            x,
            [of.low for of in sure],
            [of.high for of in sure],
            color=color,
            linewidth=0.8,
            alpha=0.5,
            clip_on=False,
        )
        dots = {"color": color, "edgecolor": "white", "linewidth": 0.4, "zorder": 4}
        ax.scatter(x, y, s=14, clip_on=False, **dots)
        # Validation is drawn last and thin, so that equal steps below it stay visible.
        low.stairs(share, edges, color=color, linewidth=1.8 if strategy else 0.8)
    low.set_ylim(bottom=0)
    return handles


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Bins (index) of one curve, pooled over seeds: n, and the means of confidence and accuracy
    weighted by n."""
    weighted = table.assign(
        confidence=table["confidence"] * table["n"], accuracy=table["accuracy"] * table["n"]
    )
    sums = weighted.groupby("bin")[["confidence", "accuracy", "n"]].sum()
    return sums.assign(
        confidence=sums["confidence"] / sums["n"], accuracy=sums["accuracy"] / sums["n"]
    )
