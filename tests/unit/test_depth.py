"""Reference labels of any depth: told apart, trained at their own depth, said."""

import json
from dataclasses import replace
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from small import CONFIG, CPU, SCANVI, SCVI
from torch.nn import functional as F

from atlasmap.commands.data import write_cells
from atlasmap.data.contract import of_depth
from atlasmap.data.depth import (
    GIVEN,
    at_new_depth,
    keep_tree,
    names_within_others,
    set_apart,
    to_their_depth,
    tree_in,
)
from atlasmap.data.label_tree import LabelTree, levels_of_tree, tree_key
from atlasmap.data.registry import UNLABELED, Registry
from atlasmap.labels.atlas import with_levels
from atlasmap.labels.own_leaf import OwnLeaf, keep_own_leaves
from atlasmap.models.classifier import Classifier, cross_entropy, is_right
from atlasmap.models.scanvi import Scanvi

TREE = LabelTree({"CD4": "T", "CD8": "T", "T": "lymphoid", "B": "lymphoid", "mono": "myeloid"})
GIVEN_LABELS = ["CD4", "CD8", "T", "B", "lymphoid", "mono", "?", "myeloid"]


def obs_of(labels=GIVEN_LABELS) -> pd.DataFrame:
    return pd.DataFrame({"label": pd.Categorical(labels), "batch": "b"},
                        index=[f"cell{k}" for k in range(len(labels))])  # fmt: skip


def cells_of(obs: pd.DataFrame) -> anndata.AnnData:
    out = anndata.AnnData(np.ones((len(obs), 3), np.float32), obs=obs)
    keep_tree(out, TREE)
    out.uns[UNLABELED] = "?"
    return out


def test_labels_above_others_are_set_apart():
    obs = obs_of()
    above = to_their_depth(obs, TREE, "?")
    assert above == {"T": ["CD4", "CD8"], "lymphoid": ["B", "CD4", "CD8"], "myeloid": ["mono"]}
    assert list(obs["label"]) == ["CD4", "CD8", "?", "B", "?", "mono", "?", "?"]
    assert list(obs[GIVEN]) == GIVEN_LABELS
    untouched = obs_of(["CD4", "B", "?"])
    assert to_their_depth(untouched, TREE, "?") == {} and GIVEN not in untouched


def test_codes_say_which_labels_a_cell_may_have(tmp_path):
    obs = obs_of()
    to_their_depth(obs, TREE, "?")
    cells = cells_of(obs)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert tree_in(cells) == TREE
    registry = Registry.of(cells)
    assert registry.labels == ["B", "CD4", "CD8", "mono"]
    codes = registry.label_codes(cells.obs)
    may_be = [
        {name for name, may in zip(registry.labels, row, strict=True) if may}
        for row in registry.may_be()[codes]
    ]
    everything = set(registry.labels)
    own = [everything, everything, {"CD4", "CD8"}, everything, {"CD4", "CD8", "B"}, everything,
           everything, {"mono"}]  # fmt: skip
    assert may_be == own
    assert [registry.labels[k] for k in codes if 0 <= k < 4] == ["CD4", "CD8", "B", "mono"]
    assert codes[6] == -1 and Registry(**registry.as_dict()) == registry


def test_without_labels_above_others_nothing_is_asked():
    registry = Registry.of(cells_of(obs_of(["CD4", "B", "?"])))
    assert (registry.label_codes(obs_of(["CD4", "B", "?"])) == [1, 0, -1]).all()


def test_a_twin_without_what_is_below_learns_the_label_itself():
    obs = obs_of()
    to_their_depth(obs, TREE, "?")
    twin = obs[obs[GIVEN].isin(["T", "B", "lymphoid", "myeloid", "?"])].copy()
    at_new_depth(twin, TREE, "?")
    assert dict(zip(twin[GIVEN], twin["label"], strict=True)) == {
        "T": "T", "B": "B", "lymphoid": "?", "?": "?", "myeloid": "myeloid",
    }  # fmt: skip


def test_truth_above_the_labels_is_no_truth_at_their_depth():
    table = pd.DataFrame({"truth": ["CD4", "T", "?", "other"]})
    set_apart(table, "truth", {"T", "lymphoid"}, "?")
    assert list(table["truth"]) == ["CD4", "?", "?", "other"]
    assert list(table["truth_given"]) == ["CD4", "T", "?", "other"]


