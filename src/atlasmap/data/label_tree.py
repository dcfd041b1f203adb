"""A tree of labels: probabilities rolled up, and what ambiguous labels have in common."""

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

from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import read_text

ROOT = ""  # above the topmost labels


@dataclass(frozen=True)
class LabelTree:
    """Parent of each label; labels without one are at the top."""

    parents: dict[str, str]

    def lineage(self, label: str) -> list[str]:
        """The label, its parent, and so on to the top."""
        out = [label]
        while out[-1] in self.parents:
            out.append(self.parents[out[-1]])
        return out

    def common_ancestor(self, labels: list[str]) -> str:
        """The lowest label that all of `labels` are or descend from; empty if there is none."""
        shared = None
        for label in labels:
            lineage = self.lineage(label)
            shared = lineage if shared is None else [name for name in shared if name in lineage]
        return shared[0] if shared else ROOT

    def depth(self, label: str) -> int:
        """Labels above it."""
        return len(self.lineage(label)) - 1

    def at_level(self, label: str, level: int) -> str:
        """Its ancestor so many below the top; itself where it is less deep."""
        lineage = self.lineage(label)
        return lineage[max(len(lineage) - 1 - level, 0)]

    def above(self, labels: list[str]) -> "LabelTree":
        """The tree of these labels and what is above them."""
        kept = {name for label in labels for name in self.lineage(label)}
        return LabelTree({child: of for child, of in self.parents.items() if child in kept})

    def labels_below(self, labels: list[str]) -> dict[str, list[str]]:
        """Of all that stand above one of `labels`, those that each stands above or is."""
        of = {label: self.lineage(label) for label in labels}
        names = sorted({name for lineage in of.values() for name in lineage[1:]})
        return {name: [label for label in labels if name in of[label]] for name in names}

    def levels(self, labels: list[str]) -> int:
        """Levels above the deepest of `labels`."""
        return max((self.depth(label) for label in labels), default=0)


@dataclass(frozen=True)
class Levels:
    """What labels are at coarser levels: `groups` level → label → group, and the tree they make."""

    groups: dict[str, dict[str, str]]
    tree: LabelTree

    def vague(self, level: str) -> set[str]:
        """What stands above groups of a level, and so is none of them."""
        groups = set(self.groups[level].values())
        return {name for group in groups for name in self.tree.lineage(group)[1:]}


def levels_of_tree(tree: LabelTree, labels: list[str]) -> Levels:
    """Levels level0 (topmost), level1, … of a tree, down to the parents of the deepest labels.

    Labels of the tree that are not among `labels` (of a query's truth, say) have their groups too.
    """
    known = sorted({*labels, *tree.parents})
    names = {f"level{k}": k for k in range(tree.levels(labels))}
    groups = {n: {label: tree.at_level(label, k) for label in known} for n, k in names.items()}
    return Levels(groups, tree)


def levels_of_columns(obs: pd.DataFrame, columns: list[str], unlabeled: str) -> Levels:
    """Those of `columns` that are coarser than `label`: of each label's cells all have one value.

    The tree goes from the label up through them, the finest first.
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
            if below in LabelTree(parents).lineage(above):  # columns of as many groups: no circle
                continue
            if parents.setdefault(below, above) == above:
                below = above
    return Levels(groups, LabelTree(parents))


def rolled_up(
    probabilities: np.ndarray, names: list[str], to: dict[str, str]
) -> tuple[np.ndarray, list[str]]:
    """Probabilities (cells × labels) summed over labels that `to` makes one, and their names."""
    coarse = sorted({to[name] for name in names})
    member = np.array([[to[name] == group for group in coarse] for name in names], float)
    return probabilities @ member, coarse


def read_levels(path: Path, labels: list[str]) -> Levels:
    """From a sheet (comma or tab separated): either columns child and parent, or a row a label, its
    name first, and columns with "level" in their names, the topmost first (as the HLCA has them).

    Raises LABEL_TREE for other columns, two parents of one label, or a circle; TEXT_UNREADABLE.
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
    """Its tree alone; raises as `read_levels`."""
    return read_levels(path, []).tree


def tree_facts(path: Path, labels: list[str]) -> dict:
    """Number of groups at each level, and labels that the tree lacks; raises LABEL_TREE."""
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
    """What training depends on of a sheet of labels, as a text: while the same labels of the
    prepared reference (its `facts`, if they are there) stand above the same others, the text that
    the reference was prepared with. Without a sheet (None) empty."""
    key = "" if tree is None else sha256(repr(sorted(tree.parents.items())).encode()).hexdigest()
    try:
        before = json.loads(facts.read_text(encoding="utf-8"))
        recorded = {name: fact["below"] for name, fact in before["labels_above"].items()}
        names = sorted({*before["labels"], *recorded})
        # by the ontology, words may have been changed and levels made, which a sheet says otherwise
        same = tree is not None and "ontology" not in before
        same = same and above_and_below(tree, names) == recorded
        return str(before["tree_key"]) if same else key[:16]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return key[:16]


def above_and_below(tree: LabelTree, names: list[str]) -> dict[str, list[str]]:
    """Those of `names` that stand above others, and the lowest ones below each."""
    above = tree.labels_below(names).keys() & set(names)
    below = tree.labels_below([name for name in names if name not in above])
    return {name: below[name] for name in sorted(above)}


def read_table(path: Path) -> pd.DataFrame:
    """A table of texts separated by tabs, commas or semicolons, whichever its first line has most
    of; raises LABEL_TREE, TEXT_UNREADABLE. Rows may end early, or with empty values."""
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
    """Levels of `table` (label × level, topmost first); those at which every label is itself are
    left out. A level that is empty, or says `3_x` where the one above says x, is the one above."""
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
        for finer in named.columns[k + 1 :]:  # a query's truth may be coarser than any label
            of_label = dict(zip(named[finer], named[level], strict=True)) | of_label
        if any(label != group for label, group in of_label.items()):
            groups[level] = of_label
    return Levels(groups, tree)


def as_tree(pairs: Iterable[tuple[str, str]], path: Path) -> LabelTree:
    """From (child, parent); raises LABEL_TREE for two parents of one, or a circle."""
    parents: dict[str, str] = {}
    for child, parent in pairs:
        if parents.setdefault(child, parent) != parent:
            raise wrong(path, f"more than one parent of {child}")
    return checked(parents, path)


def checked(parents: dict[str, str], path: Path) -> LabelTree:
    """A tree without circles; raises LABEL_TREE."""
    to_the_top: set[str] = set()  # labels known to be below no circle
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
    """LABEL_TREE."""
    return AtlasmapError(
        "LABEL_TREE",
        expected="a sheet with columns child and parent, or label and levels, the topmost first; "
        "one parent a label, no circle",
        found=f"{path}: {found}",
        mend="correct the sheet that label_tree names",
    )
