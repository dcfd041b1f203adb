"""Learn a reference's calibration from held-out batches mapped onto models trained without them."""

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
from scipy import sparse

from atlasmap.data.depth import at_new_depth, tree_in
from atlasmap.data.label_tree import LabelTree
from atlasmap.data.registry import Registry, unlabeled_in
from atlasmap.labels.calibrated import BATCHES, PARTS, VALIDATION, Calibration, calibrate
from atlasmap.labels.fit import BatchFit, distances_if_missing, fit_batches, local_distance
from atlasmap.labels.folds import STAND_IN, Fold, folds_of, thinned
from atlasmap.labels.novelty import Batch, relative
from atlasmap.labels.opinions import Fitted, aligned, fitted_on
from atlasmap.labels.profiles import Profiles, Seen
from atlasmap.mapping.embed import posterior_soft_labels
from atlasmap.mapping.latent import latent_of, variance_of
from atlasmap.settings import CalibrationSettings, TransferSettings

LEAST = 10  # batches with fewer held-out cells are ignored


@dataclass(frozen=True)
class Mapped:
    """Files of a fold: `latent` of the cells that its model was trained on (.h5ad), and held-out
    cells `mapped` onto that model (.h5ad; obs depth: the library size they were thinned to)."""

    fold: int
    latent: Path
    mapped: Path


def counts_of(cells: anndata.AnnData) -> sparse.csr_matrix:
    """Counts (cells × genes)."""
    return sparse.csr_matrix(cells.X)


def profiles_of(cells: anndata.AnnData, names: list[str], depth: float) -> Profiles:
    """Profiles of the labels `names` from prepared cells, in memory or backed."""
    return Profiles.of(cells.X, cells.obs["label"].astype(str).to_numpy(), names, depth)


def mapped_at(path: Path, depth: float) -> anndata.AnnData:
    """Held-out cells as they were mapped after thinning to library size `depth`."""
    said = anndata.read_h5ad(path)
    return said[(said.obs["depth"] == depth).to_numpy()].copy()


def fitted_of(latent: anndata.AnnData, unlabeled: str) -> dict[str, Fitted]:
    """Fit the classifiers of `ON_LATENT` on the latent of labelled cells."""
    labels = latent.obs["label"].astype(str).to_numpy()
    known = labels != unlabeled
    return fitted_on(latent_of(latent)[known], labels[known], TransferSettings().n_neighbors)


def opinions_on(
    part: anndata.AnnData, fitted: dict[str, Fitted], names: list[str]
) -> dict[str, np.ndarray]:
    """Label probabilities of mapped cells by the model's classifier and by those `fitted` on the
    latent (name → cells × names)."""
    said = {name: aligned(ask(latent_of(part)), names) for name, ask in fitted.items()}
    return {"classifier": np.asarray(part.obsm["soft_labels"], np.float64), **said}


def labels_kept(reference: anndata.AnnData, fold: Fold) -> np.ndarray:
    """Labels of the reference's cells as in the fold's training; held-out cells have an empty
    label."""
    obs = reference.obs[fold.kept].copy()
    at_new_depth(obs, tree_in(reference), unlabeled_in(reference))
    labels = np.full(reference.n_obs, "", object)
    labels[fold.kept] = obs["label"].astype(str)
    return labels


def batches_of(
    run: Mapped, depth: float, fitted: dict[str, Fitted], reference: anndata.AnnData, fold: Fold
) -> list[Batch]:
    """Held-out batches of a fold, thinned to library size `depth` and compared with the reference's
    other batches, on whose latent the classifiers were `fitted`."""
    said = mapped_at(run.mapped, depth)
    names = [str(name) for name in said.uns["soft_label_names"]]
    profiles, out = Profiles.of(reference.X, labels_kept(reference, fold), names, depth), []
    for name in sorted(said.obs["batch"].astype(str).unique()):
        part = said[(said.obs["batch"] == name).to_numpy()]
        if part.n_obs < LEAST:
            continue
        cells = thinned(fold.held_out(reference, name), depth)
        codes = np.asarray(part.obsm["soft_labels"]).argmax(1)
        residual, missing = (part.obs[k].to_numpy(float) for k in ("misfit", "misfit_if_missing"))
        out.append(
            Batch(
                names, codes, np.asarray(part.obsm["averaged"]),
                Seen.of(profiles, counts_of(cells[part.obs_names]), codes),
                relative(residual), run.fold, part.obs["label"].astype(str).to_numpy(),
                relative(missing, residual), opinions_on(part, fitted, names),
            )
        )  # fmt: skip
    return out


