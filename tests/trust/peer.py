"""scvi-tools on the tasks of `make trust` (with one seed): the same cells, settings and epochs.

Its label is the most probable one; who asks how far to trust it has that probability alone, and
takes it from 0.9 on, as is usual. Run once, after `make trust`, by .venv-parity's Python;
docs/trust_peer.json is kept.
"""

import json
import multiprocessing
from pathlib import Path

import anndata
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TOP, OUT = ROOT / "results/trust", ROOT / "docs/trust_peer.json"
SURE = 0.9
N_PROCESSES = 2


def rows_of(task) -> list[dict]:
    """A row a query batch, kept beside what was trained for the task."""
    import torch
    from cases import SCANVI, SCVI, SURGERY
    from score import ece
    from sklearn.metrics import roc_auc_score
    from tasks import LEAST, SIBLINGS

    from atlasmap.parity.peer import map_query, train_scanvi, train_scvi

    kept = TOP / task.name / "peer.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    torch.set_num_threads(1)
    reference = anndata.read_h5ad(TOP / task.name / "reference.h5ad")
    token = str(reference.uns["unlabeled_category"])
    reference.obs["label"] = reference.obs["label"].astype(str)
    names, rows = set(reference.obs["label"]) - {token}, []
    scvi = train_scvi(reference, SCVI, task.seed, [], [])
    trained = train_scanvi(scvi, SCANVI, "fixed", task.seed, token)
    for path in sorted((TOP / task.name / "query").glob("*.h5ad")):
        query = anndata.read_h5ad(path)
        soft = map_query(trained, query, SURGERY, task.seed, token).soft_labels()
        truth = query.obs["truth"].astype(str).to_numpy()
        sure, right = soft.max(axis=1), soft.idxmax(axis=1) == truth
        known = np.isin(truth, list(names))
        enough = [label for label in task.left_out if (truth == label).sum() >= LEAST]
        new, high = np.isin(truth, enough), sure.to_numpy() >= SURE
        row = {
            "group": task.group, "task": task.name, "batch": path.stem,
            "left_out": "+".join(task.left_out), "sibling": bool(set(task.left_out) & SIBLINGS),
            "right": right[known].mean(), "confident": high[known].mean(),
            "right_confident": right[known & high].mean(), "ece": ece(sure[known], right[known]),
        }  # fmt: skip
        if new.any():
            both = known | new
            row["auroc"] = roc_auc_score(new[both], -sure[both])
            row["new_confident"] = high[new].mean()
        rows.append(row)
    kept.write_text(json.dumps(rows, default=float))
    return rows


def main() -> None:
    from tasks import all_tasks

    tasks = [task for task in all_tasks() if task.seed == 0 and task.group != "simulated"]
    tasks.sort(key=lambda task: bool(task.left_out))
    found = []
    with multiprocessing.get_context("spawn").Pool(N_PROCESSES, maxtasksperchild=1) as pool:
        for task, rows in zip(tasks, pool.imap(rows_of, tasks), strict=True):
            print(task.name, flush=True)
            found += rows
            OUT.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=float) + "\n")


if __name__ == "__main__":
    main()
