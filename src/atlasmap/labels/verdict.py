"""A verdict a cell: confident, ambiguous (between which labels), or novel; and one a batch: does
the reference fit it?"""

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
    """What labels are weighed with: the reference's classifier, its `genes` (as people call them),
    what cells without a label are called, what it learned of itself, profiles of its labels (one a
    view), and prepared query cells by batch."""

    model: Scanvi
    genes: list[str]
    unlabeled: str
    calibration: Calibration
    profiles: list[Profiles]
    cells: Callable[[str], anndata.AnnData]

    def counts(self, part: anndata.AnnData) -> sparse.csr_matrix:
        """Of the cells of a mapped batch (cells × genes), in their order."""
        whole = self.cells(str(part.obs["batch"].iloc[0]))
        same = list(whole.obs_names) == list(part.obs_names)
        at = slice(None) if same else whole.obs_names.get_indexer(part.obs_names)
        return sparse.csr_matrix(whole.X[at])


@dataclass(frozen=True)
class Weighed:
    """A mapped batch: `cells` (a row a cell), pooled `probabilities` (cells × labels), and `shifts`
    (a row a label)."""

    cells: pd.DataFrame
    probabilities: np.ndarray
    shifts: pd.DataFrame


def set_names(sets: np.ndarray, probabilities: np.ndarray, names: list[str]) -> list[list[str]]:
    """Labels of each cell's set, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [[names[k] for k in row if chosen[k]] for row, chosen in zip(order, sets, strict=True)]


def seen_by(trust: Trust, part: anndata.AnnData) -> tuple[View, Batch]:
    """What the reference learned for batches as deep as this, and the batch, named by it."""
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
    """A row a cell of a batch named by a view, and pooled probabilities (cells × labels).

    Columns: pooled_label and pooled_confidence (by classifier and genes), genes_label and
    genes_confidence (by genes alone), calibrated_confidence (of the predicted label),
    prediction_set, prediction_set_size, novelty (novel above 1), shifted, verdict, safe_label,
    safe_level, safe_probability. Confident is a cell that is sure enough, and whose classifier and
    genes agree: its label is safe.
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
    """Of the cells of one mapped batch, as `judged` has them, with strangeness (of the batch; above
    1 nobody is confident) and (with a tree) common_ancestor (of the set).

    `part`: obs batch (and misfit), obsm X_latent, latent_var, soft_labels, uns soft_label_names;
    `reference` the reference's latent.
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
    """Of the query cells of a batch (as `verdicts` has them): does the reference fit? `fits`: no
    farther than half-way from a held-out batch to cells that the reference lacks; `doubtful`: no
    farther than those; `does not fit`: farther, and none of its labels is to be believed; `not
    known`: no whole batch of the reference could be held out."""
    shift, verdict = float(cells["strangeness"].iloc[0]), cells["verdict"]  # one a batch
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
