"""Calibration of a reference's labels: calibration.json, and profiles.npz in the same folder.

Both hold sums over cells, never the counts of single cells. Calibration depends on the query's
library size: there is a `View` for each of several library sizes.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from atlasmap.data.label_tree import LabelTree
from atlasmap.errors import AtlasmapError
from atlasmap.labels.confidence import Confidence, Weights, fit_weights, weights_of_others
from atlasmap.labels.fit import BatchFit
from atlasmap.labels.novelty import (
    Batch,
    CutOffs,
    choose_score,
    cut_offs,
    would_be_found,
)
from atlasmap.labels.profiles import Profiles
from atlasmap.labels.safe import level_thresholds
from atlasmap.settings import CalibrationSettings

FORMAT = 2
PROFILES = "profiles.npz"
BATCHES, PARTS, VALIDATION = "batches held out", "parts of one batch held out", "validation cells"


@dataclass(frozen=True)
class View:
    """Calibration for query batches with a median library size near `depth`; learned on `n_cells`
    cells.

    `naming`: weights of classifier and genes, by which a cell gets the label that `cut_offs` and
    `confidence` refer to; `levels`: level of the label tree → probability from which a label is
    safe there; `opinions`: weight of each opinion in the majority.
    """

    depth: float
    n_cells: int
    naming: Weights
    cut_offs: CutOffs
    confidence: Confidence
    levels: dict[str, float] = field(default_factory=dict)
    opinions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Calibration for `labels`, learned on reference cells of `batches`; `scheme` says how these
    were held out.

    `told_apart`: novelty score → label → AUROC of the label's cells if the reference lacked it;
    `left_out`: fraction of each label's cells that would then be called novel (label, n, detected,
    low, high, auroc); `batch_fit`: scale of the batch shift (None if not known); `label_parents`:
    the label tree.
    """

    scheme: str
    batches: list[str]
    labels: list[str]
    n_draws: int
    risk: float
    coverage: float
    false_novel: float
    views: list[View]
    told_apart: dict[str, dict[str, float]]
    left_out: list[dict]
    batch_fit: BatchFit | None = None
    label_parents: dict[str, str] = field(default_factory=dict)

    @property
    def tree(self) -> LabelTree:
        """The label tree, whose levels are the keys of `View.levels`."""
        return LabelTree(self.label_parents)

    def view(self, depth: float) -> View:
        """View whose library size is nearest to `depth` (a batch's median), on a log scale."""
        return min(self.views, key=lambda view: abs(np.log(view.depth / depth)))

    def write(self, path: Path) -> None:
        """Write as JSON."""
        said = {"format": FORMAT} | asdict(self)
        path.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read what `Calibration.write` wrote; raises CALIBRATION_FORMAT."""

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        said = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_number)
        found = said.pop("format")
        if found != FORMAT:
            raise ValueError(f"format {found}")
        return TypeAdapter(Calibration).validate_python(said)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtlasmapError(
            "CALIBRATION_FORMAT",
            expected=f"a calibration of format {FORMAT}",
            found=f"{path}: {type(error).__name__} {error}",
            mend="make it anew in the run that trained the reference: snakemake --forcerun "
            "calibrate; or delete it: labels are then given without verdicts",
        ) from error


FILE_KEYS = {"coefficients": "slopes"}  # field → its name in the file, if it differs


def save_profiles(profiles: list[Profiles], path: Path) -> None:
    """Write as .npz, one set of arrays per profile (one profile per view)."""
    keys = Profiles.__dataclass_fields__
    arrays = {
        f"{FILE_KEYS.get(key, key)} {k}": getattr(one, key)
        for k, one in enumerate(profiles)
        for key in keys
    }
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_profiles(path: Path, n_labels: int, n_genes: int) -> list[Profiles]:
    """Read what `save_profiles` wrote; raises PROFILES_UNREADABLE, also if the profiles are not of
    `n_labels` labels × `n_genes` genes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            n = 1 + max(int(key.rsplit(" ", 1)[1]) for key in file)
            keys = Profiles.__dataclass_fields__
            sets = [{key: file[f"{FILE_KEYS.get(key, key)} {k}"] for key in keys} for k in range(n)]
        out = [Profiles(**one | {"scale": float(one["scale"])}) for one in sets]
        for one in out:
            if one.means.shape != (n_labels, n_genes) or one.within.shape != (n_genes,):
                raise ValueError(f"means of shape {one.means.shape}")
            if not all(np.isfinite(value).all() for value in vars(one).values()):
                raise ValueError("values that are no finite numbers")
        return out
    except Exception as error:  # numpy, zipfile and zlib raise many types
        raise AtlasmapError(
            "PROFILES_UNREADABLE",
            expected=f"{path}, profiles of {n_labels} labels in {n_genes} genes",
            found=f"{type(error).__name__} {error}",
            mend="make them anew with the calibration: snakemake --forcerun calibrate; or delete "
            "both: labels are then given without verdicts",
        ) from error


