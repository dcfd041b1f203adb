"""Reference batches labelled at another depth, beside the same with fine labels, and with those
labels thrown away: docs/label_depth.json. What was trained is kept, in results/depth."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from tasks import LINEAGES

ROOT = Path(__file__).resolve().parents[2]
TOP = ROOT / "results/depth"
ARMS, SEEDS = ("fine", "mixed", "thrown away"), (0, 1, 2)
COARSE = {"T_CD4": "T", "T_CD8": "T", "Mono_CD14": "Mono", "Mono_CD16": "Mono"}
# Above the types a pair of them, their lineage, a group of lineages, and a group of those.
FIVE = {
    **{f"L{i}.{k}": f"L{i} pair" if k < 2 else f"L{i}" for i in range(5) for k in range(3)},
    **{f"L{i} pair": f"L{i}" for i in range(5)},
    "L0": "L0 or L1", "L1": "L0 or L1", "L0 or L1": "first", "L2": "first", "L3": "second",
    "L4": "second",
}  # fmt: skip
os.environ.setdefault("MKL_CBWR", "AUTO")  # as commands set it


@dataclass(frozen=True)
class Mixed:
    """Reference batches (of `data`) and how far above the leaf each is labelled by `parents`."""

    name: str
    data: str
    query: tuple[str, ...]
    above: dict[str, int]
    parents: dict[str, str]


SIMULATED = "../cases/mixed_depth/all"
LATE = {f"batch{k}": 0 for k in range(3)} | {f"batch{k}": 1 for k in range(3, 6)}
SETS = (
    Mixed("simulated", SIMULATED, ("query0", "query1"), LATE, LINEAGES),
    Mixed("five levels", SIMULATED, ("query0", "query1"),
          {"batch0": 0, "batch1": 0, "batch2": 1, "batch3": 2, "batch4": 3, "batch5": 4}, FIVE),
    Mixed("PBMC, 5' coarse", "pbmc_3chemistries", ("3pv1",), {"3pv2": 0, "5p": 1}, COARSE),
    Mixed("PBMC, 3'v2 coarse", "pbmc_3chemistries", ("3pv1",), {"3pv2": 1, "5p": 0}, COARSE),
    Mixed("PBMC, 3'v1 coarse", "pbmc_3chemistries", ("5p",), {"3pv1": 1, "3pv2": 0}, COARSE),
)  # fmt: skip


def data_of(one: Mixed) -> tuple[anndata.AnnData, dict[str, anndata.AnnData]]:
    """The prepared reference, finely labelled, and query batches by name."""
    from cases import prepared
    from tasks import Task

    task = Task(one.name, one.data, tuple(one.above), one.query)
    return prepared(task, TOP / "data")


def at_depth(cells: anndata.AnnData, one: Mixed, arm: str) -> None:
    """Label a reference as an arm has it, in place."""
    from atlasmap.data.depth import keep_tree, to_their_depth
    from atlasmap.data.label_tree import LabelTree
    from atlasmap.data.registry import unlabeled_in
    from atlasmap.labels.own_leaf import keep_own_leaves

    tree, unlabeled = LabelTree(one.parents), unlabeled_in(cells)
    steps = cells.obs["batch"].astype(str).map(one.above).to_numpy()
    fine = cells.obs["label"].astype(str)
    lineages = [tree.lineage(label) for label in fine]
    given = [names[min(k, len(names) - 1)] for names, k in zip(lineages, steps, strict=True)]
    if arm != "fine":
        cells.obs["label"] = given
    above = to_their_depth(cells.obs, tree, unlabeled) if arm != "fine" else {}
    keep_tree(cells, tree)
    cells.obs["label"] = pd.Categorical(cells.obs["label"].astype(str))
    if arm == "thrown away":
        del cells.obs["label_given"]
    else:
        facts = {"labels": {}, "labels_above": {name: {} for name in above}}
        keep_own_leaves(cells, facts)
        print(
            one.name, arm, {k: v.get("own") for k, v in facts["labels_above"].items()}, flush=True
        )


def work(number: int) -> dict:
    """One arm of one set with one seed."""
    import torch
    from cases import case_of
    from score import weighed

    from atlasmap.data.label_tree import LabelTree

    torch.set_num_threads(1)
    one, arm, seed = list(product(SETS, ARMS, SEEDS))[number]
    folder = TOP / one.name.replace(" ", "_") / arm.replace(" ", "_") / str(seed)
    if not (folder / "done").is_file():
        cells, queries = data_of(one)
        at_depth(cells, one, arm)
        case_of(folder, cells, queries, seed)
    [(said, first), *others] = weighed(folder, LabelTree(one.parents))
    table = pd.concat([first, *(other for _, other in others)])
    return {"set": one.name, "arm": arm, "seed": seed} | figures(table, said["names"], one)


def figures(table: pd.DataFrame, names: list[str], one: Mixed) -> dict:
    """Of query cells whose label is one of the reference's."""
    from sklearn.metrics import f1_score

    from atlasmap.labels.verdict import SEPARATOR

    table = table[table["truth"].isin(names)]
    truth = table["truth"]
    sets = zip(truth, table["prediction_set"], strict=True)
    above = set(one.parents.values())
    out = {"n": len(table), "in_set": np.mean([x in said.split(SEPARATOR) for x, said in sets])}
    for key in ("predicted_label", "pooled_label"):
        right = (table[key] == truth).mean()
        f1 = f1_score(truth, table[key], average="macro", labels=sorted(truth.unique()))
        out |= {key: right, f"{key}_f1": f1, f"{key}_above": table[key].isin(above).mean()}
    return out


def main() -> None:
    if not (ROOT.parent / "shared/data").is_dir():
        sys.exit("needs the development data in ../shared/data")
    n = len(SETS) * len(ARMS) * len(SEEDS)
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=4) as pool:
        rows = []
        for row in pool.imap_unordered(work, range(n)):
            print(row, flush=True)
            rows.append(row)
    table = pd.DataFrame(rows).sort_values(["set", "arm", "seed"])
    table.to_json(ROOT / "docs/label_depth.json", orient="records", indent=1)
    print(table.groupby(["set", "arm"]).mean(numeric_only=True).round(3).to_string())


if __name__ == "__main__":
    main()
