"""Commands that calibrate labels on held-out reference cells."""

import itertools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import anndata
from cyclopts import Parameter
from pydantic.dataclasses import dataclass as pydantic_dataclass

from atlasmap.commands.mapping import QuerySettings
from atlasmap.commands.parameters import Reference, Seed, TreeFile
from atlasmap.commands.running import Running
from atlasmap.config import depth_levels
from atlasmap.files import written_aside
from atlasmap.labels.held_out import Mapped
from atlasmap.names import slug
from atlasmap.settings import (
    CLOSED,
    CalibrationSettings,
    ScanviSettings,
    ScviSettings,
    Surgery,
    TotalviSettings,
    Variant,
)

Contract = Annotated[
    Path,
    Parameter(help="contract.json: how deep the reference is, and so what held-out cells are."),
]


@pydantic_dataclass(frozen=True, config=CLOSED)
class Classifier:
    """A scANVI model to train in each fold."""

    variant: Variant
    scanvi: ScanviSettings = field(default_factory=ScanviSettings)


@dataclass(frozen=True)
class Resuming(Running):
    """Options of a job with several trainings. Checkpoints are kept when a training ends, so that a
    resumed job repeats none of those that were finished."""

    def checkpoints(self, out: Path):
        """Checkpoints that are removed only at the end of the whole job."""
        from atlasmap.training.checkpoint import Lasting

        made = super().checkpoints(out)
        return Lasting(made.folder, made.every, made.times)


def train_held_out(
    reference: Reference,
    *,
    contract: Contract,
    out: Path,
    fold: int = 0,
    models: list[Classifier] | None = None,
    strategy: Surgery = "per_batch",
    seed: Seed = 0,
    scvi: ScviSettings = ScviSettings(),
    totalvi: TotalviSettings = TotalviSettings(),
    how: QuerySettings = QuerySettings(),
    calibration: CalibrationSettings = CalibrationSettings(),
    running: Running = Running(),
) -> None:
    """Hold out a group of reference batches, train models without them, and map the held-out
    batches onto each model.

    Example: atlasmap train-held-out reference.h5ad --contract contract.json --out held_out/0
    --models '{"variant": "fixed"}'

    Parameters
    ----------
    out
        Output folder: for each model a folder with reference_latent.h5ad (the training cells) and
        mapped.h5ad (the held-out cells).
    fold
        Index of the group of batches that is held out, from 0.
    models
        scANVI models to train (JSON: variant and scanvi settings). Default: none, and totalVI is
        trained.
    strategy
        How the held-out batches are mapped: per_batch; or frozen, if queries are mapped only so.
    how
        Settings of the mapping, the same as for queries.
    """
    from atlasmap.commands.reference import train_scanvi, train_scvi, train_totalvi

    kept, held = out / ".kept.h5ad", out / ".held_out.h5ad"
    hold_out(reference, kept, held, fold, calibration, running.memory_gb)
    lasting = Resuming(**vars(running))
    if models:
        train_scvi(kept, out=out / "scvi", seed=seed, scvi=scvi, running=lasting)
    else:
        train_totalvi(kept, out=out / "totalvi", seed=seed, totalvi=totalvi, running=lasting)
    folders = [] if models else [out / "totalvi"]
    for model in models or []:
        folders.append(out / f"scanvi_{model.variant}")
        train_scanvi(
            kept, scvi_bundle=out / "scvi", variant=model.variant, out=folders[-1], seed=seed,
            scanvi=model.scanvi, running=lasting,
        )  # fmt: skip
    for folder in folders:
        mapped = map_held_out(held, folder, contract, strategy, seed, how, calibration, lasting)
        with written_aside(folder / "mapped.h5ad") as aside:
            mapped.write_h5ad(aside)
    for scratch in out.glob("**/.checkpoints"):
        shutil.rmtree(scratch)
    for path in (kept, held):
        path.unlink()


