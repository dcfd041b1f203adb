"""What became of a task: its held-out batches teach, its query is judged, its truth scores."""

from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from cases import depth_for, held_out_of
from sklearn.metrics import f1_score, roc_auc_score
from tasks import LEAST, SIBLINGS, TREES, Task

from atlasmap.data.label_tree import LabelTree
from atlasmap.labels.calibrated import BATCHES, PARTS, Calibration, calibrate
from atlasmap.labels.fit import distances_if_missing, fit_batches, local_distance
from atlasmap.labels.folds import STAND_IN
from atlasmap.labels.held_out import counts_of, fitted_of, opinions_on, profiles_of
from atlasmap.labels.novelty import Batch, relative
from atlasmap.labels.opinions import Fitted, majority
from atlasmap.labels.profiles import Profiles, Seen
from atlasmap.labels.verdict import AMBIGUOUS, CONFIDENT, NOVEL, SEPARATOR, judged
from atlasmap.settings import CalibrationSettings
from atlasmap.training.history import expected_calibration_error

OPINION = "opinion: "  # before a method, of columns
MANY = 20  # cells of a label, for it to be the worst


def batch_of(
    cells: anndata.AnnData, names: list[str], profiles: Profiles, fitted: dict[str, Fitted],
    fold: int = 0,
) -> Batch:  # fmt: skip
    """Cells of a case as a batch of a model with labels `names`, on whose latent classifiers were
    `fitted`."""
    codes, misfit = np.asarray(cells.obsm["soft_labels"]).argmax(1), cells.obs["misfit"].to_numpy()
    missing = cells.obs.get("misfit_if_missing")
    return Batch(
        names, codes, np.asarray(cells.obsm["averaged"]),
        Seen.of(profiles, counts_of(cells), codes), relative(misfit), fold,
        None if missing is None else cells.obs["label"].astype(str).to_numpy(),
        None if missing is None else relative(missing.to_numpy(), misfit),
        opinions_on(cells, fitted, names),
    )  # fmt: skip


def names_of(reference: anndata.AnnData) -> list[str]:
    return sorted(
        set(reference.obs["label"].astype(str)) - {str(reference.uns["unlabeled_category"])}
    )


def learned_of(
    folder: Path, query: str, depth: float, names: list[str], tree: LabelTree
) -> Calibration:
    """What a case's reference learns for one of its query batches."""
    held, found, distances, missing, labels = [], [], [], [], []
    for k, (twin, paths) in enumerate(held_out_of(folder, query)):
        cells = anndata.read_h5ad(twin)
        own, of_twin = names_of(cells), cells.obs["label"].astype(str).to_numpy()
        profiles = profiles_of(cells, own, depth)
        fitted = fitted_of(cells, str(cells.uns["unlabeled_category"]))
        for path in paths:
            part = anndata.read_h5ad(path)
            found.append(str(part.obs["batch"].iloc[0]))
            held.append(batch_of(part, own, profiles, fitted, k))
            known = np.isin(held[-1].labels, own)
            latent = np.asarray(part.obsm["X_latent"])
            distances.append(local_distance(cells.obsm["X_latent"], latent))
            told = latent[known], held[-1].labels[known]
            missing.append(distances_if_missing(cells.obsm["X_latent"], of_twin, *told))
            labels.append(told[1])
    parts = any(name.startswith(STAND_IN) for name in found)
    fit = None if parts else fit_batches(distances, np.concatenate(missing), np.concatenate(labels))
    scheme = PARTS if parts else BATCHES
    settings, of_batches = CalibrationSettings(), sorted(set(found))
    return calibrate({depth: held}, names, of_batches, scheme, settings, fit, tree)


