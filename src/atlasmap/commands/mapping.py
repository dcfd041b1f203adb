"""Commands that map query batches onto a reference."""

import logging
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import anndata
from cyclopts import Parameter

from atlasmap.commands.parameters import OnDevice, Probe, Queries, ReferenceBundle, Seed, TreeFile
from atlasmap.commands.reference import write_denoised
from atlasmap.commands.running import Running
from atlasmap.data.sheet import Columns, Dataset
from atlasmap.errors import listed
from atlasmap.files import write_json, written_aside
from atlasmap.jobs.failures import BatchesFailed, kind_of
from atlasmap.settings import (
    DataConfig,
    DenoiseSettings,
    Surgery,
    SurgerySettings,
    TotalviSurgerySettings,
    TransferSettings,
    UmapSettings,
)

log = logging.getLogger("atlasmap")


@Parameter(name="*")
@dataclass(frozen=True)
class QuerySettings:
    """How queries are mapped; which of the two surgery settings applies depends on the
    reference."""

    surgery: SurgerySettings = field(default_factory=SurgerySettings)
    """Surgery on scVI and scANVI."""
    totalvi_surgery: TotalviSurgerySettings = field(default_factory=TotalviSurgerySettings)
    """Surgery on totalVI."""
    denoise: DenoiseSettings = field(default_factory=DenoiseSettings)
    """Denoised genes and proteins (totalVI)."""

    def on(self, reference: Path) -> SurgerySettings:
        """The surgery settings for the model in the bundle `reference`."""
        from atlasmap.bundle import read_about

        kind = read_about(reference)["kind"]
        return self.totalvi_surgery if kind == "totalvi" else self.surgery


def map_batches(
    *queries: Queries,
    reference_bundle: ReferenceBundle,
    out: Path,
    marker: Path | None = None,
    strategy: Surgery = "per_batch",
    seed: Seed = 0,
    how: QuerySettings = QuerySettings(),
    probe: Probe = None,
    running: Running = Running(),
) -> None:
    """Map query batches by surgery: append weights for the new batches to the frozen reference, and
    train only these.

    per_batch and frozen map each batch by itself, into a folder of `out` named like its file. A
    batch that was already mapped, completely and with the same inputs and settings, is kept; if a
    batch cannot be mapped, the others still are. joint maps all batches together, into `out`
    itself.

    Example: atlasmap map-batches donor1.h5ad donor2.h5ad --reference_bundle scanvi_fixed --out
    mapped

    Parameters
    ----------
    out
        Output folder of the delta bundles (what surgery added to the reference), each with
        latent.h5ad and certificate.json.
    marker
        File (.json) that is written when all batches are mapped.
    strategy
        per_batch: surgery for each batch by itself; joint: one surgery for all batches; frozen: no
        training.
    """
    from atlasmap.bundle import load
    from atlasmap.mapping.certificate import probe_cells

    reference = load(reference_bundle, running.pick_device())
    seen = probe_cells(probe) if probe and probe.is_file() else None
    way = How(strategy, seed, how.on(reference_bundle), running, seen, how.denoise)
    if strategy == "joint":
        with running.open_joined(queries, out.parent) as query:
            map_into(out, reference, query, way)
    else:
        map_all(reference, queries, out, way)
    if marker:
        write_json(marker, sorted(path.stem for path in queries))


@dataclass(frozen=True)
class How:
    """Arguments common to the batches of a job. `probe`: reference cells that are embedded before
    and after surgery for the certificate (None: none)."""

    strategy: Surgery
    seed: int
    surgery: SurgerySettings
    running: Running
    probe: anndata.AnnData | None
    denoise: DenoiseSettings


def map_all(reference, queries: tuple[Path, ...], out: Path, how: How) -> None:
    """Map each batch into its folder. Raises BATCHES_FAILED after all were tried, if any failed."""
    failed = {}
    for path in queries:
        try:
            map_unless_done(reference, path, out / path.stem, how)
        except Exception as error:
            kind = kind_of(error)
            if kind in ("disk_full", "not_writable"):
                raise  # would fail for the other batches, too
            log.exception("%s could not be mapped", path.stem)
            code = getattr(error, "code", None) or f"{type(error).__name__} {error}"
            failed[path.stem] = (kind, code)
    if failed:
        raise batches_failed(failed, len(queries))


def map_unless_done(reference, path: Path, folder: Path, how: How) -> None:
    """Map one batch by itself, unless its folder holds a mapping of the same inputs and
    settings."""
    from copy import deepcopy

    from atlasmap.mapping.query import is_mapped

    query = how.running.open_cells(path)
    also = asdict(how.denoise) if reference.registry.proteins else None
    if is_mapped(folder, reference, query, how.surgery, how.strategy, how.seed, also):
        log.info("%s: mapped already", path.stem)
        how.running.checkpoints(folder).remove()
    else:
        map_into(folder, deepcopy(reference), query, how)


