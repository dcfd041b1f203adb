"""Commands that learn how far labels are to be trusted."""

import itertools
import json
from pathlib import Path
from typing import Annotated

import anndata
from cyclopts import Parameter

from atlasmap.commands.data import write_cells
from atlasmap.commands.mapping import Operation
from atlasmap.commands.parameters import Reference, Seed, TreeFile
from atlasmap.commands.running import Running
from atlasmap.config import depth_levels
from atlasmap.files import slug, written_aside
from atlasmap.labels.held_out import Mapped
from atlasmap.settings import CalibrationSettings, Surgery

Contract = Annotated[
    Path,
    Parameter(help="contract.json: how deep the reference is, and so what held-out cells are."),
]


def hold_out(
    reference: Reference,
    *,
    twin: Path,
    held_out: Path,
    fold: int = 0,
    calibration: CalibrationSettings = CalibrationSettings(),
    memory_gb: float | None = None,
) -> None:
    """Split a prepared reference by batch: what a twin is trained on, and what it will be asked.

    Example: atlasmap hold-out reference.h5ad --twin twin.h5ad --held_out held_out.h5ad

    Parameters
    ----------
    twin
        Cells that the twin is trained on (.h5ad).
    held_out
        Cells of the batches that are held out (.h5ad).
    fold
        Which of the groups of batches is held out; the first is 0.
    memory_gb
        Memory (GB) that the job may use; without it 60 % of what it has.
    """
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
    for path, part in zip((twin, held_out), parts, strict=True):
        write_cells(part, path, compression=None)
        print(
            f"{path}: {part.n_obs} cells, batches {', '.join(sorted(part.obs['batch'].unique()))}"
        )


def map_held_out(
    held_out: Path,
    *,
    reference_bundle: Path,
    out: Path,
    contract: Contract,
    strategy: Surgery = "per_batch",
    seed: Seed = 0,
    how: Operation = Operation(),
    calibration: CalibrationSettings = CalibrationSettings(),
    running: Running = Running(),
) -> None:
    """Map held-out reference batches onto the twin as queries are, each by itself.

    Example: atlasmap map-held-out held_out.h5ad --reference_bundle twin_fixed --contract
    contract.json --out mapped.h5ad

    Parameters
    ----------
    held_out
        Held-out cells (.h5ad).
    reference_bundle
        The twin's bundle, with reference_latent.h5ad.
    out
        Latent, labels and misfit of the held-out cells (.h5ad).
    strategy
        per_batch, or frozen (where nothing else is).
    how
        Settings, as queries are mapped with.
    """
    from copy import deepcopy

    from atlasmap.bundle import load
    from atlasmap.labels.folds import thinned
    from atlasmap.mapping.given import read_latent
    from atlasmap.mapping.query import map_held_out as map_one

    twin, reference = load(reference_bundle, running.pick_device()), read_latent(reference_bundle)
    surgery = how.on(reference_bundle), strategy, seed
    cells, mapped = running.open_cells(held_out), []
    batch = cells.obs["batch"].astype(str)
    depths = depth_levels(json.loads(contract.read_text(encoding="utf-8")))
    for name, depth in itertools.product(sorted(batch.unique()), depths):
        checkpoints = running.checkpoints(out.parent / slug(f"{name} {depth:.0f}"))
        part = thinned(cells[(batch == name).to_numpy()].to_memory(), depth)
        given = deepcopy(twin), part, reference, *surgery
        mapped.append(map_one(*given, checkpoints, calibration.n_draws))
        mapped[-1].obs["depth"] = float(depth)
        checkpoints.remove()
    with written_aside(out) as aside:
        anndata.concat(mapped, uns_merge="same").write_h5ad(aside)


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
    """Learn cut-offs of novelty, how sure a label is, and prediction sets from held-out cells.

    Example: atlasmap calibrate reference.h5ad --bundle scanvi_fixed --contract contract.json --out
    scanvi_fixed/calibration.json

    Parameters
    ----------
    out
        What was learned (.json); beside it profiles.npz.
    held_out
        Folds, as map-held-out wrote them (JSON).
    bundle
        The reference's bundle, whose own validation cells are asked without --held_out.
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