def test_what_training_depends_on_of_a_sheet(tmp_path):
    facts = tmp_path / "reference.json"
    first = tree_key(TREE, facts)
    assert first and tree_key(None, facts) == "" and tree_key(LabelTree({}), facts) != first

    def prepared(labels: dict, above: dict, key: str) -> None:
        said = {"labels": labels, "labels_above": above, "tree_key": key}
        facts.write_text(json.dumps(said))

    # No label stood above another: a sheet under which none does changes nothing, whatever it says.
    prepared({"CD4": 5, "B": 5}, {}, "")
    assert tree_key(TREE, facts) == tree_key(LabelTree({"CD4": "x"}), facts) == ""
    assert tree_key(LabelTree({"CD4": "B"}), facts) != ""
    said = json.loads(facts.read_text()) | {"ontology": {"renamed": {"CL:0000624": "CD4"}}}
    facts.write_text(json.dumps(said))  # whose words a sheet, or none, takes back
    assert tree_key(LabelTree({}), facts) != "" and tree_key(None, facts) == ""
    prepared({"CD4": 5, "B": 5}, {"T": {"n": 3, "below": ["CD4"]}}, first)
    assert tree_key(LabelTree({"CD4": "T", "B": "y"}), facts) == first
    assert tree_key(LabelTree({"B": "T"}), facts) != first and tree_key(None, facts) == ""


def test_names_within_others():
    labels = ["T cell", "CD4-positive, alpha-beta T cell", "B", "NK", "NKT", "B_naive", "t-cell"]
    assert names_within_others(labels) == [
        ("T cell", "CD4-positive, alpha-beta T cell"),
        ("B", "B_naive"),
        ("t-cell", "CD4-positive, alpha-beta T cell"),
    ]
    [said] = of_depth({"labels_within_others": [["B", "B_naive"]]})
    assert "B above B_naive" in said and "label_tree" in said
    [said] = of_depth({"labels_above": {"T": {"n": 7, "below": ["CD4", "CD8"]}}})
    assert "T (7 cells)" in said and "CD4, CD8" in said


@pytest.mark.parametrize("variant", ["fixed", "prefix"])
def test_cross_entropy_is_minus_log_of_a_sum(variant):
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 4, dtype=torch.double, generator=rng, requires_grad=True)
    out = torch.softmax(logits, 1) if variant == "prefix" else logits
    labels = torch.tensor([0, 3, 2, 4, 5, 1])
    may_be = torch.ones(6, 4, dtype=torch.bool)
    may_be[3], may_be[4] = torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 0, 1])
    p = torch.softmax(out, 1)
    sums = [p[0, 0], p[1, 3], p[2, 2], p[3, 0] + p[3, 1], p[4, 3], p[5, 1]]
    expected = -torch.stack(sums).log().mean()
    found = cross_entropy(out, labels, may_be)
    assert torch.allclose(found, expected, atol=1e-12)
    grads = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, expected))
    assert torch.allclose(*grads, atol=1e-12)
    plain = torch.tensor([0, 3, 2, 0, 3, 1])
    everything = torch.ones(6, 4, dtype=torch.bool)
    assert torch.allclose(cross_entropy(out, plain, everything), F.cross_entropy(out, plain))
    predicted = torch.tensor([0, 1, 2, 1, 2, 1])
    right = is_right(predicted, labels, may_be)
    assert right.tolist() == [True, False, True, True, False, True]


@pytest.mark.parametrize("variant", ["fixed", "linear", "prefix"])
def test_probabilities_among_what_a_cell_may_be(variant):
    head = Classifier.__new__(Classifier)
    torch.nn.Module.__init__(head)
    head.variant = variant
    out = torch.softmax(torch.tensor([[1.0, 2.0, 3.0]]), 1)
    own = head.probabilities(out, torch.tensor([[True, False, True]]))
    whole = head.probabilities(out)
    expected = whole[0, [0, 2]] / whole[0, [0, 2]].sum()
    assert torch.allclose(own[0, [0, 2]], expected) and own[0, 1] == 0


def mixed(reference: anndata.AnnData) -> tuple[anndata.AnnData, np.ndarray]:
    """The reference with two labels' cells of some batches given what stands above both; and which
    these are."""
    out = reference.copy()
    labels = sorted(set(out.obs["label"].astype(str)) - {out.uns[UNLABELED]})
    tree = LabelTree({labels[0]: "above", labels[1]: "above"})
    batches = sorted(out.obs["batch"].unique())
    vague = (out.obs["label"].isin(labels[:2]) & out.obs["batch"].isin(batches[1:])).to_numpy()
    out.obs["label"] = out.obs["label"].astype(str).where(~vague, "above")
    to_their_depth(out.obs, tree, out.uns[UNLABELED])
    keep_tree(out, tree)
    return out, vague


