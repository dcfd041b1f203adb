"""Commands that draw figures from finished tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atlasmap.commands.parameters import Figure


@dataclass(frozen=True)
class MapRun:
    """One mapping to draw: its atlas.h5ad."""

    variant: str
    strategy: str
    atlas: Path


def plot_loss_curves(history: Path, *, out: Figure, seed: int | None = None) -> None:
    """Draw classification loss, calibration error and accuracy over training.

    Example: atlasmap plot-loss-curves results/ATLAS/benchmark/history.csv --out loss_curves

    Parameters
    ----------
    history
        Table of training histories (.csv).
    seed
        Only this seed; otherwise all, and their mean.
    """
    from atlasmap.figures.loss_curves import draw_loss_curves
    from atlasmap.figures.style import save
    from atlasmap.files import read_table

    save(draw_loss_curves(read_table(history), seed), out)


def plot_confusion(confusion: Path, *, out: Figure, split: Literal["validation", "query"]) -> None:
    """Draw confusion matrices.

    Example: atlasmap plot-confusion results/ATLAS/benchmark/confusion.csv --split query --out
    confusion

    Parameters
    ----------
    confusion
        confusion.csv of score-labels.
    split
        Held-out reference cells, or query cells with a known label.
    """
    from atlasmap.figures.confusion import draw_confusion
    from atlasmap.figures.style import save
    from atlasmap.files import read_table

    save(draw_confusion(read_table(confusion), split), out)


def plot_embeddings(*, runs: list[MapRun], out: Figure) -> None:
    """Draw maps by label, batch and role.

    Example: atlasmap plot-embeddings --runs '{"variant": "fixed", "strategy": "per_batch",
    "atlas": "atlas.h5ad"}' --out embeddings

    Parameters
    ----------
    runs
        Mappings to draw (JSON).
    """
    from anndata import read_h5ad

    from atlasmap.data.registry import unlabeled_in
    from atlasmap.figures.embeddings import draw_embeddings
    from atlasmap.figures.style import run_name, save

    atlases = {run_name(run.variant, run.strategy): read_h5ad(run.atlas) for run in runs}
    maps = {name: cells_of(atlas) for name, atlas in atlases.items()}
    save(draw_embeddings(maps, unlabeled_in(next(iter(atlases.values())))), out)


def cells_of(adata):
    """Cells of an atlas to draw: x, y, name, batch, role."""
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


def plot_scib_table(scib: Path, *, out: Figure) -> None:
    """Draw the scib-metrics table as a picture.

    Example: atlasmap plot-scib-table results/ATLAS/benchmark/scib.csv --out scib_table

    Parameters
    ----------
    scib
        Table of score-embeddings (.csv), of any number of seeds.
    """
    from atlasmap.figures.scib_table import draw_scib_table
    from atlasmap.figures.style import save
    from atlasmap.files import read_table

    save(draw_scib_table(read_table(scib)), out)


def plot_proteins(*denoised: Path, atlas: Path, out: Path) -> None:
    """Draw proteins of an atlas: raw against denoised, and which label has which.

    Example: atlasmap plot-proteins donor1/denoised.h5ad --atlas results/ATLAS/atlas.h5ad --out
    proteins

    Parameters
    ----------
    denoised
        denoised.h5ad of the reference and of the mappings, in the atlas's order.
    atlas
        atlas.h5ad.
    out
        Folder: protein_ridges and protein_dots, each .svg and .png; where no cell has a label,
        dots are by batch.
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


def plot_reliability(reliability: Path, *, out: Figure) -> None:
    """Draw reliability curves: accuracy against confidence.

    Example: atlasmap plot-reliability results/ATLAS/benchmark/reliability.csv --out reliability

    Parameters
    ----------
    reliability
        reliability.csv of score-labels.
    """
    from atlasmap.figures.reliability import draw_reliability
    from atlasmap.figures.style import save
    from atlasmap.files import read_table

    save(draw_reliability(read_table(reliability)), out)


def plot_risk_coverage(risk_coverage: Path, *, out: Figure, risk: float | None = None) -> None:
    """Draw the accuracy of the surest cells, the more of them are kept.

    Example: atlasmap plot-risk-coverage results/ATLAS/benchmark/risk_coverage.csv --out
    risk_coverage

    Parameters
    ----------
    risk_coverage
        risk_coverage.csv of score-labels.
    risk
        The risk that confident cells may have, drawn as a line.
    """
    from atlasmap.figures.risk_coverage import draw_risk_coverage
    from atlasmap.figures.style import save
    from atlasmap.files import read_table

    save(draw_risk_coverage(read_table(risk_coverage), risk), out)


def plot_shifts(shifts: Path, *, out: Figure, variant: str, strategy: str, seed: int = 0) -> None:
    """Draw which labels of which query batches moved as a whole.

    Example: atlasmap plot-shifts results/ATLAS/benchmark/shifts.csv --variant fixed --strategy
    per_batch --out shifts

    Parameters
    ----------
    shifts
        shifts.csv of score-labels.
    variant
        The mapping's classifier.
    strategy
        How it was mapped.
    seed
        Its seed.
    """
    from atlasmap.figures.shifts import draw_shifts
    from atlasmap.figures.style import save
    from atlasmap.files import read_table

    table = read_table(shifts)
    for key, value in {"variant": variant, "strategy": strategy, "seed": seed}.items():
        table = table[table[key] == value] if len(table) else table
    save(draw_shifts(table), out)
