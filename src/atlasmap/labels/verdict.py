"""Verdicts: each cell is confident, ambiguous (with a set of possible labels) or novel; and for
each batch, whether the reference fits it."""

from collections.abc import Callable
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.label_tree import LabelTree
from atlasmap.labels.calibrated import Calibration, View
from atlasmap.labels.confidence import pooled
from atlasmap.labels.fit import local_distance
from atlasmap.labels.novelty import Batch, relative
from atlasmap.labels.profiles import Profiles, Seen
from atlasmap.labels.safe import NONE, safe_labels
from atlasmap.labels.shifts import shift_table, shifted
from atlasmap.mapping.embed import posterior_soft_labels
from atlasmap.mapping.latent import latent_of
from atlasmap.models.scanvi import Scanvi

CONFIDENT, AMBIGUOUS, NOVEL = "confident", "ambiguous", "novel"
SEPARATOR = " | "


@dataclass(frozen=True)
class Trust:
    """What verdicts are computed from: the reference's `model`, its `genes` (symbols if known, else
    ids), its label for cells without one (`unlabeled`), its `calibration`, the `profiles` of
    its labels (one per view), and a function from batch name to that batch's query `cells`."""

    model: Scanvi
    genes: list[str]
    unlabeled: str
    calibration: Calibration
    profiles: list[Profiles]
    cells: Callable[[str], anndata.AnnData]

    def counts(self, part: anndata.AnnData) -> sparse.csr_matrix:
        """Counts of a mapped batch (cells × genes), in the order of `part`."""
        whole = self.cells(str(part.obs["batch"].iloc[0]))
        same = list(whole.obs_names) == list(part.obs_names)
        at = slice(None) if same else whole.obs_names.get_indexer(part.obs_names)
        return sparse.csr_matrix(whole.X[at])


@dataclass(frozen=True)
class Weighed:
    """Verdicts on a mapped batch: `cells` (one row per cell), pooled `probabilities` (cells ×
    labels), and `shifts` (one row per label)."""

    cells: pd.DataFrame
    probabilities: np.ndarray
    shifts: pd.DataFrame


def set_names(sets: np.ndarray, probabilities: np.ndarray, names: list[str]) -> list[list[str]]:
    """Names of the labels in each cell's prediction set, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [[names[k] for k in row if chosen[k]] for row, chosen in zip(order, sets, strict=True)]


def seen_by(trust: Trust, part: anndata.AnnData) -> tuple[View, Batch]:
    """Return the calibration view for the batch's library size, and the batch with the labels that
    it gives."""
    names = [str(name) for name in part.uns["soft_label_names"]]
    learned, counts = trust.calibration, trust.counts(part)
    view = learned.view(float(np.median(np.asarray(counts.sum(1)).ravel())))
    predicted = np.asarray(part.obsm["soft_labels"]).argmax(1)
    posterior = latent_of(part), part.obsm["latent_var"]
    by_model = posterior_soft_labels(trust.model, *posterior, learned.n_draws)
    seen = Seen.of(trust.profiles[learned.views.index(view)], counts, predicted)
    residual = relative(part.obs["misfit"].to_numpy(float)) if "misfit" in part.obs else None
    return view, Batch(names, predicted, by_model, seen, residual).named(view.naming)


def judged(
    view: View, batch: Batch, index: pd.Index, tree: LabelTree, unlabeled: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Verdicts on a batch labelled by a view: a table with one row per cell, and pooled
    probabilities (cells × labels).

    Columns: pooled_label and pooled_confidence (classifier and genes), genes_label and
    genes_confidence (genes alone), calibrated_confidence (of the predicted label), prediction_set,
    prediction_set_size, novelty (novel above 1), shifted, verdict, safe_label, safe_level,
    safe_probability. A cell is confident if its pooled label reaches the threshold and is also the
    classifier's, and it is neither novel nor shifted; its label is then safe.
    """
    names, predicted, given = batch.names, batch.predicted, batch.seen.codes
    p = pooled(view.confidence.weights, batch.by_model, batch.seen.by_genes)
    novelty = view.cut_offs.novelty(batch.score(view.cut_offs.score), names, given)
    moved = shifted(batch.seen, novelty > 1)
    sets, rows = view.confidence.sets(p, given, predicted), np.arange(len(p))
    sure = (p[rows, given] >= view.confidence.threshold) & (given == predicted) & ~moved
    sets[sure] = False
    sets[sure, given[sure]] = True
    table = pd.DataFrame(
        {
            "pooled_label": np.array(names, object)[given],
            "pooled_confidence": p[rows, given],
            "genes_label": np.array(names, object)[batch.seen.by_genes.argmax(1)],
            "genes_confidence": batch.seen.by_genes.max(1),
            "calibrated_confidence": p[rows, predicted],
            "prediction_set": [SEPARATOR.join(found) for found in set_names(sets, p, names)],
            "prediction_set_size": sets.sum(1),
            "novelty": novelty,
            "shifted": moved,
        },
        index=index,
    )
    unknown = (novelty > 1) & ~moved
    table["verdict"] = np.where(unknown, NOVEL, np.where(sure, CONFIDENT, AMBIGUOUS))
    safe = safe_labels(p, names, given, sure, ~unknown, tree, view.levels, unlabeled)
    return table.assign(**{f"safe_{key}": of_cells for key, of_cells in vars(safe).items()}), p


