"""UMAP coloured by label, batch and role."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from atlasmap.figures.style import new_figure, place, sentence, size_of, styled
from atlasmap.labels.palette import GREY, ROLES, colors_of, colors_of_labels

SIDE, GAP, LEFT, TOP, LEGEND_GAP = 2.8, 0.12, 0.3, 0.28, 0.25
LARGE = 4.6  # side of the panels of a single map whose labels are numbered
PITCH = 0.125  # height of a legend's entry
NUMBERED_ABOVE = 12  # labels are numbered if there are more than these
NUMBER = np.array([0.11, 0.085])  # width and height of a label's number, in inches


@dataclass(frozen=True)
class Key:
    """What a column of panels shows: `column` of the cells, `title`, `colors` of the values, and
    `numbers` of the values on the map (may be empty)."""

    column: str
    title: str
    colors: dict[str, str]
    numbers: dict[str, int]


@styled
def draw_embeddings(maps: dict[str, pd.DataFrame], unlabeled: str = "Unknown") -> Figure:
    """Draw one row per map, with columns label (if any cell has one), batch and role, and a common
    legend on the right.

    `maps`: title → cells with columns x, y, name (label of a reference cell, predicted label of a
    query cell), batch and role (reference or query). Cells named `unlabeled` are grey. More than 12
    labels are numbered on the map and in the legend.
    """
    maps = {title: cells for title, cells in maps.items() if len(cells)}
    if not maps:
        return sentence("There is no map with cells to draw.")
    found = {name for cells in maps.values() for name in set(cells["name"])}
    names = sorted(found - {unlabeled}, key=str.casefold)
    batches = sorted({batch for cells in maps.values() for batch in set(cells["batch"])})
    numbers = {name: i for i, name in enumerate(names, 1)} if len(names) > NUMBERED_ABOVE else {}
    shown = [role for role in ROLES if any((c["role"] == role).any() for c in maps.values())]
    keys = [Key("name", "Label", colors_of_labels(found, unlabeled), numbers)] if names else []
    keys += [
        Key("batch", "Batch", colors_of(batches), {}),
        Key("role", "Role", {role: ROLES[role] for role in shown}, {}),
    ]
    return draw_grid(maps, keys)


def draw_grid(maps: dict[str, pd.DataFrame], keys: list[Key]) -> Figure:
    """Draw panels (maps × keys), then the legends in as many columns as they need."""
    side = LARGE if len(maps) == 1 and keys[0].numbers else SIDE
    height = TOP + len(maps) * (side + GAP)
    right = LEFT + len(keys) * (side + GAP)
    figure = new_figure(right + legends_width(keys, height), height)
    for i, (title, cells) in enumerate(maps.items()):
        for j, key in enumerate(keys):
            ax = place(figure, LEFT + j * (side + GAP), TOP + i * (side + GAP), side, side)
            draw_panel(ax, cells, key, side)
            ax.set_title(key.title if i == 0 else "", fontweight="bold")
            ax.set_ylabel(title if j == 0 else "", fontsize=9, labelpad=3)
    draw_legends(figure, keys, right + LEGEND_GAP)
    return figure


def draw_panel(ax: Axes, cells: pd.DataFrame, key: Key, side: float) -> None:
    """Draw one map, `side` inches wide, with cells in random order, but grey cells first and, in
    the role panel, query cells last."""
    shuffled = cells.iloc[np.random.default_rng(0).permutation(len(cells))]
    codes, values = pd.factorize(shuffled[key.column])
    colors = [key.colors[value] for value in values]
    is_last = [
        value == "query" if key.column == "role" else key.colors[value] != GREY for value in values
    ]
    order = np.argsort(np.array(is_last)[codes], kind="stable")
    ax.scatter(
        shuffled["x"].to_numpy()[order],
        shuffled["y"].to_numpy()[order],
        c=to_rgba_array(colors)[codes[order]],
        s=float(np.clip(20_000 / len(cells), 0.15, 8)),
        linewidths=0,
        rasterized=True,
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="#b0b0b0", linewidth=0.5)
    draw_numbers(ax, cells, key, side)


def draw_numbers(ax: Axes, cells: pd.DataFrame, key: Key, side: float) -> None:
    """Draw each label's number at the cell nearest to the median of its cells; a number that was
    moved to avoid overlaps has a line to that cell."""
    middles = {}
    for name, own in cells[cells[key.column].isin(list(key.numbers))].groupby(key.column):
        xy = own[["x", "y"]].to_numpy(float)
        middles[name] = xy[np.square(xy - np.median(xy, axis=0)).sum(axis=1).argmin()]
    if not middles:
        return
    at = np.array(list(middles.values()))
    inch = np.ptp(np.array([ax.get_xlim(), ax.get_ylim()]), axis=1).max() / side
    moved = spread(at / inch, NUMBER) * inch
    halo = [patheffects.withStroke(linewidth=1.4, foreground="white")]
    style = {"ha": "center", "va": "center", "fontsize": 5.5, "path_effects": halo}
    for name, own, text in zip(middles, at, moved, strict=True):
        if np.abs(text - own).max() > NUMBER.max() * inch:
            ax.plot(*np.transpose([own, text]), color="black", linewidth=0.35, scalex=False,
                    scaley=False)  # fmt: skip
        ax.text(*text, str(key.numbers[name]), **style)


def spread(at: np.ndarray, size: np.ndarray, n_rounds: int = 200) -> np.ndarray:
    """Move positions (n × 2) apart until boxes of `size` around them do not overlap, for at most
    `n_rounds` rounds.

    Of two overlapping boxes, each moves by half of the overlap, along the axis where it is smaller.
    """
    out = at + np.linspace(-1e-6, 1e-6, len(at))[:, None]  # separates equal positions
    for _ in range(n_rounds):
        apart = out[:, None] - out[None]
        over = size - np.abs(apart)
        np.einsum("iik->ik", over)[:] = 0
        touching = (over > 0).all(2)
        if not touching.any():
            break
        along = over.argmin(2)[..., None] == np.arange(2)
        push = np.where(touching[..., None] & along, np.sign(apart) * over / 2, 0)
        out = out + push.sum(1) / np.maximum(touching.sum(1), 1)[:, None]
    return out


def draw_legends(figure: Figure, keys: list[Key], left: float) -> float:
    """Draw legends from `left` inches on, below each other as long as they fit; returns their right
    end in inches."""
    width, height = figure.get_size_inches()
    end, top = left, TOP
    for key in keys:
        rows = int((height - TOP) / PITCH) - 2
        entries = [f"{key.numbers[n]}  {n}" if n in key.numbers else n for n in key.colors]
        dots = [
            Line2D([], [], linestyle="", marker="o", markersize=5, color=color)
            for color in key.colors.values()
        ]
        legend = figure.legend(
            dots,
            entries,
            title=key.title,
            loc="upper left",
            ncols=-(-len(entries) // rows),
            fontsize=7,
            title_fontproperties={"weight": "bold", "size": 8},
            alignment="left",
            handletextpad=0.1,
            columnspacing=0.8,
            borderaxespad=0,
            borderpad=0,
            labelspacing=0.35,
        )
        wide, high = size_of(figure, legend)
        if top > TOP and top + high > height:
            left, top = end + LEGEND_GAP, TOP
        legend.set_bbox_to_anchor((left / width, 1 - top / height), figure.transFigure)
        end, top = max(end, left + wide), top + high + 0.2
    return end


def legends_width(keys: list[Key], height: float) -> float:
    """Width of the legends in inches, beside panels of a given height."""
    return draw_legends(new_figure(1, height), keys, LEGEND_GAP) + 0.1