def fit_of(runs: list[Mapped], depth: float) -> BatchFit | None:
    """Fit the scale of the batch shift on held-out batches thinned to library size `depth`."""
    distances, missing, labels = [], [], []
    for run in runs:
        said, kept = mapped_at(run.mapped, depth), anndata.read_h5ad(run.latent)
        own = kept.obs["label"].astype(str).to_numpy()
        known = np.isin(said.obs["label"].astype(str), own)
        of_cells = latent_of(said)[known], said.obs["label"].astype(str).to_numpy()[known]
        missing.append(distances_if_missing(latent_of(kept), own, *of_cells))
        labels.append(of_cells[1])
        for name in said.obs["batch"].unique():
            at = (said.obs["batch"] == name).to_numpy()
            distances.append(local_distance(latent_of(kept), latent_of(said)[at]))
    return fit_batches(distances, np.concatenate(missing), np.concatenate(labels))


def from_batches(
    reference: anndata.AnnData, runs: list[Mapped], settings: CalibrationSettings, tree: LabelTree
) -> tuple[Calibration, list[Profiles]]:
    """Learn the calibration from batches held out in turn; `reference` are prepared cells.

    Returns the calibration, and the profiles of the whole reference, one per view.
    """
    labels = Registry.of(reference).labels
    said = [anndata.read_h5ad(run.mapped, backed="r").obs for run in runs]
    depths = sorted({float(depth) for obs in said for depth in obs["depth"]})
    batches = sorted({str(name) for obs in said for name in obs["batch"]})
    held, folds = {depth: [] for depth in depths}, folds_of(reference, settings.folds)
    for run in runs:
        fitted = fitted_of(anndata.read_h5ad(run.latent), unlabeled_in(reference))
        for depth, batches_at in held.items():
            batches_at.extend(batches_of(run, depth, fitted, reference, folds[run.fold]))
    parts = any(name.startswith(STAND_IN) for name in batches)
    fit = None if parts else fit_of(runs, depths[-1])
    scheme = PARTS if parts else BATCHES
    learned = calibrate(held, labels, batches, scheme, settings, fit, tree)
    return learned, [profiles_of(reference, labels, view.depth) for view in learned.views]


def from_validation(
    model, reference: anndata.AnnData, latent: anndata.AnnData, depth: float,
    settings: CalibrationSettings, tree: LabelTree,
) -> tuple[Calibration, list[Profiles]]:  # fmt: skip
    """As `from_batches`, from the reference model's own validation cells (obs `split` of `latent`,
    the reference's latent); there is one view, at library size `depth`."""
    labels = Registry.of(reference).labels
    seen = (latent.obs["split"] == "validation").to_numpy()
    others = np.where(seen, "", reference.obs["label"].astype(str))
    profiles = Profiles.of(reference.X, others, labels, depth)
    fitted = fitted_of(latent[~seen], unlabeled_in(reference))
    batch, held = latent.obs["batch"].astype(str).to_numpy(), []
    for k, name in enumerate(sorted(set(batch))):
        at = np.flatnonzero(seen & (batch == name))
        if len(at) < LEAST:
            continue
        part = latent[at]
        codes = np.asarray(part.obsm["soft_labels"]).argmax(1)
        averaged = posterior_soft_labels(
            model, latent_of(part), variance_of(part), settings.n_draws
        )
        found = Seen.of(profiles, sparse.csr_matrix(reference.X[at]), codes)
        own = part.obs["label"].astype(str).to_numpy()
        said = opinions_on(part, fitted, labels)
        held.append(Batch(labels, codes, averaged, found, None, k, own, opinions=said))
    of_batches = sorted(set(batch))
    learned = calibrate({depth: held}, labels, of_batches, VALIDATION, settings, None, tree)
    return learned, [profiles_of(reference, labels, depth)]