def hold_out(
    reference: Path, kept: Path, held: Path, fold: int, calibration: CalibrationSettings,
    memory_gb: float | None,
) -> None:  # fmt: skip
    """Split a prepared reference by batch, and write the training cells to `kept` and the held-out
    cells to `held` (.h5ad)."""
    from atlasmap.data.blocks import write_h5ad
    from atlasmap.data.depth import at_new_depth, tree_in
    from atlasmap.data.memory import has_room
    from atlasmap.data.readers import Wanted, read_any
    from atlasmap.data.registry import unlabeled_in
    from atlasmap.labels.folds import folds_of

    room = has_room([reference], memory_gb, copies=2)
    cells = read_any(reference, Wanted("X", lazily=not room))
    chosen = folds_of(cells, calibration.folds)[fold]
    parts = cells[chosen.kept].copy(), chosen.held_out(cells)
    at_new_depth(parts[0].obs, tree_in(cells), unlabeled_in(cells))
    kept.parent.mkdir(parents=True, exist_ok=True)
    for path, part in zip((kept, held), parts, strict=True):
        write_h5ad(part, path, None)
    print(f"held out: {', '.join(sorted(parts[1].obs['batch'].unique()))}")


def map_held_out(
    held_out: Path, bundle: Path, contract: Path, strategy: Surgery, seed: int, how: QuerySettings,
    calibration: CalibrationSettings, running: Running,
) -> anndata.AnnData:  # fmt: skip
    """Map held-out cells (.h5ad) onto a model trained without them, each batch by itself and once
    per library size, to which its counts are thinned. The library sizes follow from that of the
    reference in `contract`. Returns latent, label probabilities and residual scores; obs `depth` is
    the library size."""
    from copy import deepcopy

    from atlasmap.bundle import load
    from atlasmap.labels.folds import thinned
    from atlasmap.mapping.given import read_latent
    from atlasmap.mapping.query import map_held_out as map_one

    trained, reference = load(bundle, running.pick_device()), read_latent(bundle)
    surgery = how.on(bundle), strategy, seed
    cells, mapped = running.open_cells(held_out), []
    batch = cells.obs["batch"].astype(str)
    depths = depth_levels(json.loads(contract.read_text(encoding="utf-8")))
    for name, depth in itertools.product(sorted(batch.unique()), depths):
        checkpoints = running.checkpoints(bundle / slug(f"{name} {depth:.0f}"))
        part = thinned(cells[(batch == name).to_numpy()].to_memory(), depth)
        given = deepcopy(trained), part, reference, *surgery
        mapped.append(map_one(*given, checkpoints, calibration.n_draws))
        mapped[-1].obs["depth"] = float(depth)
        checkpoints.remove()
    return anndata.concat(mapped, uns_merge="same")


def calibrate(
    reference: Reference,
    *,
    out: Path,
    held_out: list[Mapped] | None = None,
    bundle: Path,
    contract: Contract,
    label_tree: TreeFile = None,
    calibration: CalibrationSettings = CalibrationSettings(),
) -> None:
    """Learn novelty cut-offs, label probabilities and prediction sets from held-out cells.

    Example: atlasmap calibrate reference.h5ad --bundle scanvi_fixed --contract contract.json --out
    scanvi_fixed/calibration.json

    Parameters
    ----------
    out
        File to write: the calibration (.json); profiles.npz is written beside it.
    held_out
        Folds of train-held-out (JSON): `fold`, `latent` (reference_latent.h5ad) and `mapped`
        (mapped.h5ad). Default: none, and the validation cells of `bundle` are used.
    bundle
        The reference's bundle.
    """
    import numpy as np

    from atlasmap.bundle import load
    from atlasmap.data.depth import tree_in
    from atlasmap.data.label_tree import read_tree
    from atlasmap.device import pick_device
    from atlasmap.labels.calibrated import PROFILES, save_profiles
    from atlasmap.labels.held_out import from_batches, from_validation
    from atlasmap.mapping.given import read_latent

    cells = anndata.read_h5ad(reference, backed="r")
    tree = read_tree(label_tree) if label_tree else tree_in(cells)
    if held_out:
        learned, profiles = from_batches(cells, held_out, calibration, tree)
    else:
        model, latent = load(bundle, pick_device("cpu")).model, read_latent(bundle)
        [depth, *_] = depth_levels(json.loads(contract.read_text(encoding="utf-8")))
        learned, profiles = from_validation(model, cells, latent, float(depth), calibration, tree)
    with written_aside(out.with_name(PROFILES)) as aside:
        save_profiles(profiles, aside)
    with written_aside(out) as aside:
        learned.write(aside)
    view = learned.views[0]
    depths = ", ".join(f"{view.depth:.0f}" for view in learned.views)
    print(f"{view.n_cells} cells, {learned.scheme}, for median depths of {depths}")
    print(f"novelty by {view.cut_offs.score}; confident from {view.confidence.threshold:.3f}")
    print(f"weights of classifier and genes: {np.round(view.confidence.weights, 2)}")