def learned_view(
    depth: float, held: list[Batch], settings: CalibrationSettings, tree: LabelTree, *,
    by_label: bool,
):  # fmt: skip
    """Learn a view from held-out batches thinned to one library size.

    Returns the view, the batches with the labels it gives, and the AUROCs of
    `Calibration.told_apart`. `by_label`: whether novelty has a cut-off per label.
    """
    naming = fit_weights([batch.told for batch in held])
    named = [batch.named(naming) for batch in held]
    score, told_apart = choose_score(named, settings.min_cells_per_label)
    cuts = cut_offs(named, score, settings.false_novel, by_label=by_label)
    held_out, folds = [batch.held for batch in named], [batch.fold for batch in named]
    of_others = weights_of_others([one.told for one in held_out], folds)
    confidence = Confidence.learned(held_out, folds, of_others, settings.risk, settings.coverage)
    n_cells = sum(len(batch.known) for batch in named)
    levels = level_thresholds(named, of_others, tree, confidence.threshold, settings.risk)
    names, told = zip(*(batch.all_told for batch in named), strict=True)
    opinions = dict(zip(names[0], fit_weights(list(told)), strict=True))
    return View(depth, n_cells, naming, cuts, confidence, levels, opinions), named, told_apart


def calibrate(
    held: dict[float, list[Batch]], labels: list[str], batches: list[str], scheme: str,
    settings: CalibrationSettings, batch_fit: BatchFit | None, tree: LabelTree,
) -> Calibration:  # fmt: skip
    """Learn a calibration from held-out batches (library size → the batches thinned to it).

    If no whole batches were held out, novelty has one cut-off for all labels, as the effect of a
    new batch on each label is not known. Raises CALIBRATION_CELLS.
    """
    first = held[max(held)]
    n = sum(len(batch.known) for batch in first)
    if n < settings.min_cells:
        raise AtlasmapError(
            "CALIBRATION_CELLS",
            expected=f"at least {settings.min_cells} held-out cells with a label (min_cells)",
            found=f"{n}",
            mend="set calibration: {scheme: none}, or give the reference more labelled batches",
        )
    views, by_label = [], scheme == BATCHES
    for depth in sorted(held, reverse=True):
        view, named, told = learned_view(depth, held[depth], settings, tree, by_label=by_label)
        if not views:
            told_apart, least = told, settings.min_cells_per_label
            weights = view.confidence.weights
            left_out = would_be_found(named, view.cut_offs, weights, least)
        views.append(view)
    of_score = told_apart.get(views[0].cut_offs.score, {})
    left_out = [row | {"auroc": of_score.get(row["label"])} for row in left_out]
    return Calibration(
        scheme, batches, labels, settings.n_draws, settings.risk, settings.coverage,
        settings.false_novel, views, told_apart, left_out, batch_fit,
        tree.above(labels).parents,
    )  # fmt: skip
