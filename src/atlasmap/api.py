"""Map a query file to an annotated atlas in one call, without the workflow."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import anndata
import torch

from atlasmap.audit.seal import check_seal
from atlasmap.bundle import CALIBRATION, Bundle, load
from atlasmap.data.label_tree import read_levels
from atlasmap.data.prepare import checked_dataset, prepare_query
from atlasmap.data.sheet import Dataset
from atlasmap.evaluation.gene_gap import family_costs
from atlasmap.labels.atlas import Atlas, assemble
from atlasmap.labels.calibrated import PROFILES, read_calibration, read_profiles
from atlasmap.labels.umap import FittedMap, fit_map
from atlasmap.labels.verdict import Trust
from atlasmap.mapping.denoise import FILE as DENOISED
from atlasmap.mapping.denoise import denoise, take_proteins
from atlasmap.mapping.given import check_latent, read_latent
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.query import Mapping, joined, map_query
from atlasmap.settings import (
    DataConfig,
    DenoiseSettings,
    Surgery,
    SurgerySettings,
    TransferSettings,
    UmapSettings,
)


@dataclass(frozen=True)
class MapRequest:
    """The query data set and the settings of a mapping."""

    dataset: Dataset
    strategy: Surgery
    seed: int
    config: DataConfig
    surgery: SurgerySettings
    transfer: TransferSettings
    umap: UmapSettings
    label_tree: Path | None = None
    denoise: DenoiseSettings = field(default_factory=DenoiseSettings)


@dataclass(frozen=True)
class Mapped:
    """Result of `map_dataset`.

    `mappings` and (CITE-seq) `denoised` cells are by folder name: the batch, or "all" for joint;
    `facts` are by batch.
    """

    atlas: Atlas
    mappings: dict[str, Mapping]
    denoised: dict[str, anndata.AnnData]
    facts: dict[str, dict]


def reference_parts(folder: Path, bundle: Bundle, request: MapRequest):
    """Return the reference's latent and its UMAP, fitted if the bundle has none.

    Raises BUNDLE_LATENT_MISSING, BUNDLE_LATENT_DIFFERS.
    """
    latent = read_latent(folder)
    check_latent(bundle, latent, folder)
    if (folder / "umap.npz").is_file():
        return latent, FittedMap.load(folder / "umap.npz")
    return latent, fit_map(latent_of(latent), request.umap, bundle.about["seed"])


def trust_in(folder: Path, bundle: Bundle, cells: Callable[[str], anndata.AnnData]) -> Trust | None:
    """Load the calibration of a reference; None if it has none.

    `cells` returns the prepared cells of a query batch.
    """
    path, registry = folder / CALIBRATION, bundle.registry
    if not path.is_file():
        return None
    sizes = len(registry.labels), len(registry.genes)
    profiles = read_profiles(folder / PROFILES, *sizes)
    genes = registry.symbols or registry.genes
    unlabeled, learned = registry.unlabeled_category, read_calibration(path)
    return Trust(bundle.model, genes, unlabeled, learned, profiles, cells)


def map_dataset(folder: Path, request: MapRequest, device: torch.device) -> Mapped:
    """Map every batch of `request.dataset` onto the reference bundle in `folder`.

    Modality, covariates and unlabeled category are those of the reference.
    """
    check_seal(folder)
    bundle = load(folder, device)
    registry, coarser = bundle.registry, None
    if request.label_tree and registry.labels:
        coarser = read_levels(request.label_tree, registry.labels)
    config = replace(
        request.config,
        modality="citeseq" if registry.proteins else "rna",
        unlabeled_category=registry.unlabeled_category,
        categorical_covariates=list(registry.categorical),
        continuous_covariates=registry.continuous,
    )
    latent, fitted = reference_parts(folder, bundle, request)
    dataset = request.dataset
    if dataset.id in set(latent.obs.get("dataset", ())):  # cell ids begin with it
        dataset = replace(dataset, id=f"{dataset.id}_query")
    whole = checked_dataset(dataset, Path(dataset.path), config)
    names = sorted(whole.obs["batch"].unique())
    prepared = {name: prepare_query(whole, dataset, name, registry, config) for name in names}
    if (folder / DENOISED).is_file():
        take_proteins(latent, anndata.read_h5ad(folder / DENOISED))
    for part in prepared.values():
        families = part.facts.get("gene_families_missing")
        if families and registry.labels and not registry.proteins:
            family_costs(bundle, latent, families)
    groups = {name: [name] for name in names}
    if request.strategy == "joint":
        groups = {"all": names}
    queries = {
        group: joined([prepared[name].adata for name in members])
        for group, members in groups.items()
    }
    how = (request.surgery, request.strategy, request.seed)
    mappings = {
        group: map_query(load(folder, device), query, *how) for group, query in queries.items()
    }
    denoised = {}
    for group, mapping in mappings.items() if registry.proteins else ():
        denoised[group] = denoise(mapping.bundle, queries[group], request.denoise)
        take_proteins(mapping.latent, denoised[group])
    trust = trust_in(folder, bundle, lambda name: prepared[name].adata)
    atlas = assemble(
        latent, [mapping.latent for mapping in mappings.values()], None, fitted,
        request.transfer, request.config.label_levels, trust, coarser,
    )  # fmt: skip
    facts = {name: part.facts for name, part in prepared.items()}
    return Mapped(atlas, mappings, denoised, facts)