@pytest.mark.parametrize("variant", ["fixed", "linear", "prefix"])
def test_training_at_their_depth(reference, variant):
    from atlasmap.mapping.embed import embed
    from atlasmap.mapping.encode import encode
    from atlasmap.mapping.reference import fit_scanvi, fit_scvi

    cells, vague = mixed(reference)
    registry = Registry.of(cells)
    assert "above" not in registry.labels and vague.sum() > 20
    scvi, _ = fit_scvi(cells, registry, SCVI, 0, CPU)
    longer = replace(SCANVI, train=replace(SCANVI.train, max_epochs=100))
    bundle, _ = fit_scanvi(cells, scvi, longer, variant, 0, CPU)
    soft = embed(bundle.model, encode(registry, cells, CPU)).soft_labels
    below = registry.labels_above["above"]
    assert soft.shape[1] == len(registry.labels)
    mass = soft[vague][:, [registry.labels.index(name) for name in below]].sum(1)
    assert mass.mean() > 0.8


def blocks(rng, label: str, batch: str, n: int, own: slice) -> anndata.AnnData:
    """Cells that have more counts of some genes."""
    rates = np.full(60, 2.0)
    rates[own] = 12.0
    names = [f"{label}{batch}{k}" for k in range(n)]
    obs = pd.DataFrame({"label": label, "batch": batch}, index=names)
    return anndata.AnnData(rng.poisson(rates, (n, 60)).astype(np.float32), obs=obs)


def with_a_third(rng, share: float) -> anndata.AnnData:
    """CD4, CD8 and B cells in two batches, in a third "T" cells of which a share are neither."""
    parts = [
        blocks(rng, label, batch, 60, own)
        for batch in ("b0", "b1")
        for label, own in (("CD4", slice(0, 15)), ("CD8", slice(10, 25)), ("B", slice(40, 60)))
    ]
    n = int(100 * share)
    parts += [blocks(rng, "B", "b2", 60, slice(40, 60)),
              blocks(rng, "T", "b2", 50 - n // 2, slice(0, 15)),
              blocks(rng, "T", "b2 ", 50 - n // 2, slice(10, 25))]  # fmt: skip
    if n:
        parts.append(blocks(rng, "T", "b2  ", n, slice(25, 40)))
    out = anndata.concat(parts)
    out.obs["kind"] = out.obs["batch"] == "b2  "
    out.obs["batch"] = pd.Categorical(out.obs["batch"].str.strip())
    out.X = sparse.csr_matrix(out.X)
    to_their_depth(out.obs, TREE, "?")
    out.obs["label"] = out.obs["label"].astype("category")
    keep_tree(out, TREE)
    out.uns[UNLABELED] = "?"
    return out


@pytest.mark.parametrize(("share", "kept"), [(0.3, True), (0.0, False)])
def test_cells_that_are_none_of_those_below_keep_their_label(rng, share, kept):
    cells = with_a_third(rng, share)
    facts = {"labels": {}, "labels_above": {"T": {"n": 100, "below": ["CD4", "CD8"]}}}
    keep_own_leaves(cells, facts)
    own = (cells.obs["label"] == "T").to_numpy()
    assert facts["labels_above"]["T"]["own"]["kept"] is kept and ("T" in facts["labels"]) is kept
    assert bool((cells.obs["kind"] & own).sum() >= 25) is kept
    assert (own & ~cells.obs["kind"]).sum() <= 3
    registry = Registry.of(cells)
    assert registry.labels_above["T"] == ["CD4", "CD8", *(["T"] if kept else [])]
    assert ("or T itself" in of_depth(facts)[0]) is kept


@pytest.mark.parametrize(
    ("asked", "unlike", "kept"), [(100, 20, True), (300, 20, False), (20, 9, False)]
)
def test_a_few_unlike_cells_are_chance(asked, unlike, kept):
    assert OwnLeaf(asked, np.arange(unlike)).kept is kept


@pytest.mark.parametrize("without", ["b1", "B of b2"])
def test_of_labels_in_one_batch_or_without_others_nothing_is_said(rng, without):
    cells = with_a_third(rng, 0.3)
    batch, label = cells.obs["batch"], cells.obs["label"]
    gone = batch == "b1" if without == "b1" else (batch == "b2") & (label == "B")
    cells = cells[~gone].copy()
    facts = {"labels": {}, "labels_above": {"T": {"n": 100, "below": ["CD4", "CD8"]}}}
    keep_own_leaves(cells, facts)
    assert "own" not in facts["labels_above"]["T"] and not (cells.obs["label"] == "T").any()


def test_the_unlabelled_terms_are_over_the_labels_below_alone(reference, monkeypatch):
    from atlasmap.mapping.encode import encode
    from atlasmap.mapping.reference import fit_scanvi, fit_scvi
    from atlasmap.models import scanvi as module

    cells, vague = mixed(reference)
    registry = Registry.of(cells)
    scvi, _ = fit_scvi(cells, registry, SCVI, 0, CPU)
    model = fit_scanvi(cells, scvi, SCANVI, "fixed", 0, CPU)[0].model
    asked, label_loss = [], module.ops.label_loss

    def spied(encoder, decoder, z, probs, *others, **more):
        asked.append(probs.detach())
        return label_loss(encoder, decoder, z, probs, *others, **more)

    monkeypatch.setattr(module.ops, "label_loss", spied)
    some = np.r_[np.flatnonzero(vague)[:5], np.flatnonzero(~vague)[:5]]
    with torch.no_grad():
        model.loss(encode(registry, cells, CPU).minibatch(some), None, 1.0)
    [probs] = asked
    below = torch.tensor([name in registry.labels_above["above"] for name in registry.labels])
    assert torch.allclose(probs.sum(1), torch.ones(10)) and (probs[:5, ~below] == 0).all()
    assert (probs[5:] > 0).all()


def test_kl_of_labels_is_to_the_labels_that_a_cell_may_have():
    probs = torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]])
    may_be = torch.tensor([[True, True, False], [True, True, True]])
    found = Scanvi.kl_labels(SimpleNamespace(n_labels=3), probs, may_be)
    rows = ((0.25, 0.75), 2), ((0.2, 0.3, 0.5), 3)
    by_hand = [sum(p * np.log(p * n) for p in row) for row, n in rows]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_levels_of_cells_labelled_above_a_level():
    levels = levels_of_tree(TREE, ["B", "CD4", "CD8", "mono"])
    assert levels.vague("level0") == set() and levels.vague("level1") == {"lymphoid", "myeloid"}
    obs = obs_of()
    to_their_depth(obs, TREE, "?")
    part = anndata.AnnData(obs=obs)
    with_levels(part, "label", levels, "?")
    assert list(part.obs["label_level0"]) == [
        "lymphoid", "lymphoid", "lymphoid", "lymphoid", "lymphoid", "myeloid", "?", "myeloid",
    ]  # fmt: skip
    assert list(part.obs["label_level1"]) == ["T", "T", "T", "B", "?", "mono", "?", "?"]


