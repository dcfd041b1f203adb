"""Trees of labels, and levels above them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from atlasmap.data.label_tree import (
    LabelTree,
    levels_of_columns,
    levels_of_tree,
    read_levels,
    rolled_up,
)
from atlasmap.errors import AtlasmapError

TREE = LabelTree({"CD4": "T", "CD8": "T", "T": "lymphoid", "B": "lymphoid", "mono": "myeloid"})


def test_common_ancestors():
    assert TREE.common_ancestor(["CD4", "CD8"]) == "T"
    assert TREE.common_ancestor(["CD4", "B"]) == "lymphoid"
    assert TREE.common_ancestor(["CD4", "T"]) == "T"
    assert TREE.common_ancestor(["CD4"]) == "CD4"
    assert TREE.common_ancestor(["CD4", "mono"]) == "" and TREE.common_ancestor([]) == ""
    assert [TREE.at_level("CD8", k) for k in range(4)] == ["lymphoid", "T", "CD8", "CD8"]
    assert TREE.levels(["CD4", "mono"]) == 2


def test_probabilities_roll_up(rng):
    p = softmax(rng.normal(size=(5, 3)), axis=1)
    to = {name: TREE.at_level(name, 1) for name in ("CD4", "CD8", "B")}
    coarse, names = rolled_up(p, ["CD4", "CD8", "B"], to)
    assert names == ["B", "T"] and np.allclose(coarse[:, 1], p[:, 0] + p[:, 1])
    assert np.allclose(coarse.sum(1), 1)


def test_levels_of_a_tree_and_of_columns():
    levels = levels_of_tree(TREE, ["CD4", "CD8", "B"])
    assert list(levels.groups) == ["level0", "level1"]
    assert levels.groups["level1"] == {
        "CD4": "T", "CD8": "T", "B": "B", "T": "T", "mono": "mono",
    }  # fmt: skip
    obs = pd.DataFrame(
        {"label": ["CD4", "CD8", "B", "Unknown"], "broad": ["T", "T", "B", "?"],
         "all": ["lymphoid"] * 3 + ["?"], "finer": ["x", "y", "z", "?"]}
    ).loc[[0, 0, 1, 2, 3]]  # fmt: skip
    obs["donor"] = list("abcde")  # not a function of the label
    found = levels_of_columns(obs, ["all", "broad", "donor"], "Unknown")
    assert set(found.groups) == {"all", "broad"}
    assert found.tree.common_ancestor(["CD4", "CD8"]) == "T"
    assert found.tree.common_ancestor(["CD4", "B"]) == "lymphoid"


@pytest.mark.parametrize(
    "text",
    [
        "a,b\nx,y\n",
        "child,parent\nx,y\nx,z\n",
        "child,parent\nx,y\ny,x\n",
        "Level_1,Level_2\nx,y\n",
        "label,level1,level2\na,T,CD4\nb,B,CD4\n",
    ],
)
def test_bad_trees_are_refused(tmp_path, text):
    (tmp_path / "tree.csv").write_text(text)
    with pytest.raises(AtlasmapError) as error:
        read_levels(tmp_path / "tree.csv", ["x"])
    assert error.value.code == "LABEL_TREE"


def test_a_tree_is_read(tmp_path):
    (tmp_path / "tree.tsv").write_text("child\tparent\nCD4 T\tT\nT\tlymphoid\n")
    levels = read_levels(tmp_path / "tree.tsv", ["CD4 T"])
    assert levels.tree.lineage("CD4 T") == ["CD4 T", "T", "lymphoid"]


def test_a_sheet_of_levels_is_read(tmp_path):
    (tmp_path / "levels.csv").write_text(
        ",Level_1,Level_2,Level_3,colors\nCD4 naive,lymphoid,T,CD4,red\nCD8,lymphoid,T,2_T,blue\n"
        "B,lymphoid,1_lymphoid,,green\nmono,myeloid,mono,mono,grey\n"
    )
    levels = read_levels(tmp_path / "levels.csv", ["CD4 naive", "CD8", "B", "mono"])
    labels = ["CD4 naive", "CD8", "B", "mono", "other"]
    at = {level: [to.get(x, x) for x in labels] for level, to in levels.groups.items()}
    assert at == {
        "Level_1": ["lymphoid", "lymphoid", "lymphoid", "myeloid", "other"],
        "Level_2": ["T", "T", "lymphoid", "mono", "other"],
        "Level_3": ["CD4", "T", "lymphoid", "mono", "other"],
    }
    assert levels.groups["Level_1"]["CD4"] == "lymphoid"  # a truth that is coarser than labels
    assert levels.tree.common_ancestor(["CD4 naive", "CD8"]) == "T"
    assert levels.tree.common_ancestor(["CD4 naive", "B"]) == "lymphoid"
    assert levels.tree.common_ancestor(["B", "mono"]) == ""


def test_the_hierarchy_of_the_hlca_is_read():
    path = Path(__file__).resolve().parents[3] / "shared/data/hlca_celltypes.csv"
    if not path.is_file():
        pytest.skip("needs the development data in ../shared")
    table = pd.read_csv(path, index_col=0)
    levels = read_levels(path, list(table.index))
    assert len(set(levels.groups["Level_1"].values())) == table["Level_1"].nunique()
    assert levels.tree.common_ancestor(["Club (nasal)", "Club (non-nasal)"]) == "Club"
    assert levels.tree.common_ancestor(["Club (nasal)", "Goblet (nasal)"]) == "Secretory"
    assert "Level_5" not in levels.groups  # at which every cell type is itself
    assert levels.groups["Level_4"]["Mast cells"] == "Mast cells"  # 3_Mast cells in the sheet


def test_columns_make_no_circle():
    """Two columns of as many groups, that call one label by another's name."""
    obs = pd.DataFrame({"label": ["a", "b", "c"], "one": ["b", "x", "c"], "two": ["a", "a", "b"]})
    tree = levels_of_columns(obs, ["one", "two"], "?").tree
    for label in "abcx":
        assert len(set(tree.lineage(label))) == len(tree.lineage(label))
