"""Commands that map query batches onto a reference."""

from pathlib import Path

import anndata

from atlasmap.settings import Device, Strategy, SurgerySettings


def operate(
    *queries: Path,
    reference_bundle: Path,
    out: Path,
    strategy: Strategy = "per_batch",
    seed: int = 0,
    surgery: SurgerySettings = SurgerySettings(),
    device: Device = "auto",
) -> None:
    """Surgery: append columns for the queries' batches to a frozen reference and train those.

    Parameters
    ----------
    queries
        Prepared query batches (.h5ad): one for per_batch, all for joint.
    reference_bundle
        The reference's bundle.
    out
        Folder of the delta bundle; the latent goes beside it as latent.h5ad.
    strategy
        per_batch or joint.
    seed
        Seed of start values, split, minibatches and noise.
    surgery
        Settings.
    device
        Where to compute.
    """
    from atlasmap.bundle import load, save_delta
    from atlasmap.device import pick_device
    from atlasmap.mapping import joined, map_query

    chosen = pick_device(device)
    query = joined([anndata.read_h5ad(path) for path in queries])
    mapping = map_query(load(reference_bundle, chosen), query, surgery, strategy, seed)
    save_delta(mapping.bundle, out, mapping.new)
    from atlasmap.files import written_aside

    with written_aside(out / "latent.h5ad") as aside:
        mapping.latent.write_h5ad(aside)
