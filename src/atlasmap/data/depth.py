"""Reference labels at different depths of a label tree.

A label that is an ancestor of other labels ("T cell" beside "CD4 T cell") is no class of the
model. Its cells keep it in obs `label_given` and are unlabelled in `label`; in training, their
class is known to be one of its descendants.
"""

import re
from collections.abc import Iterable

import anndata
import numpy as np
import pandas as pd

from atlasmap.data.label_tree import LabelTree, above_and_below

GIVEN = "label_given"  # obs column with the original labels, if some are ancestors of others
PARENTS = "label_parents"  # uns key of the tree: arrays child and parent


def keep_tree(adata: anndata.AnnData, tree: LabelTree) -> None:
    """Store a label tree in uns, in place."""
    columns = {"child": list(tree.parents), "parent": list(tree.parents.values())}
    adata.uns[PARENTS] = {key: np.array(names, object) for key, names in columns.items()}


def tree_in(adata: anndata.AnnData) -> LabelTree:
    """Return the tree that `keep_tree` stored; an empty one if there is none."""
    kept = adata.uns.get(PARENTS, {"child": [], "parent": []})
    return LabelTree(dict(zip(*(map(str, kept[key]) for key in ("child", "parent")), strict=True)))


def to_their_depth(obs: pd.DataFrame, tree: LabelTree, unlabeled: str) -> dict[str, list[str]]:
    """Move ancestor labels from obs `label` to `label_given`, in place.

    Returns ancestor label → labels below it. Without ancestor labels, obs is unchanged.
    """
    given = obs["label"].astype(str)
    above = above_and_below(tree, sorted(set(given) - {unlabeled}))
    set_apart(obs, "label", above, unlabeled)
    return above


def set_apart(obs: pd.DataFrame, key: str, above: Iterable[str], unlabeled: str) -> None:
    """Copy column `key` to `{key}_given` and set its values that are in `above` to `unlabeled`, in
    place; nothing is changed if no cell has such a value."""
    values = obs[key].astype(str)
    vague = values.isin(list(above))
    if vague.any():
        obs[f"{key}_given"], obs[key] = values, values.where(~vague, unlabeled)


def at_new_depth(obs: pd.DataFrame, tree: LabelTree, unlabeled: str) -> None:
    """Restore labels of a subset of the reference's cells that are ancestors of no label in the
    subset, in place."""
    if GIVEN not in obs:
        return
    before = obs["label"].astype(str)
    obs["label"] = obs[GIVEN].astype(str)
    to_their_depth(obs, tree, unlabeled)
    obs["label"] = pd.Categorical(obs["label"].astype(str).mask(before != unlabeled, before))


def given_in(obs: pd.DataFrame, key: str = "label") -> pd.Series:
    """Return the original label of each cell, including ancestor labels."""
    return obs[f"{key}_given" if f"{key}_given" in obs else key].astype(str)


def names_within_others(labels: list[str]) -> list[tuple[str, str]]:
    """Pairs (possible parent, child): all words of the first label occur in sequence in the
    second."""
    words = {label: " ".join(re.findall(r"[^\W_]+", label.casefold())) for label in labels}
    pairs = ((short, long) for short in labels for long in labels if words[short])
    return [
        (short, long)
        for short, long in pairs
        if words[short] != words[long] and f" {words[short]} " in f" {words[long]} "
    ]
