"""Risk-coverage curves: accuracy of the most confident cells against the fraction kept."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atlasmap.figures.reliability import COLORS
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
from atlasmap.labels.palette import BLUE

SIZE, GAP, LEFT, TOP, BOTTOM = 2.1, 0.4, 0.6, 0.32, 0.75
DASHES = {"calibrated": "-", "raw": (0, (2, 1.5))}


@styled
def draw_risk_coverage(table: pd.DataFrame, risk: float | None = None) -> Figure:
    """Draw one panel per variant: accuracy of the most confident cells against the fraction kept.

    `table` has columns seed, variant, strategy, batch, split, method, probabilities, level,
    coverage, accuracy. There is one colour for validation cells, and one per strategy for query
    cells (all batches). Seeds are averaged. If there are calibrated probabilities, raw ones are
    dashed. `risk`: requested risk of confident cells, drawn as a horizontal line.
    """
    kinds = {} if table.empty else {kind: one_kind(table, kind) for kind in DASHES}
    kinds = {
        kind: rows[rows["split"].isin(["validation", "query"]) & (rows["batch"] == "all")]
        for kind, rows in kinds.items()
    }
    kinds = {kind: rows for kind, rows in kinds.items() if len(rows)}
    if not kinds:
        return sentence("No validation or query cell has a known label: nothing to draw.")
    everyone = pd.concat(kinds.values())
    variants = in_order(everyone["variant"], VARIANTS)
    wide = max(LEFT + len(variants) * (SIZE + GAP), 4)
    figure = new_figure(wide, TOP + SIZE + BOTTOM)
    curve = ["variant", "strategy", "probabilities", "split", "coverage"]
    least = min(0.9, everyone.groupby(curve)["accuracy"].mean().min())
    handles = {}
    for i, variant in enumerate(variants):
        ax = place(figure, LEFT + i * (SIZE + GAP), TOP, SIZE, SIZE)
        of_variant = {k: rows[rows["variant"] == variant] for k, rows in kinds.items()}
        if risk is not None:
            name, grey = f"{risk:.0%} risk asked", "#808080"
            handles[name] = ax.axhline(1 - risk, color=grey, linewidth=0.8, linestyle=(0, (4, 3)))
        handles |= draw_variant(ax, of_variant)
        ax.set(xlim=(0, 1), ylim=(least - 0.02, 1.01), xticks=(0, 0.5, 1), xlabel="Cells kept")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.set_ylabel("Accuracy" if i == 0 else "")
        ax.tick_params(labelleft=i == 0)
        ax.set_title(variant, fontweight="bold")
    middle = (LEFT + (len(variants) * (SIZE + GAP) - GAP) / 2) / wide
    figure.legend(
        handles.values(), handles, loc="lower center", bbox_to_anchor=(middle, 0),
        ncols=min(len(handles), 2 * len(variants)),
    )  # fmt: skip
    return figure


def draw_variant(ax: Axes, kinds: dict[str, pd.DataFrame]) -> dict:
    """Draw the curves of one variant; returns legend handles by name."""
    handles = {}
    for kind, rows in kinds.items():
        dashed = DASHES[kind] if len(kinds) > 1 else "-"
        for strategy in in_order(rows["strategy"], ("", *STRATEGIES)):
            curve = rows[rows["strategy"] == strategy].groupby("coverage")["accuracy"].mean()
            name = f"query, {strategy.replace('_', ' ')}" if strategy else "validation"
            (line,) = ax.plot(
                curve.index,
                curve,
                color=COLORS.get(strategy, BLUE),
                linewidth=1.2,
                linestyle=dashed,
            )
            if kind == next(iter(kinds)):
                handles[name] = line
    if len(kinds) > 1:
        (handles["raw"],) = ax.plot([], [], color="#808080", linewidth=1.2, linestyle=DASHES["raw"])
    return handles
