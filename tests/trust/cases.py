"""What a task trains: the reference's model, a twin for each fold, and all mappings; kept as files.

A case is a folder: reference.h5ad (counts, labels, latent), query/{batch}.h5ad (counts, truth, what
the mapping says), and folds/{k}/reference.h5ad, folds/{k}/{batch}/{held-out batch}.h5ad: held-out
cells as the fold's twin maps them, thinned to the depth nearest to that query batch's, of
those that trust is learned for.
"""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import anndata
import numpy as np
import torch
from made import BY_LABEL, FEW, atlas
from tasks import LINES, Task

from atlasmap.bundle import Bundle
from atlasmap.config import depth_levels
from atlasmap.data.depth import at_new_depth, tree_in
from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.registry import Registry, unlabeled_in
from atlasmap.data.sheet import Dataset
from atlasmap.labels.folds import folds_of, thinned
from atlasmap.mapping.embed import posterior_soft_labels
from atlasmap.mapping.latent import latent_of
from atlasmap.mapping.query import map_held_out, map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent
from atlasmap.settings import (
    DataConfig,
    DataSettings,
    ScanviSettings,
    ScviSettings,
    SurgerySettings,
    TrainSettings,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
CPU = torch.device("cpu")
SCVI = ScviSettings(train=TrainSettings(max_epochs=150))
SCANVI = ScanviSettings(train=TrainSettings(max_epochs=60))
SURGERY = SurgerySettings(max_epochs=60)
N_DRAWS = 32
N_TOP_GENES = 2000  # where there are more than twice as many


def rows_of(task: Task) -> tuple[list[Dataset], list[Dataset]]:
    """The sheet's rows of reference and query."""
    left = f" and {{}} not in {list(task.left_out)}" if task.left_out else ""
    if task.data == LINES:
        key, only = "cell_line", "demuxlet_call == 'SNG'"
        reference = [
            Dataset(id=name, path=f"{name}.h5ad", role="reference", label_key=key,
                    obs_filter=only + left.format(key))
            for name in task.reference
        ]  # fmt: skip
        query = [Dataset(id=name, path=f"{name}.h5ad", role="query", truth_key=key, obs_filter=only)
                 for name in task.query]  # fmt: skip
        return reference, query
    key, path = "cell_type", f"{task.data}.h5ad"
    keep = f"batch in {list(task.reference)}" + left.format(key)
    reference = Dataset(id="reference", path=path, role="reference", batch_key="batch",
                        label_key=key, obs_filter=keep)  # fmt: skip
    query = Dataset(id="query", path=path, role="query", batch_key="batch", truth_key=key,
                    obs_filter=f"batch in {list(task.query)}")  # fmt: skip
    return [reference], [query]


def prepared(task: Task, made_in: Path) -> tuple[anndata.AnnData, dict[str, anndata.AnnData]]:
    """The prepared reference, and query batches by name; what is simulated lies in `made_in`."""
    reference, query = rows_of(task)
    folder = SHARED / "data"
    if task.data in (FEW, BY_LABEL):
        folder = made_in
        atlas(task.data).write_h5ad(made(folder / reference[0].path))
    n_top = N_TOP_GENES if task.data == LINES else None
    config = DataConfig(data=DataSettings(n_top_genes=n_top, min_gene_overlap=0.5))
    cells = prepare_reference(reference, [folder / row.path for row in reference], config).adata
    registry, batches = Registry.of(cells), {}
    for row in query:
        whole = checked_dataset(row, folder / row.path, config)
        for name in sorted(whole.obs["batch"].unique()):
            batches[name] = prepare_query(whole, row, name, registry, config).adata
    return cells, batches


def trained(cells: anndata.AnnData, seed: int) -> tuple[Bundle, anndata.AnnData]:
    """scANVI (fixed) and the reference in its latent space."""
    scvi, _ = fit_scvi(cells, Registry.of(cells), SCVI, seed, CPU)
    bundle, split = fit_scanvi(cells, scvi, SCANVI, "fixed", seed, CPU)
    return bundle, reference_latent(cells, bundle, split, CPU)


def as_case(cells: anndata.AnnData, latent: anndata.AnnData, bundle: Bundle) -> anndata.AnnData:
    """Prepared cells with what was said of them."""
    out = cells.copy()
    out.obsm["X_latent"], out.obsm["latent_var"] = (
        latent.obsm["X_latent"],
        latent.obsm["latent_var"],
    )
    out.obsm["soft_labels"] = latent.obsm["soft_labels"]
    posterior = latent.obsm["X_latent"], latent.obsm["latent_var"]
    out.obsm["averaged"] = posterior_soft_labels(bundle.model, *posterior, N_DRAWS)
    for key in ("misfit", "misfit_if_missing"):
        if key in latent.obs:
            out.obs[key] = latent.obs[key].to_numpy()
    return out


def depth_for(reference: anndata.AnnData, query: anndata.AnnData) -> float:
    """The depth of what a batch is given."""
    own, asked = (
        float(np.median(np.asarray(cells.X.sum(1)).ravel())) for cells in (reference, query)
    )
    levels = depth_levels({"reference": {"counts": {"median_depth": own}}})
    return float(min(levels, key=lambda level: abs(np.log(level / asked))))


def mapped_folds(
    folder: Path, cells: anndata.AnnData, queries: dict[str, anndata.AnnData], seed: int
) -> None:
    """A twin for each fold, and its held-out batches thinned as each query batch."""
    for k, fold in enumerate(folds_of(cells)):
        own = cells[fold.kept].copy()
        at_new_depth(own.obs, tree_in(cells), unlabeled_in(cells))
        twin, latent = trained(own, seed)
        own = own.copy()
        own.obsm["X_latent"] = latent_of(latent)
        own.write_h5ad(made(folder / f"folds/{k}/reference.h5ad"))
        held = fold.held_out(cells)
        for name, query in queries.items():
            depth = depth_for(cells, query)
            for batch in sorted(held.obs["batch"].astype(str).unique()):
                part = thinned(held[held.obs["batch"] == batch].copy(), depth)
                said = map_held_out(deepcopy(twin), part, latent, SURGERY, "per_batch", seed)
                path = made(folder / f"folds/{k}/{slugged(name)}/{slugged(batch)}.h5ad")
                as_case(part, said, twin).write_h5ad(path)


def slugged(name: str) -> str:
    return name.replace(" ", "_").replace("/", "_").replace(":", "")


def made(path: Path) -> Path:
    """A path whose folder is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make(task: Task, top: Path) -> Path:
    """The case's folder, trained unless it is there."""
    folder = top / task.name
    if (folder / "done").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    return case_of(folder, *prepared(task, folder / "data"), task.seed)


def case_of(
    folder: Path, cells: anndata.AnnData, queries: dict[str, anndata.AnnData], seed: int
) -> Path:
    """The case of a prepared reference and its query batches, trained."""
    bundle, latent = trained(cells, seed)
    reference = cells.copy()
    reference.obsm["X_latent"] = latent_of(latent)
    reference.uns["names"] = np.array(bundle.registry.labels, object)
    reference.write_h5ad(made(folder / "reference.h5ad"))
    for name, query in queries.items():
        mapping = map_query(deepcopy(bundle), query, SURGERY, "per_batch", seed)
        said = as_case(query, mapping.latent, mapping.bundle)
        said.write_h5ad(made(folder / f"query/{slugged(name)}.h5ad"))
    mapped_folds(folder, cells, queries, seed)
    (folder / "done").touch()
    return folder


def held_out_of(folder: Path, query: str) -> Iterator[tuple[Path, list[Path]]]:
    """Each fold's reference, and its held-out batches as a query batch has them."""
    for fold in sorted((folder / "folds").iterdir()):
        yield fold / "reference.h5ad", sorted((fold / query).glob("*.h5ad"))
