"""The deepest safe label: by hand, and as often wrong as was asked."""

import numpy as np
import pytest

from atlasmap.data.label_tree import LabelTree
from atlasmap.labels.confidence import weights_of_others
from atlasmap.labels.safe import LABEL, NONE, at_level, level_thresholds, safe_labels

TREE = LabelTree({"CD4": "T", "CD8": "T", "T": "lymphoid", "B": "lymphoid", "mono": "myeloid"})
NAMES = ["B", "CD4", "CD8", "mono"]
P = np.array([
    [0.02, 0.95, 0.02, 0.01],  # sure
    [0.02, 0.55, 0.42, 0.01],  # a T cell
    [0.40, 0.50, 0.08, 0.02],  # lymphoid
    [0.30, 0.33, 0.05, 0.32],  # anything
    [0.02, 0.55, 0.42, 0.01],  # a T cell, but novel
    [0.93, 0.03, 0.03, 0.01],  # B, not sure: no T cell, but lymphoid
])  # fmt: skip


def test_by_hand():
    given = P.argmax(1)
    sure = np.array([True, *[False] * 5])
    may_have = np.array([True] * 4 + [False, True])
    thresholds = {"level0": 0.9, "level1": 0.9}
    found = safe_labels(P, NAMES, given, sure, may_have, TREE, thresholds, "?")
    assert list(found.label) == ["CD4", "T", "lymphoid", "?", "?", "lymphoid"]
    assert list(found.level) == [LABEL, "level1", "level0", NONE, NONE, "level0"]
    assert found.probability[:3] == pytest.approx([0.95, 0.97, 0.98])
    assert np.isnan(found.probability[3:5]).all() and found.probability[5] == pytest.approx(0.99)
    # of a level about which nothing was learned nothing is safe
    found = safe_labels(P, NAMES, given, sure, may_have, TREE, {"level1": 0.9}, "?")
    assert list(found.level) == [LABEL, "level1", NONE, NONE, NONE, NONE]


def test_without_a_tree_a_label_is_safe_or_none():
    sure = P.max(1) > 0.9
    found = safe_labels(P, NAMES, P.argmax(1), sure, sure | True, LabelTree({}), {}, "?")
    assert list(found.level) == [LABEL if x else NONE for x in sure]
    assert list(found.label[sure]) == ["CD4", "B"]


def test_what_is_said_at_a_level():
    at, own, to = at_level(P, NAMES, P.argmax(1), TREE, 1)
    assert list(at) == [0, 1, 2, 3, 4] and to["CD4"] == "T" and to["B"] == "B"
    assert own[1] == pytest.approx(0.97)


class Held:
    """What `level_thresholds` asks of a batch; its names are right as often as they are sure."""

    def __init__(self, fold: int, rng: np.random.Generator, n: int = 4000):
        self.fold, self.names, self.known = fold, NAMES, np.arange(n)
        p = rng.dirichlet([0.6] * 4, n)
        self.truth = np.array([rng.choice(4, p=row) for row in p])
        self.told, self.predicted = (p, p, self.truth), p.argmax(1)
        self.seen = type("Seen", (), {"codes": p.argmax(1)})


@pytest.mark.parametrize("risk", [0.05, 0.2])
def test_at_each_level_as_often_wrong_as_was_asked(rng, risk):
    held = [Held(k % 3, rng) for k in range(6)]
    of_others = weights_of_others([one.told for one in held], [one.fold for one in held])
    thresholds = level_thresholds(held, of_others, TREE, 0.9, risk)
    assert set(thresholds) == {"level0", "level1"}
    asked = Held(9, rng, 20_000)
    p, given = asked.told[0], asked.seen.codes
    everyone = np.ones(len(p), bool)
    found = safe_labels(p, NAMES, given, p.max(1) >= 0.9, everyone, TREE, thresholds, "?")
    for level in thresholds:
        at = found.level == level
        lineages = [TREE.lineage(NAMES[code]) for code in asked.truth[at]]
        said = zip(found.label[at], lineages, strict=True)
        wrong = np.mean([label not in lineage for label, lineage in said])
        assert at.sum() > 200 and abs(wrong - risk) < 0.03
