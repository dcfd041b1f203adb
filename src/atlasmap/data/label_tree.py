"""Label trees: reading them, coarser label levels, common ancestors, summed probabilities."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from atlasmap.errors import AtlasmapError, listed, read_text

ROOT = ""  # parent of the topmost labels


@dataclass(frozen=True)
class LabelTree:
    """A label tree as label → parent; labels without a parent are at the top."""

    parents: dict[str, str]

    def lineage(self, label: str) -> list[str]:
        """Return the label and its ancestors, from the label to the top."""
        out = [label]
        while out[-1] in self.parents:
            out.append(self.parents[out[-1]])
        return out

    def common_ancestor(self, labels: list[str]) -> str:
        """Return the lowest label that all `labels` are or descend from; ROOT if there is none."""
        shared = None
        for label in labels:
            lineage = self.lineage(label)
            shared = lineage if shared is None else [name for name in shared if name in lineage]
        return shared[0] if shared else ROOT

    def depth(self, label: str) -> int:
        """Number of ancestors of a label."""
        return len(self.lineage(label)) - 1

    def at_level(self, label: str, level: int) -> str:
        """Return its ancestor `level` steps below the top; the label itself if it is less deep."""
        lineage = self.lineage(label)
        return lineage[max(len(lineage) - 1 - level, 0)]

    def above(self, labels: list[str]) -> "LabelTree":
        """Return the subtree of `labels` and their ancestors."""
        kept = {name for label in labels for name in self.lineage(label)}
        return LabelTree({child: of for child, of in self.parents.items() if child in kept})

    def labels_below(self, labels: list[str]) -> dict[str, list[str]]:
        """Map each ancestor of any of `labels` to those `labels` that are below it or equal it."""
        of = {label: self.lineage(label) for label in labels}
        names = sorted({name for lineage in of.values() for name in lineage[1:]})
        return {name: [label for label in labels if name in of[label]] for name in names}

    def levels(self, labels: list[str]) -> int:
        """Largest depth among `labels` (0 without labels)."""
        return max((self.depth(label) for label in labels), default=0)


@dataclass(frozen=True)
class Levels:
    """Coarser levels of labels: `groups` (level → label → group), and the tree of the groups."""

    groups: dict[str, dict[str, str]]
    tree: LabelTree

    def vague(self, level: str) -> set[str]:
        """Return the ancestors of a level's groups, which are too coarse to be a group of it."""
        groups = set(self.groups[level].values())
        return {name for group in groups for name in self.tree.lineage(group)[1:]}


def levels_of_tree(tree: LabelTree, labels: list[str]) -> Levels:
    """Return levels level0 (topmost), level1, … of a tree, down to the deepest labels' parents.

    `groups` also covers labels of the tree that are not in `labels`, e.g. in a query's truth.
    """
    known = sorted({*labels, *tree.parents})
    names = {f"level{k}": k for k in range(tree.levels(labels))}
    groups = {n: {label: tree.at_level(label, k) for label in known} for n, k in names.items()}
    return Levels(groups, tree)


def levels_of_columns(obs: pd.DataFrame, columns: list[str], unlabeled: str) -> Levels:
    """Return the obs `columns` that are coarser than `label` as levels.

    A column is coarser if all cells of each label have the same value, cells without a value aside.
    In the tree, each label is below its groups, from the finest to the coarsest column.
    """
    table = obs[["label", *columns]].astype(str)
    table = table[table["label"] != unlabeled]
    groups = {}
    for column in columns:
        known = table[table[column] != unlabeled].groupby("label")[column]
        if len(known) and (known.nunique() == 1).all():
            groups[column] = known.first().to_dict()
    parents: dict[str, str] = {}
    finest_first = sorted(groups, key=lambda column: -len(set(groups[column].values())))
    for label in table["label"].unique():
        below = label
        for column in finest_first:
            above = groups[column].get(label, below)
            if below in LabelTree(parents).lineage(above):  # equally fine columns: no cycle
                continue
            if parents.setdefault(below, above) == above:
                below = above
    return Levels(groups, LabelTree(parents))


def rolled_up(
    probabilities: np.ndarray, names: list[str], to: dict[str, str]
) -> tuple[np.ndarray, list[str]]:
    """Sum probabilities (cells × labels) per group: (cells × groups), and the group names.

    `names` are the labels of the columns; `to` maps label to group.
    """
    coarse = sorted({to[name] for name in names})
    member = np.array([[to[name] == group for group in coarse] for name in names], float)
    return probabilities @ member, coarse


def read_levels(path: Path, labels: list[str]) -> Levels:
    """Read levels from a sheet separated by commas, tabs or semicolons.

    The sheet has either columns child and parent, or one row per label: its name in the first
    column, and its levels in columns with "level" in their names, the topmost first (as in the
    HLCA). Raises LABEL_TREE for other columns, two parents of one label, or a cycle;
    TEXT_UNREADABLE.
    """
    table = read_table(path)
    levels = [column for column in table if "level" in column.lower()]
    if {"child", "parent"} <= set(table):
        table = table[["child", "parent"]]
        table = table[(table != "").all(axis=1)].drop_duplicates()
        return levels_of_tree(as_tree(table.itertuples(index=False), path), labels)
    if levels and levels[0] != table.columns[0]:
        return levels_of_sheet(table.set_index(table.columns[0])[levels], path)
    raise wrong(path, f"columns {listed(table)}")


