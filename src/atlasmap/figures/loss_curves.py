"""Training curves of the scANVI variants side by side, as in scvi-tools' tutorial on the scANVI
fix; or of totalVI, with one panel per term of its loss."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from atlasmap.figures.style import VARIANTS, in_order, new_figure, place, sentence, styled
from atlasmap.labels.palette import BLUE, RED

METRICS = {
    "classification_loss": "Classification loss",
    "calibration_error": "Calibration error",
    "accuracy": "Accuracy",
}
OF_TOTALVI = {
    "elbo": "Negative ELBO",
    "reconstruction_loss_genes": "Reconstruction, genes",
    "reconstruction_loss_proteins": "Reconstruction, proteins",
    "kl_local": "KL (unweighted)",
    "classification_loss": "Classification loss",
    "accuracy": "Accuracy",
}
SPLITS = {"train": BLUE, "validation": RED}
WIDTH, HEIGHT, GAP, LEFT, TOP, BOTTOM = 2.3, 1.6, 0.22, 0.65, 0.55, 0.45


@styled
def draw_loss_curves(history: pd.DataFrame, seed: int | None = None) -> Figure:
    """Draw classification loss, calibration error and accuracy (rows) of each scANVI variant
    (columns); for totalVI, one panel per term of its loss and metric of its classifier.

    `history` has columns seed, model, variant, strategy, epoch, split, metric, value; rows of
    mappings are ignored. With `seed`, only that seed is drawn; otherwise each seed is a thin line
    and their mean a thick one.
    """
    if history.empty:
        return sentence("There is no training history to draw.")
    table = history[history["split"].isin(SPLITS) & (history["strategy"] == "")]
    if seed is not None:
        table = table[table["seed"] == seed]
    totalvi = table[(table["model"] == "totalvi") & table["metric"].isin(OF_TOTALVI)]
    if len(totalvi):
        return draw_terms(totalvi)
    table = table[(table["model"] == "scanvi") & table["metric"].isin(METRICS)]
    if table.empty:
        of_seed = "" if seed is None else f" of seed {seed}"
        return sentence(f"The training history{of_seed} holds no scANVI variant.")
    return draw_grid(table)


def draw_grid(table: pd.DataFrame) -> Figure:
    """Draw the grid of scANVI's panels (metrics × variants)."""
    variants = in_order(table["variant"], VARIANTS)
    n = len(variants)
    figure = new_figure(
        LEFT + n * (WIDTH + GAP), TOP + len(METRICS) * (HEIGHT + GAP) + BOTTOM - GAP
    )
    for row, (metric, name) in enumerate(METRICS.items()):
        first = None
        for column, variant in enumerate(variants):
            left, top = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + GAP)
            ax = place(figure, left, top, WIDTH, HEIGHT, sharey=first)
            first = first or ax
            of_model = table["variant"] == variant
            draw_panel(ax, table[of_model & (table["metric"] == metric)])
            ax.set_xlim(0, max(table["epoch"].max(), 1))
            ax.tick_params(labelleft=column == 0, labelbottom=row == len(METRICS) - 1)
            ax.set_ylabel(name if column == 0 else "")
            ax.set_title(f"scANVI {variant}" if row == 0 else "", fontweight="bold")
            ax.set_xlabel("Epoch" if row == len(METRICS) - 1 else "")
    handles, names = figure.axes[0].get_legend_handles_labels()
    middle = (LEFT + (n * (WIDTH + GAP) - GAP) / 2) / figure.get_figwidth()
    figure.legend(handles, names, loc="upper center", bbox_to_anchor=(middle, 1), ncols=2)
    return figure


def draw_terms(table: pd.DataFrame) -> Figure:
    """Draw panels of totalVI's terms, three per row."""
    names = [metric for metric in OF_TOTALVI if metric in set(table["metric"])]
    n_rows, wide = -(-len(names) // 3), LEFT + GAP
    figure = new_figure(3 * (WIDTH + wide), TOP + n_rows * (HEIGHT + TOP) - TOP + BOTTOM)
    for k, metric in enumerate(names):
        row, column = divmod(k, 3)
        ax = place(
            figure, LEFT + column * (WIDTH + wide), TOP + row * (HEIGHT + TOP), WIDTH, HEIGHT
        )
        of_metric = table[table["metric"] == metric]
        draw_panel(ax, of_metric)
        ax.set_xlim(0, max(of_metric["epoch"].max(), 1))
        ax.set_ylabel(OF_TOTALVI[metric])
        ax.set_xlabel("Epoch")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def draw_panel(ax: Axes, table: pd.DataFrame) -> None:
    """Draw curves of one metric of one model: one line per seed and split, and the mean over
    seeds."""
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.grid(axis="y", color="#ebebeb", linewidth=0.5)
    for split, color in SPLITS.items():
        curves = table[table["split"] == split].pivot_table("value", "epoch", "seed")
        if curves.shape[1] > 1:
            for one in curves:
                part = curves[one].dropna()
                ax.plot(part.index, part, color=color, linewidth=0.5, alpha=0.4)
            # The mean would jump where the shortest run ends.
            curves = curves.dropna()
            split = f"{split} (mean of {curves.shape[1]} seeds)"
        mean = curves.mean(axis=1)
        ax.plot(mean.index, mean, color=color, linewidth=1.5, label=split)
    if table.empty:
        ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes)
