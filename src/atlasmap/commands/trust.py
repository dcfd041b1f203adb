"""Commands that learn how far labels are to be trusted."""

from pathlib import Path

import anndata

from atlasmap.commands.data import write_cells
from atlasmap.commands.mapping import Operation
from atlasmap.commands.parameters import Reference, Seed
from atlasmap.commands.running import Running
from atlasmap.files import slug, written_aside
from atlasmap.settings import CalibrationSettings, Surgery


def hold_out(
    reference: Reference,
    *,
    twin: Path,
    held_out: Path,
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
    memory_gb
        Memory (GB) that the job may use; without it 60 % of what it has.
    """
    from atlasmap.data.memory import has_room
    from atlasmap.data.readers import Wanted, read_any
    from atlasmap.labels.held_out import split_off

    room = has_room([reference], memory_gb, copies=2)
    cells = read_any(reference, Wanted("X", lazily=not room))
    parts = split_off(cells, calibration.share)
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
    strategy: Surgery = "per_batch",
    seed: Seed = 0,
    how: Operation = Operation(),
    running: Running = Running(),
) -> None:
    """Map held-out reference batches onto the twin as queries are, each by itself.

    Example: atlasmap map-held-out held_out.h5ad --reference_bundle twin_fixed --out mapped.h5ad

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
    from atlasmap.mapping.given import read_latent
    from atlasmap.mapping.query import map_held_out as map_one

    twin, reference = load(reference_bundle, running.pick_device()), read_latent(reference_bundle)
    surgery = how.on(reference_bundle)
    cells, mapped = running.open_cells(held_out), []
    batch = cells.obs["batch"].astype(str)
    for name in sorted(batch.unique()):
        checkpoints = running.checkpoints(out.parent / slug(name))
        part = cells[(batch == name).to_numpy()].to_memory()
        mapped.append(
            map_one(deepcopy(twin), part, reference, surgery, strategy, seed, checkpoints)
        )
        checkpoints.remove()
    with written_aside(out) as aside:
        anndata.concat(mapped, uns_merge="same").write_h5ad(aside)


def calibrate(
    *,
    bundle: Path,
    out: Path,
    held_out: Path | None = None,
    calibration: CalibrationSettings = CalibrationSettings(),
) -> None:
    """Learn temperature, prediction sets and cut-offs of novelty from held-out cells.

    Example: atlasmap calibrate --bundle scanvi_fixed --out scanvi_fixed/calibration.json

    Parameters
    ----------
    bundle
        Bundle of the twin, or (without --held_out) of the reference, with reference_latent.h5ad.
    out
        What was learned (.json).
    held_out
        What map-held-out wrote; none: the reference's own validation cells.
    """
    from atlasmap.bundle import load
    from atlasmap.device import pick_device
    from atlasmap.labels.calibrated import NEW_BATCHES
    from atlasmap.labels.calibrated import calibrate as learn
    from atlasmap.mapping.given import read_latent

    model, reference = load(bundle, pick_device("cpu")), read_latent(bundle)
    if held_out:
        cells, scheme = anndata.read_h5ad(held_out), NEW_BATCHES
    else:
        seen = (reference.obs["split"] == "validation").to_numpy()
        cells, reference = reference[seen].copy(), reference[~seen].copy()
        scheme = "validation cells"
    learned = learn(model.model, model.registry.labels, cells, reference, scheme, calibration)
    with written_aside(out) as aside:
        learned.write(aside)
    print(f"temperature {learned.scaling.temperature:.2f}, from {learned.n_cells} {scheme}")
