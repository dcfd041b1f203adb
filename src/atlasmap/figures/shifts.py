"""Labels of query batches that are shifted as a whole from the reference's."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from atlasmap.figures.confusion import cell_size, label_room, panel_width, shortened
from atlasmap.figures.style import new_figure, place, sentence, styled, text_color

MOST_LETTERS, MOST_COUNTED = 40, 15
NOTHING = "No label of any query batch moved as a whole, away from the reference's cells."


@styled
def draw_shifts(shifts: pd.DataFrame) -> Figure:
    """Draw query batches × labels that are shifted in any batch, coloured by the fraction of
    shifted cells.

    `shifts`, of one mapping, has columns batch, label, n (cells of the batch with that label) and
    n_shifted. Grey: fewer than five cells have the label. Numbers are shifted cells.
    """
    moved = shifts[shifts["n_shifted"] > 0] if len(shifts) else shifts
    if moved.empty:
        return sentence(NOTHING)
    batches = sorted(moved["batch"].unique(), key=str.casefold)
    labels = sorted(moved["label"].unique(), key=str.casefold)
    table = shifts.set_index(["batch", "label"])
    count, n = (
        table[key].unstack().reindex(index=batches, columns=labels) for key in ("n_shifted", "n")
    )
    count.index = [shortened(str(name), MOST_LETTERS) for name in batches]
    cell = cell_size(len(labels))
    font = float(np.clip(cell * 72 * 0.62, 5.5, 8))
    left, bottom = label_room(count, font)
    wide, high = panel_width(len(labels)), len(batches) * cell
    figure = new_figure(left + wide + 0.95, high + 0.35 + bottom)
    ax = place(figure, left, 0.35, wide, high)
    share = (count / n).to_numpy(float)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_facecolor("#f0f0f0")
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=font)
    ax.set_yticks(range(len(batches)), count.index, fontsize=font)
    ax.tick_params(length=0, pad=2)
    ax.set(xlabel="Label", ylabel="Query batch")
    ax.spines[:].set(visible=True, color="#808080", linewidth=0.5)
    if len(labels) <= MOST_COUNTED:
        for i, j in zip(*np.nonzero(count.fillna(0).to_numpy()), strict=True):
            text, color = f"{count.iat[i, j]:.0f}", text_color(image.cmap(share[i, j]))
            ax.text(j, i, text, ha="center", va="center", fontsize=5.5, color=color)
    bar = place(figure, left + wide + 0.2, 0.35, 0.12, float(np.clip(high, 1.0, 2.0)))
    figure.colorbar(image, cax=bar, label="Share that moved", ticks=[0, 0.5, 1])
    return figure