def verdicts(
    trust: Trust, part: anndata.AnnData, reference: np.ndarray, tree: LabelTree | None
) -> Weighed:
    """Verdicts on the cells of one mapped batch.

    Columns are those of `judged`, strangeness (the batch shift; above 1 no cell is confident) and,
    with a `tree`, common_ancestor (of the labels in the prediction set). `part`: obs batch (and
    misfit), obsm X_latent, latent_var, soft_labels, uns soft_label_names; `reference`: the
    reference's latent (cells × latent).
    """
    view, batch = seen_by(trust, part)
    table, p = judged(view, batch, part.obs_names, trust.calibration.tree, trust.unlabeled)
    if tree is not None:
        sets = table["prediction_set"].str.split(SEPARATOR, regex=False)
        table["common_ancestor"] = [tree.common_ancestor(found) for found in sets]
    fit = trust.calibration.batch_fit
    far = local_distance(reference, latent_of(part)) if fit else None
    shift = fit.batch_shift(far) if fit else np.nan
    table["strangeness"] = shift
    if shift > 1:
        table["verdict"] = table["verdict"].replace(CONFIDENT, AMBIGUOUS)
        table["safe_label"], table["safe_level"] = trust.unlabeled, NONE
        table["safe_probability"] = np.nan
    genes, name = np.asarray(trust.genes, object), str(part.obs["batch"].iloc[0])
    moved = table["shifted"].to_numpy()
    return Weighed(table, p, shift_table(batch.seen, moved, batch.names, genes, name))


def fitness(cells: pd.DataFrame) -> dict:
    """Summarise the verdicts on a batch's query cells (the table of `verdicts`), and whether the
    reference fits the batch (`reference`).

    With the batch shift (0: as far as a held-out batch, 1: as far as cells of a label that the
    reference lacks): `fits` up to 0.5, `doubtful` up to 1, `does not fit` above, where no label
    should be trusted. `not known`: the calibration has no scale of the batch shift, for instance
    because no whole batch could be held out.
    """
    shift, verdict = float(cells["strangeness"].iloc[0]), cells["verdict"]  # one per batch
    shares = {name: float((verdict == name).mean()) for name in (CONFIDENT, AMBIGUOUS, NOVEL)}
    said = "fits" if shift <= 0.5 else "doubtful" if shift <= 1 else "does not fit"
    return {
        "n": len(cells),
        "reference": "not known" if np.isnan(shift) else said,
        "strangeness": shift,
        **shares,
        "shifted": float(cells["shifted"].mean()),
        "set_size": float(cells["prediction_set_size"].mean()),
        "calibrated_confidence": float(cells["calibrated_confidence"].mean()),
    }