def map_into(folder: Path, reference, query: anndata.AnnData, how: How) -> None:
    """Map a query and write the delta bundle with its latent and certificate. `reference` is
    modified in place."""
    from atlasmap.mapping.denoise import denoised_of
    from atlasmap.mapping.query import map_query

    checkpoints = how.running.checkpoints(folder)
    settings = how.surgery, how.strategy, how.seed
    mapping = map_query(reference, query, *settings, checkpoints, how.probe)
    write_mapping(mapping, denoised_of(mapping.bundle, query, how.denoise), folder, how.denoise)
    checkpoints.remove()


def batches_failed(failed: dict[str, tuple[str, str]], n: int) -> BatchesFailed:
    """The error BATCHES_FAILED for the failed ones (name → kind, code) of `n` batches."""
    said = [f"{name}: {code}" for name, (_, code) in failed.items()]
    return BatchesFailed(
        [kind for kind, _ in failed.values()],
        expected=f"{n} batches mapped",
        found=f"{n - len(failed)} mapped; {listed(said)}",
        mend="see the log for each; mend or leave out these batches and run again: the others "
        "are kept",
    )


def write_mapping(mapping, denoised, out: Path, settings: DenoiseSettings) -> None:
    """Write the delta bundle, latent.h5ad and certificate.json into `out`; for CITE-seq also the
    `denoised` cells, with the settings that they were denoised by in the bundle."""
    from atlasmap.bundle import save_delta
    from atlasmap.mapping.certificate import FILE

    bundle = mapping.bundle
    if bundle.registry.proteins:
        bundle = replace(bundle, about=bundle.about | {"denoise": asdict(settings)})
    save_delta(bundle, out, mapping.new)
    write_json(out / FILE, mapping.certificate)
    with written_aside(out / "latent.h5ad") as aside:
        mapping.latent.write_h5ad(aside)
    write_denoised(denoised, out / "denoised.h5ad")


def map_file(
    *,
    reference: Path,
    query: Path,
    out: Path,
    columns: Annotated[Columns, Parameter(name="*")] = Columns(),
    strategy: Surgery = "per_batch",
    seed: Seed = 0,
    config: DataConfig = DataConfig(),
    how: QuerySettings = QuerySettings(),
    transfer: TransferSettings = TransferSettings(),
    umap: UmapSettings = UmapSettings(),
    label_tree: TreeFile = None,
    device: OnDevice = "auto",
) -> None:
    """Map a query file onto a reference bundle, without Snakemake.

    Example: atlasmap map --reference results/pbmc68k/seed0/reference/scanvi_fixed
    --query new.h5ad --batch_key donor --out mapped

    Parameters
    ----------
    reference
        Folder of the reference's bundle, with reference_latent.h5ad.
    query
        File or folder of the query (.h5ad, .h5mu, 10x .h5, mtx folder, .zarr).
    out
        Output folder: atlas.h5ad, labels.csv, soft_labels.parquet, contract.json, mapping/.
    strategy
        per_batch: surgery for each batch by itself; joint: one surgery for all batches; frozen: no
        training.
    """
    from atlasmap.api import MapRequest, map_dataset
    from atlasmap.commands.results import write_atlas
    from atlasmap.data.contract import gene_warnings
    from atlasmap.device import pick_device
    from atlasmap.errors import said_as_flags
    from atlasmap.names import slug

    name = re.sub(r"[^A-Za-z0-9_.-]", "_", query.stem).lstrip("_.-") or "query"
    dataset = Dataset(id=name, path=str(query), role="query", **asdict(columns))
    settings = (config, how.on(reference), transfer, umap, label_tree, how.denoise)
    request = MapRequest(dataset, strategy, seed, *settings)
    with said_as_flags():
        mapped = map_dataset(reference, request, pick_device(device))
    write_json(out / "contract.json", {"queries": mapped.facts})
    for group, mapping in mapped.mappings.items():
        folder = out / "mapping" / slug(group)
        write_mapping(mapping, mapped.denoised.get(group), folder, how.denoise)
    write_atlas(mapped.atlas, out)
    for name, facts in mapped.facts.items():
        for warning in gene_warnings(facts):
            print(f"query batch {name}: {warning}")
    print(f"{sum(f['n_cells'] for f in mapped.facts.values())} cells mapped: {out / 'atlas.h5ad'}")