def weighed(folder: Path, tree: LabelTree) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Of each query batch of a case facts, and its cells as they are judged, with their truth."""
    reference = anndata.read_h5ad(folder / "reference.h5ad")
    names = names_of(reference)
    fitted = fitted_of(reference, str(reference.uns["unlabeled_category"]))
    for path in sorted((folder / "query").glob("*.h5ad")):
        cells = anndata.read_h5ad(path)
        depth = depth_for(reference, cells)
        learned = learned_of(folder, path.stem, depth, names, tree)
        view, profiles = learned.views[0], profiles_of(reference, names, depth)
        batch = batch_of(cells, names, profiles, fitted).named(view.naming)
        table, _ = judged(view, batch, cells.obs_names, tree, "")
        table["truth"] = cells.obs["truth"].astype(str)
        table["predicted_label"] = np.array(names, object)[batch.predicted]
        table["confidence"] = np.asarray(cells.obsm["soft_labels"]).max(1)
        opinions = batch.opinions | {"genes": batch.seen.opinion}
        opinions["majority"] = majority(opinions, view.opinions)
        opinions["equal majority"] = majority(batch.opinions, {})
        for name, said in opinions.items():
            table[f"{OPINION}{name}"] = np.array(names, object)[np.nan_to_num(said).argmax(1)]
        fit = learned.batch_fit
        far = local_distance(reference.obsm["X_latent"], cells.obsm["X_latent"])
        said = {"batch": path.stem, "names": names, "score": view.cut_offs.score}
        yield said | {"strangeness": fit.batch_shift(far) if fit else np.nan}, table


def rows_of(task: Task, folder: Path) -> list[dict]:
    """A row a query batch of a task."""
    left, out, tree = "+".join(task.left_out), [], LabelTree(TREES.get(task.data, {}))
    for said, table in weighed(folder, tree):
        row = {"group": task.group, "task": task.name, "batch": said["batch"], "left_out": left}
        row |= {"sibling": bool(set(task.left_out) & SIBLINGS), "seed": task.seed}
        row |= {key: said[key] for key in ("score", "strangeness")}
        row |= {"safe": safe(table, set(said["names"]), tree)}
        out.append(row | figures(table, set(said["names"]), task.left_out))
    return out


def safe(table: pd.DataFrame, names: set[str], tree: LabelTree) -> dict[str, list[int]]:
    """Level → cells whose label is safe there, and wrong; the same of cells whose label the
    reference has."""
    truths = zip(table["safe_label"], table["truth"], strict=True)
    wrong = np.array([label not in tree.lineage(truth) for label, truth in truths])
    known, level = table["truth"].isin(names).to_numpy(), table["safe_level"].to_numpy()
    parts = {where: level == where for where in np.unique(level)}
    return {
        where: [int(x.sum()) for x in (at, at & wrong, at & known, at & known & wrong)]
        for where, at in parts.items()
    }


def ece(confidence: pd.Series, right: pd.Series) -> float:
    values = torch.as_tensor(confidence.to_numpy(float)), torch.as_tensor(right.to_numpy())
    return float(expected_calibration_error(*values))


def figures(table: pd.DataFrame, names: set[str], left_out: tuple[str, ...]) -> dict:
    """The figures of the table in docs/trust_benchmark.md."""
    known = table[table["truth"].isin(names)]
    enough = [label for label in left_out if (table["truth"] == label).sum() >= LEAST]
    new = table[table["truth"].isin(enough)]
    novel, sizes = known["verdict"] == NOVEL, known["truth"].value_counts()
    by_label = novel.groupby(known["truth"]).mean()[sizes[sizes >= MANY].index]
    right, pooled = (known[key] == known["truth"] for key in ("predicted_label", "pooled_label"))
    sure, unsure = known["verdict"] == CONFIDENT, known["verdict"] == AMBIGUOUS
    sets = zip(known["truth"], known["prediction_set"], strict=True)
    in_set = [truth in said.split(SEPARATOR) for truth, said in sets]
    out = {
        "known": len(known), "new": len(new),
        "known_novel": novel.mean(), "worst_label": by_label.max(),
        "worst": by_label.idxmax() if len(by_label) else "",
        "shifted": known["shifted"].mean(),
        "confident": sure.mean(), "right_confident": right[sure].mean(),
        "right": right.mean(), "pooled_right": pooled.mean(),
        "ambiguous": int(unsure.sum()), "covered": int(np.array(in_set)[unsure].sum()),
        "covered_all": float(np.mean(in_set)),
        "monocytes_novel": novel[known["truth"].str.contains("Mono")].mean(),
        "set_sizes": int(known["prediction_set_size"][unsure].sum()),
        "ece": ece(known["calibrated_confidence"], right),
        "ece_pooled": ece(known["pooled_confidence"], pooled),
        "ece_raw": ece(known["confidence"], right),
    }  # fmt: skip
    for key in ("pooled_label", *(key for key in known if key.startswith(OPINION))):
        truth = known["truth"]
        f1 = f1_score(truth, known[key], average="macro", labels=sorted(set(truth)))
        out[f"f1 {key.removeprefix(OPINION)}"] = f1
    if 0 < right.sum() < len(right):
        out["wrong_auroc"] = roc_auc_score(~right, -known["calibrated_confidence"])
    if len(new):
        truth = np.repeat([True, False], [len(new), len(known)])
        out["auroc"] = roc_auc_score(truth, np.r_[new["novelty"], known["novelty"]])
        out |= {"found": (new["verdict"] == NOVEL).mean(),
                "new_confident": (new["verdict"] == CONFIDENT).mean(),
                "new_shifted": new["shifted"].mean()}  # fmt: skip
    return out