def read_tree(path: Path) -> LabelTree:
    """Read the tree of a sheet; raises the same errors as `read_levels`."""
    return read_levels(path, []).tree


def tree_facts(path: Path, labels: list[str]) -> dict:
    """Return the number of groups per level, and the labels that are not in the tree.

    Raises LABEL_TREE, TEXT_UNREADABLE.
    """
    levels = read_levels(path, labels)
    parents = levels.tree.parents
    return {
        "levels": {
            level: len({to.get(label, label) for label in labels})
            for level, to in levels.groups.items()
        },
        "labels_not_in_it": [x for x in labels if x not in {*parents, *parents.values()}],
    }


def tree_key(tree: LabelTree | None, facts: Path) -> str:
    """Return a key that changes only if a new label tree changes the training.

    Training depends only on which reference labels are above which others. If the tree agrees on
    that with the `facts` (JSON, may be absent) of the prepared reference, the key recorded there is
    returned, otherwise a hash of the tree (16 hex digits). Without a tree (None) the key is empty.
    """
    key = "" if tree is None else sha256(repr(sorted(tree.parents.items())).encode()).hexdigest()
    try:
        before = json.loads(facts.read_text(encoding="utf-8"))
        recorded = {name: fact["below"] for name, fact in before["labels_above"].items()}
        names = sorted({*before["labels"], *recorded})
        # the Cell Ontology may have renamed labels and added levels, which a sheet does not do
        same = tree is not None and "ontology" not in before
        same = same and above_and_below(tree, names) == recorded
        return str(before["tree_key"]) if same else key[:16]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return key[:16]


def above_and_below(tree: LabelTree, names: list[str]) -> dict[str, list[str]]:
    """Map each of `names` that is an ancestor of others to those below it that are no ancestors."""
    above = tree.labels_below(names).keys() & set(names)
    below = tree.labels_below([name for name in names if name not in above])
    return {name: below[name] for name in sorted(above)}


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of texts; the separator is the most frequent of tab, comma and semicolon in its
    first line.

    Short rows are padded with empty values. Raises LABEL_TREE, TEXT_UNREADABLE.
    """
    text = read_text(path, "the sheet of labels (label_tree)")
    lines = [line for line in re.split("\r\n|\r|\n", text) if line.strip()]
    between = max("\t,;", key=lines[0].count)
    try:
        rows = [next(csv.reader([line], delimiter=between, strict=True)) for line in lines]
    except csv.Error as error:
        raise wrong(path, str(error)) from error
    header, *rows = ([value.strip() for value in row] for row in rows)
    while header and not header[-1]:
        header.pop()
    if len(set(header)) < len(header):
        raise wrong(path, "a column more than once")
    for n, row in enumerate(rows, start=1):
        if any(row[len(header) :]):
            raise wrong(path, f"row {n} has {len(row)} values for {len(header)} columns")
    width = len(header)
    padded = [[*row[:width], *[""] * (width - len(row))] for row in rows]
    return pd.DataFrame(padded, columns=header, dtype=str)


def levels_of_sheet(table: pd.DataFrame, path: Path) -> Levels:
    """Return the levels of `table` (labels × levels, topmost first).

    An empty value, or `3_x` below x (as the HLCA writes it), repeats the level above. Levels at
    which every label is its own group are left out. Raises LABEL_TREE.
    """
    named, above = pd.DataFrame(index=table.index), pd.Series("", index=table.index)
    for level in table:
        same = [bool(re.fullmatch(rf"\d+_{re.escape(a)}", v)) or not v
                for a, v in zip(above, table[level], strict=True)]  # fmt: skip
        above = table[level].where(~np.array(same), above)
        named[level] = above
    chains = [
        list(dict.fromkeys(filter(None, [label, *reversed(row)])))
        for label, *row in named.itertuples(name=None)
    ]
    tree = as_tree({pair for chain in chains for pair in pairwise(chain)}, path)
    groups = {}
    for k, level in enumerate(named):
        of_label = dict(
            zip(named.index, named[level].where(named[level] != "", named.index), strict=True)
        )
        for finer in named.columns[k + 1 :]:  # a query's truth may be a group of a finer level
            of_label = dict(zip(named[finer], named[level], strict=True)) | of_label
        if any(label != group for label, group in of_label.items()):
            groups[level] = of_label
    return Levels(groups, tree)


def as_tree(pairs: Iterable[tuple[str, str]], path: Path) -> LabelTree:
    """Build a tree from (child, parent) pairs; raises LABEL_TREE for two parents or a cycle."""
    parents: dict[str, str] = {}
    for child, parent in pairs:
        if parents.setdefault(child, parent) != parent:
            raise wrong(path, f"more than one parent of {child}")
    return checked(parents, path)


def checked(parents: dict[str, str], path: Path) -> LabelTree:
    """Build a tree from label → parent; raises LABEL_TREE for a cycle."""
    to_the_top: set[str] = set()  # labels known to be in no cycle
    for label in parents:
        seen = set()
        while label in parents and label not in to_the_top:
            if label in seen:
                raise wrong(path, f"{label} above itself")
            seen.add(label)
            label = parents[label]
        to_the_top |= seen
    return LabelTree(parents)


def wrong(path: Path, found: str) -> AtlasmapError:
    """Return the error LABEL_TREE."""
    return AtlasmapError(
        "LABEL_TREE",
        expected="a sheet with columns child and parent, or label and levels, the topmost first; "
        "one parent a label, no circle",
        found=f"{path}: {found}",
        mend="correct the sheet that label_tree names",
    )
