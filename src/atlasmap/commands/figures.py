"""Commands that draw figures from result tables."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Name = Literal[
    "loss_curves", "confusion_validation", "confusion_query", "embeddings", "scib_table",
    "reliability", "risk_coverage", "shifts",
]  # fmt: skip


@dataclass(frozen=True)
class MapRun:
    """One mapping to draw; `atlas` is its atlas.h5ad."""

    variant: str
    strategy: str
    atlas: Path


@dataclass(frozen=True)
class FinalRun:
    """The final mapping, whose shifts are drawn, and `risk`: the target risk of confident cells
    (calibration.risk)."""

    variant: str = "fixed"
    strategy: str = "per_batch"
    seed: int = 0
    risk: float | None = None


def plot_figures(
    tables: Path, *, figures: list[Name], out: Path, runs: list[MapRun] | None = None,
    final: FinalRun = FinalRun(),
) -> None:  # fmt: skip
    """Draw figures of an atlas from its benchmark tables.

    Example: atlasmap plot-figures results/ATLAS/benchmark --figures confusion_query --out
    results/ATLAS/figures

    Parameters
    ----------
    tables
        Folder with the benchmark tables (.csv).
    figures
        Names of the figures to draw.
    out
        Output folder: each figure as .svg and .png.
    runs
        Mappings whose UMAPs are drawn by `embeddings` (JSON).
    final
        The final mapping: its shifts are drawn, and its risk is marked in risk_coverage.
    """
    from atlasmap.figures.style import save

    for name in figures:
        save(drawer(name, tables, runs or [], final)(), out / name)
        print(f"{out / name}.svg")


def drawer(name: Name, tables: Path, runs: list[MapRun], final: FinalRun) -> Callable:
    """The function, without arguments, that draws the figure `name`."""
    from functools import partial

    from atlasmap.figures.confusion import draw_confusion
    from atlasmap.figures.loss_curves import draw_loss_curves
    from atlasmap.figures.reliability import draw_reliability
    from atlasmap.figures.risk_coverage import draw_risk_coverage
    from atlasmap.figures.scib_table import draw_scib_table
    from atlasmap.figures.shifts import draw_shifts
    from atlasmap.files import read_table

    def of_table(draw: Callable, table: str, *args) -> Callable:
        return lambda: draw(read_table(tables / f"{table}.csv"), *args)

    return {
        "loss_curves": of_table(draw_loss_curves, "history"),
        "confusion_validation": of_table(draw_confusion, "confusion", "validation"),
        "confusion_query": of_table(draw_confusion, "confusion", "query"),
        "embeddings": partial(maps_of, runs),
        "scib_table": of_table(draw_scib_table, "scib"),
        "reliability": of_table(draw_reliability, "reliability"),
        "risk_coverage": of_table(draw_risk_coverage, "risk_coverage", final.risk),
        "shifts": of_table(lambda table: draw_shifts(of_run(table, final)), "shifts"),
    }[name]


def of_run(table, final: FinalRun):
    """The rows of `table` that belong to the final mapping."""
    for key in ("variant", "strategy", "seed") if len(table) else ():
        table = table[table[key] == getattr(final, key)]
    return table


def maps_of(runs: list[MapRun]):
    """Draw the UMAP of each mapping, coloured by label, batch and role."""
    from anndata import read_h5ad

    from atlasmap.data.registry import unlabeled_in
    from atlasmap.figures.embeddings import draw_embeddings
    from atlasmap.figures.style import run_name

    atlases = {run_name(run.variant, run.strategy): read_h5ad(run.atlas) for run in runs}
    maps = {name: cells_of(atlas) for name, atlas in atlases.items()}
    return draw_embeddings(maps, unlabeled_in(next(iter(atlases.values()))))


def cells_of(adata):
    """Table of the cells of an atlas: batch, role, x, y, and name (label of reference cells,
    predicted label of query cells)."""
    import pandas as pd

    from atlasmap.data.registry import unlabeled_in

    obs = adata.obs[["batch", "role"]].astype(str)
    nameless = pd.Series(unlabeled_in(adata), adata.obs_names)
    label, predicted = (
        adata.obs[name].astype(str) if name in adata.obs else nameless
        for name in ("label", "predicted_label")
    )
    name = label.where(obs["role"] == "reference", predicted)
    x, y = adata.obsm["X_umap"].T
    return obs.assign(x=x, y=y, name=name)


def plot_proteins(*denoised: Path, atlas: Path, out: Path) -> None:
    """Draw the proteins of an atlas: raw against denoised counts, and denoised proteins per label.

    Example: atlasmap plot-proteins donor1/denoised.h5ad --atlas results/ATLAS/atlas.h5ad --out
    proteins

    Parameters
    ----------
    denoised
        denoised.h5ad of the reference, then of the mappings, in the order of the atlas.
    atlas
        atlas.h5ad.
    out
        Output folder: protein_ridges and protein_dots, each as .svg and .png. The dots are per
        label, or per batch if no cell has a label.
    """
    import anndata
    import numpy as np
    import pandas as pd

    from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS, unlabeled_in
    from atlasmap.figures.proteins import draw_dots, draw_ridges
    from atlasmap.figures.style import save
    from atlasmap.mapping.denoise import FOREGROUND, PROTEIN

    whole = anndata.read_h5ad(atlas)
    cells = cells_of(whole)
    raw = np.concatenate([anndata.read_h5ad(path, backed="r").obsm[PROTEINS] for path in denoised])
    raw, level, share = (
        pd.DataFrame(values, columns=list(whole.uns[PROTEIN_NAMES]))
        for values in (raw, whole.obsm[PROTEIN], whole.obsm[FOREGROUND])
    )
    group = "name" if (cells["name"] != unlabeled_in(whole)).any() else "batch"
    save(draw_ridges(raw, level, share, cells["role"]), out / "protein_ridges")
    save(draw_dots(level, share, cells[group]), out / "protein_dots")
