"""Reference labels of any depth: in a tree, labels that stand above others are none of a model's.

Cells that are given one keep it in `label_given` and have no `label`; what a model learns of them
is that one of the labels below it is theirs.
"""

import re
from collections.abc import Iterable

import anndata
import numpy as np
import pandas as pd

from atlasmap.data.label_tree import LabelTree, above_and_below

GIVEN = "label_given"  # obs of a reference with such labels: what was written of each cell
PARENTS = "label_parents"  # uns: columns child and parent


def keep_tree(adata: anndata.AnnData, tree: LabelTree) -> None:
    """Keep a tree in uns."""
    columns = {"child": list(tree.parents), "parent": list(tree.parents.values())}
    adata.uns[PARENTS] = {key: np.array(names, object) for key, names in columns.items()}


def tree_in(adata: anndata.AnnData) -> LabelTree:
    """What `keep_tree` kept; empty without one."""
    kept = adata.uns.get(PARENTS, {"child": [], "parent": []})
    return LabelTree(dict(zip(*(map(str, kept[key]) for key in ("child", "parent")), strict=True)))


def to_their_depth(obs: pd.DataFrame, tree: LabelTree, unlabeled: str) -> dict[str, list[str]]:
    """Take labels that stand above others out of obs `label`, in place, into `label_given`; returns
    them and the labels below each. Without any, nothing is changed."""
    given = obs["label"].astype(str)
    above = above_and_below(tree, sorted(set(given) - {unlabeled}))
    set_apart(obs, "label", above, unlabeled)
    return above


def set_apart(obs: pd.DataFrame, key: str, above: Iterable[str], unlabeled: str) -> None:
    """Values of a column that stand above labels go to {key}_given, in place: at the labels' depth
    nothing is known of these cells."""
    values = obs[key].astype(str)
    vague = values.isin(list(above))
    if vague.any():
        obs[f"{key}_given"], obs[key] = values, values.where(~vague, unlabeled)


def at_new_depth(obs: pd.DataFrame, tree: LabelTree, unlabeled: str) -> None:
    """Of some of a reference's cells, in place: labels that stand above no other of theirs are
    labels of these cells."""
    if GIVEN not in obs:
        return
    before = obs["label"].astype(str)
    obs["label"] = obs[GIVEN].astype(str)
    to_their_depth(obs, tree, unlabeled)
    obs["label"] = pd.Categorical(obs["label"].astype(str).mask(before != unlabeled, before))


def given_in(obs: pd.DataFrame, key: str = "label") -> pd.Series:
    """What was written of each cell, at whatever depth."""
    return obs[f"{key}_given" if f"{key}_given" in obs else key].astype(str)


def names_within_others(labels: list[str]) -> list[tuple[str, str]]:
    """Pairs of labels of which the first one's words stand together in the second's: it may be its
    parent."""
    words = {label: " ".join(re.findall(r"[^\W_]+", label.casefold())) for label in labels}
    pairs = ((short, long) for short in labels for long in labels if words[short])
    return [
        (short, long)
        for short, long in pairs
        if words[short] != words[long] and f" {words[short]} " in f" {words[long]} "
    ]