def test_a_reference_of_mixed_depth_is_prepared(prepare, tmp_path):
    def mix(adata):
        own = adata.obs.loc[adata.obs["role"] == "reference", "batch"]
        late = adata.obs["batch"] == max(own)
        adata.obs["cell_type"] = adata.obs["cell_type"].mask(late, adata.obs["lineage"])

    prepared = prepare(mix, replace(CONFIG, label_levels=["lineage"]))
    cells, above = prepared.adata, prepared.facts["labels_above"]
    assert above and all("." not in name for name in above)
    assert all("." in name for name in prepared.facts["labels"])
    write_cells(cells, tmp_path / "reference.h5ad")
    cells = anndata.read_h5ad(tmp_path / "reference.h5ad")
    registry = Registry.of(cells)
    assert registry.labels == sorted(prepared.facts["labels"])
    vague = cells.obs[GIVEN].isin(list(above)).to_numpy()
    assert (registry.label_codes(cells.obs)[vague] >= len(registry.labels)).all()
    assert vague.sum() == sum(fact["n"] for fact in above.values())
    assert (cells.obs.loc[~vague, GIVEN].astype(str) == cells.obs.loc[~vague, "label"]).all()


def test_labels_that_exclude_each_other_are_prepared_as_before(prepare, tmp_path):
    """Where a column of the config's label_levels makes no tree, either."""
    prepared = prepare(None, replace(CONFIG, label_levels=["batch"]))
    assert prepared.facts["labels_above"] == {} and GIVEN not in prepared.adata.obs
    write_cells(prepared.adata, tmp_path / "reference.h5ad")
    registry = Registry.of(anndata.read_h5ad(tmp_path / "reference.h5ad"))
    assert not registry.label_parents and "label_parents" not in registry.as_dict()
