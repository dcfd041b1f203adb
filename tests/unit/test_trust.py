"""What is said of a label's trustworthiness holds: on data where the truth is known."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from scipy.optimize import check_grad
from scipy.special import softmax
from small import CPU, SCANVI, SCVI, of_rate

from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.evaluation.criticism import draw
from atlasmap.evaluation.trust import score_trust
from atlasmap.labels import calibration as scaling_module
from atlasmap.labels.atlas import Trust, query_labels
from atlasmap.labels.calibrated import Calibration, calibrate, read_calibration
from atlasmap.labels.calibration import Scaling, cross_scaled, fit_scaling
from atlasmap.labels.conformal import Thresholds, fit_thresholds, quantile
from atlasmap.labels.held_out import held_out_batches, split_off
from atlasmap.labels.novelty import (
    BatchFit,
    CutOffs,
    HeldOut,
    batch_medians,
    cut_offs,
    distances_if_missing,
    fit_batches,
    fit_cut_offs,
    local_distance,
)
from atlasmap.labels.tree import (
    LabelTree,
    levels_of_columns,
    levels_of_tree,
    read_levels,
    rolled_up,
)
from atlasmap.labels.verdict import fitness, set_names
from atlasmap.mapping.embed import embed, posterior_soft_labels, soft_labels_at
from atlasmap.mapping.encode import encode
from atlasmap.mapping.query import map_held_out, map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent
from atlasmap.mapping.residuals import misfit, residuals
from atlasmap.models.likelihoods import CountDistribution
from atlasmap.report.summary import checked_data, strange_batches, verdict_table
from atlasmap.settings import CalibrationSettings, SurgerySettings, TransferSettings

SURGERY = SurgerySettings(max_epochs=3)


# variance and misfit


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
def test_variance_of_counts_is_scipys(kind):
    rate = torch.tensor([[0.3, 2.0, 40.0]], dtype=torch.float64)
    theta = torch.tensor([[0.5, 2.0, 10.0]], dtype=torch.float64)
    logits = torch.tensor([[-1.0, 0.0, 2.0]], dtype=torch.float64)
    p = (theta / (theta + rate)).numpy()
    nb = stats.nbinom(theta.numpy(), p)
    zeros = torch.sigmoid(logits).numpy()
    second = nb.var() + nb.mean() ** 2
    px, expected = {
        "poisson": (CountDistribution(*of_rate(rate)), stats.poisson(rate.numpy()).var()),
        "nb": (CountDistribution(*of_rate(rate), theta), nb.var()),
        "zinb": (
            CountDistribution(*of_rate(rate), theta, logits),
            (1 - zeros) * second - ((1 - zeros) * nb.mean()) ** 2,
        ),
    }[kind]
    assert np.allclose(px.variance.numpy(), expected, rtol=1e-12)


def test_residuals_of_drawn_counts_have_unit_variance(reference, scanvi):
    cells = encode(scanvi.registry, reference, CPU)
    latent = embed(scanvi.model, cells).mean
    found = residuals(scanvi.model, cells, np.arange(len(cells)), latent)
    scvi, whole = scanvi.model.scvi, cells.minibatch(np.arange(len(cells)))
    with torch.no_grad():
        px = scvi.generative(
            torch.tensor(latent), torch.log(whole.x.sum(1, keepdim=True)), whole, None
        )
        by_hand = ((whole.x - px.mean) / px.variance.sqrt()).clamp(-10, 10).numpy()
    assert np.allclose(found, by_hand, atol=1e-4)


def test_cells_of_a_kind_of_their_own_misfit(reference, scanvi, rng):
    """Counts drawn from the decoder fit it; a tenth of them is given genes of its own."""
    batch = reference[reference.obs["batch"] == "batch0"].copy()
    batch = anndata.concat([batch] * 8, index_unique="-")
    cells = encode(scanvi.registry, batch, CPU)
    whole, latent = cells.minibatch(np.arange(len(cells))), embed(scanvi.model, cells).mean
    library = torch.log(whole.x.sum(1, keepdim=True))
    with torch.no_grad():
        px = scanvi.model.scvi.generative(torch.tensor(latent), library, whole, None)
    counts = draw(px, rng)
    counts[:, 0] += counts.sum(1) == 0
    odd = rng.random(len(cells)) < 0.1

    def found(counts):
        batch.X = sparse.csr_matrix(counts.astype(np.float32))
        return misfit(scanvi.model, encode(scanvi.registry, batch, CPU), latent)

    fitting = found(counts)
    chemistry = counts * np.where(np.arange(counts.shape[1]) < 15, 4, 1)  # of the whole batch
    assert np.median(found(chemistry)) < 2.5 * np.median(fitting)
    counts[odd, :10] += rng.poisson(10, (odd.sum(), 10))
    values = found(counts)
    assert np.median(values[odd]) > 2 * np.median(values[~odd])
    assert np.quantile(fitting, 0.9) < np.quantile(values[odd], 0.1)


def test_misfit_of_a_batch_knows_nothing_of_other_batches(reference, scanvi):
    cells = encode(scanvi.registry, reference, CPU)
    whole = misfit(scanvi.model, cells, embed(scanvi.model, cells).mean)
    own = (reference.obs["batch"] == "batch1").to_numpy()
    alone = encode(scanvi.registry, reference[own].copy(), CPU)
    assert np.array_equal(whole[own], misfit(scanvi.model, alone, embed(scanvi.model, alone).mean))


# probabilities


def test_without_doubt_the_average_is_the_classifier(scanvi, rng):
    z = rng.normal(size=(7, 5)).astype(np.float32)
    found = posterior_soft_labels(scanvi.model, z, np.zeros_like(z), 8)
    assert np.allclose(found, soft_labels_at(scanvi.model, z), atol=1e-6)


def test_doubt_makes_less_sure_and_cells_do_not_matter_to_each_other(scanvi, rng):
    z = rng.normal(size=(600, 5)).astype(np.float32)
    var = np.full_like(z, 4.0)
    found = posterior_soft_labels(scanvi.model, z, var, 64)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert found.max(1).mean() < soft_labels_at(scanvi.model, z).max(1).mean()
    some = rng.permutation(600)[:50]
    again = posterior_soft_labels(scanvi.model, z[some], var[some], 64)
    assert np.abs(again - found[some]).max() < 1e-6


def overconfident(rng, n_cells=4000, n_labels=5, temperature=2.5):
    """Soft labels that are too sure by a known temperature, and true codes."""
    scores = rng.normal(scale=2, size=(n_cells, n_labels))
    true = softmax(scores, axis=1)
    codes = (true.cumsum(1) > rng.random((n_cells, 1))).argmax(1)
    return softmax(scores * temperature, axis=1), codes, true


def test_a_known_temperature_is_found(rng):
    said, codes, true = overconfident(rng)
    scaling = fit_scaling(said, codes, "temperature")
    assert scaling.temperature == pytest.approx(2.5, rel=0.05)
    assert np.abs(scaling(said) - true).mean() < 0.01
    assert (scaling(said).argmax(1) == said.argmax(1)).all()


def test_vector_scaling_finds_a_bias_and_follows_the_slope(rng):
    said, codes, _ = overconfident(rng)
    tilted = softmax(np.log(said) + np.array([3.0, 0, 0, 0, 0]), axis=1)
    plain, vector = (fit_scaling(tilted, codes, method) for method in ("temperature", "vector"))
    rows = np.arange(len(codes))
    loss = [-np.log(scaling(tilted)[rows, codes]).mean() for scaling in (plain, vector)]
    assert loss[1] < loss[0] - 0.02
    assert vector.biases[0] < -0.5


def test_the_slope_of_vector_scaling_is_right(rng, monkeypatch):
    """Against finite differences, through the very function that is minimised."""
    said, codes, _ = overconfident(rng, 200, 3)
    seen = {}

    def keep(function, start, **_):
        seen["f"] = function
        return type("Found", (), {"x": start})

    monkeypatch.setattr(scaling_module, "minimize", keep)
    fit_scaling(said, codes, "vector")
    at = rng.normal(size=6)
    error = check_grad(lambda x: seen["f"](x)[0], lambda x: seen["f"](x)[1], at)
    assert error < 1e-5


# prediction sets


def test_quantile_by_hand():
    scores = np.arange(1, 20) / 20  # 19 scores: rank ceil(20 · 0.9) = 18
    assert quantile(scores, 0.9) == pytest.approx(18 / 20)
    assert quantile(scores[:8], 0.9) == 1.0  # too few to exclude anything


@pytest.mark.parametrize("min_cells", [50, 10**6])
def test_sets_cover_as_often_as_asked(rng, min_cells):
    said, codes, _ = overconfident(rng, 8000)
    given = said.argmax(1)
    assert (given == codes).mean() < 0.85
    thresholds = fit_thresholds(said[:4000], codes[:4000], given[:4000], 0.9, min_cells)
    sets = thresholds.sets(said[4000:], given[4000:])
    covered = sets[np.arange(4000), codes[4000:]]
    assert abs(covered.mean() - 0.9) < 0.02
    assert all(thresholds.own) == (min_cells == 50)


def test_no_set_is_empty_or_lacks_the_given_label(rng):
    """Also where the classifier is right more often than was asked: a set of others alone says
    nothing that a scientist could use."""
    codes = rng.choice(4, 3000)
    given = np.where(rng.random(3000) < 0.98, codes, (codes + 1) % 4)
    said = np.full((3000, 4), 0.01) + 0.9 * np.eye(4)[given] + 0.05 * np.eye(4)[(given + 2) % 4]
    thresholds = fit_thresholds(said, codes, given, 0.9, 50)
    sets = thresholds.sets(said, given)
    assert sets[np.arange(3000), given].all() and (sets.sum(1) == 1).all()
    other = (given + 2) % 4  # a label that is not the likeliest
    assert thresholds.sets(said, other)[np.arange(3000), other].all()


def test_cells_do_not_scale_themselves(rng):
    """With a weight and a bias a label and few cells, in-sample probabilities are too good."""
    codes = rng.choice(6, 60)
    said = rng.dirichlet(np.ones(6), 60)
    own = fit_scaling(said, codes, "vector")(said)[np.arange(60), codes]
    others = cross_scaled(said, codes, "vector")[np.arange(60), codes]
    assert np.log(others).mean() < np.log(own).mean() - 0.05
    assert np.allclose(cross_scaled(said, codes, "vector").sum(1), 1)
    assert (cross_scaled(said, codes, "vector") == cross_scaled(said, codes, "vector")).all()


def test_a_hard_label_is_covered_better_with_a_threshold_of_its_own(rng):
    """Of labels of unlike difficulty the pooled threshold leaves the hard one out."""
    codes = rng.choice(3, 9000, p=[0.6, 0.3, 0.1])
    right = np.array([0.95, 0.9, 0.4])[codes]
    said = np.full((9000, 3), 0.02)
    sure = np.where(rng.random(9000) < right, codes, (codes + 1) % 3)
    said[np.arange(9000), sure] = rng.uniform(0.5, 0.9, 9000)
    said /= said.sum(1, keepdims=True)
    old, new = slice(0, 6000), slice(6000, None)
    coverage = {}
    for least in (50, 10**6):
        thresholds = fit_thresholds(said[old], codes[old], sure[old], 0.9, least)
        sets = thresholds.sets(said[new], sure[new])
        covered = sets[np.arange(3000), codes[new]]
        coverage[least] = pd.Series(covered).groupby(codes[new]).mean()
    assert coverage[50][2] > coverage[10**6][2] + 0.2


# novelty


def test_distance_is_one_inside_and_grows_outside(rng):
    reference = rng.normal(size=(800, 4))
    inside = local_distance(reference, rng.normal(size=(400, 4)))
    outside = local_distance(reference, rng.normal(size=(400, 4)) + 8)
    assert 0.8 < np.median(inside) < 1.3 and outside.min() > inside.max()


def test_a_batch_is_its_own_measure():
    medians = batch_medians(np.array([1.0, 2, 3, 10, 20, 30]), np.repeat(["a", "b"], 3))
    assert list(medians) == [2, 2, 2, 20, 20, 20]


@pytest.fixture
def held(rng):
    """Misfit tells left-out labels, distance does not."""
    labels, n = np.repeat(["a", "b"], 500), 1000
    distance, misfit_ = rng.lognormal(0, 0.2, n), rng.lognormal(0, 0.1, n)
    batches = np.repeat("batch", n)
    return HeldOut(labels, batches, distance, distance, misfit_, misfit_ * 2)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_as_many_known_cells_are_novel_as_was_allowed(held, share):
    cuts = cut_offs(held, share, 0.05)
    assert (cuts.novelty(held.distance, held.misfit) > 1).mean() == pytest.approx(0.05, abs=0.002)


def test_the_score_that_finds_left_out_labels_is_given_the_weight(held):
    cuts, found = fit_cut_offs(held, 0.05, 20)
    assert cuts.misfit is not None and {row["label"] for row in found} == {"a", "b"}
    assert min(row["detected"] for row in found) > 0.95 and found[0]["auroc"] > 0.99
    worse = HeldOut(
        held.labels, held.batches, held.distance, held.distance * 3, held.misfit, held.misfit
    )
    cuts, found = fit_cut_offs(worse, 0.05, 20)
    assert cuts.distance is not None and min(row["detected"] for row in found) > 0.9


def test_without_misfit_the_distance_decides(held):
    blind = HeldOut(held.labels, held.batches, held.distance, held.distance * 4, None, None)
    cuts, _ = fit_cut_offs(blind, 0.05, 20)
    assert cuts.misfit is None and cuts.novelty(np.array([99.0]), None) > 1


def test_both_scores_count_where_labels_do_not_tell(held):
    """Too few cells of each, or neither score better than the other."""
    for least in (20, 10**6):
        same = HeldOut(held.labels, held.batches, held.distance, held.distance * 1.5, held.misfit,
                       held.misfit * 1.25)  # fmt: skip
        cuts, _ = fit_cut_offs(same, 0.05, least)
        assert cuts.distance is not None and cuts.misfit is not None


def test_cut_offs_hold_in_a_batch_that_varies_more(rng):
    batches, n = np.repeat(["calm", "wild"], 500), 1000
    spread = np.where(batches == "calm", 0.1, 0.5)
    misfit_ = np.exp(rng.normal(size=n) * spread)
    held = HeldOut(np.repeat("a", n), batches, misfit_, misfit_, misfit_, misfit_)
    cuts = cut_offs(held, 0.0, 0.05)
    called = (cuts.novelty(misfit_, misfit_) > 1)[batches == "wild"].mean()
    assert 0.04 < called < 0.08  # of both batches together twice that would be called


def test_a_left_out_label_is_far_from_the_rest(rng):
    z = np.concatenate([rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 10])
    labels = np.repeat(["a", "b"], 200)
    found = distances_if_missing(z, labels, z, labels)
    assert np.median(found) > 5 and np.median(local_distance(z, z)) < 1.3


# what is held out


def test_held_out_batches_leave_every_label_a_cell(rng):
    batch = rng.choice([f"b{k}" for k in range(9)], 3000)
    obs = pd.DataFrame({"batch": batch, "label": rng.choice(["x", "y"], 3000)})
    obs.loc[obs.index[:4], ["batch", "label"]] = ["b3", "rare"]
    chosen = held_out_batches(obs, 0.34, "Unknown")
    cells = obs["batch"].isin(chosen).mean()
    assert "b3" not in chosen and 0.15 < cells <= 0.34
    assert chosen == held_out_batches(obs.sample(frac=1, random_state=0), 0.34, "Unknown")
    assert not held_out_batches(obs[obs["batch"] == "b1"], 0.34, "Unknown")
    own = obs.assign(label=obs["batch"])  # each batch has a label that no other has
    assert not held_out_batches(own, 0.34, "Unknown")


def test_where_no_batch_can_be_spared_cells_stand_in(reference):
    one = reference[reference.obs["batch"] == "batch0"].copy()
    twin, out = split_off(one, 0.34)
    assert twin.n_obs + out.n_obs == one.n_obs and 0.2 < out.n_obs / one.n_obs < 0.5
    assert set(out.obs["batch"]) == {"held out: batch0"}
    assert not set(twin.obs_names) & set(out.obs_names)


# a tree of labels

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


# all of it together


@pytest.fixture
def learned(reference):
    """A twin, its held-out cells mapped onto it, and what was learned of them."""
    twin_cells, out = split_off(reference, 0.34)
    registry = Registry.of(twin_cells)
    scvi, _ = fit_scvi(twin_cells, registry, SCVI, 0, CPU)
    twin, split = fit_scanvi(twin_cells, scvi, SCANVI, "fixed", 0, CPU)
    latent = reference_latent(twin_cells, twin, split, CPU)
    held = map_held_out(twin, out, latent, SURGERY, "per_batch", 0)
    settings = CalibrationSettings(min_cells_per_label=10)
    made = calibrate(twin.model, registry.labels, held, latent, "held-out batches", settings)
    return made, held


def test_what_is_learned_is_kept_as_it_is(learned, tmp_path):
    made, held = learned
    assert made.n_cells == held.n_obs and made.batches == sorted(held.obs["batch"].unique())
    made.write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json") == made
    (tmp_path / "calibration.json").write_text('{"format": 9}')
    with pytest.raises(AtlasmapError) as error:
        read_calibration(tmp_path / "calibration.json")
    assert error.value.code == "CALIBRATION_FORMAT"


def test_a_label_that_no_held_out_cell_could_have_is_treated_as_the_others(learned, scanvi, rng):
    made, _ = learned
    fewer = Calibration(**vars(made) | {
        "labels": made.labels[1:],
        "scaling": Scaling("temperature", made.scaling.weights[1:], made.scaling.biases[1:]),
        "thresholds": Thresholds(
            0.9, made.thresholds.values[1:], made.thresholds.own[1:]),
    })  # fmt: skip
    z = rng.normal(size=(20, 5)).astype(np.float32)
    names = scanvi.registry.labels
    p = fewer.probabilities(scanvi.model, names, z, np.ones_like(z))
    assert np.allclose(p, made.probabilities(scanvi.model, names, z, np.ones_like(z)))
    assert fewer.sets(p, names, p.argmax(1)).shape == p.shape


def test_too_few_cells_to_learn_from_are_an_error(learned, reference, scanvi):
    _, held = learned
    with pytest.raises(AtlasmapError) as error:
        calibrate(scanvi.model, scanvi.registry.labels, held[:5], held, "x", CalibrationSettings())
    assert error.value.code == "CALIBRATION_CELLS"


def test_query_cells_get_a_verdict(learned, reference, queries, scanvi):
    made, _ = learned
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    known = reference_latent(reference, scanvi, split, CPU)
    known.obsm["X_latent"] = known.obsm["scanvi_latent_qzm"]
    trust = Trust(scanvi.model, made)
    query = map_query(scanvi, queries["query0"], SURGERY, "per_batch", 0).latent
    labels = scanvi.registry.labels
    tree = LabelTree({label: label.split(".")[0] for label in labels})
    coarse = levels_of_tree(tree, labels)
    table, raw, calibrated = query_labels(
        known, query, [], "Unknown", TransferSettings(), trust, coarse
    )
    of_group = [
        [n for n in labels if n.split(".")[0] == group] for group in table["predicted_level0"]
    ]
    for column, frame in (("confidence_level0", raw), ("calibrated_confidence_level0", calibrated)):
        summed = [frame[group].iloc[k].sum() for k, group in enumerate(of_group)]
        assert np.allclose(summed, table[column], atol=1e-6)
    assert (table["confidence_level0"] >= table["confidence"] - 1e-6).all()
    several = table["prediction_set_size"] > 1
    lineages = table.loc[several, "prediction_set"].str.findall(r"L\d+(?=\.)")
    same = lineages.map(lambda names: names[0] if len(set(names)) == 1 else "")
    assert (table.loc[several, "common_ancestor"] == same).all()
    assert set(table["verdict"]) <= {"confident", "ambiguous", "novel"}
    assert (table["verdict"] == "novel").equals(table["novelty"] > 1)
    sure = table[table["verdict"] == "confident"]
    assert (sure["prediction_set"] == sure["predicted_label"]).all()
    assert (sure["prediction_set_size"] == 1).all()
    names = list(raw.columns[1:])
    assert list(calibrated.columns) == list(raw.columns)
    own = [calibrated[label].iloc[k] for k, label in enumerate(table["predicted_label"])]
    assert np.allclose(own, table["calibrated_confidence"])
    assert (table["predicted_label"] == np.array(names)[raw[names].to_numpy().argmax(1)]).all()
    assert table["confidence"].mean() != table["calibrated_confidence"].mean()


def test_a_batch_that_is_strange_as_a_whole_is_novel_as_a_whole(
    learned, reference, queries, scanvi
):
    made, _ = learned
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    known = reference_latent(reference, scanvi, split, CPU)
    known.obsm["X_latent"] = known.obsm["scanvi_latent_qzm"]
    query = map_query(scanvi, queries["query0"], SURGERY, "per_batch", 0).latent
    far = np.median(local_distance(known.obsm["X_latent"], query.obsm["X_latent"]))
    for fit, word in [
        (BatchFit(far, far + 1), "fits"),
        (BatchFit(far - 0.7, far + 0.3), "doubtful"),
        (BatchFit(far - 2, far - 1), "does not fit"),
    ]:
        trust = Trust(scanvi.model, Calibration(**vars(made) | {"batch_fit": fit}))
        table, *_ = query_labels(known, query, [], "Unknown", TransferSettings(), trust)
        found = fitness(table)
        assert found["reference"] == word and found["n"] == query.n_obs
        assert (found["novel"] == 1) == (word == "does not fit")
        assert found["novel"] + found["ambiguous"] + found["confident"] == pytest.approx(1)
    assert made.batch_fit is None or made.batch_fit.missing > made.batch_fit.typical
    trust = Trust(scanvi.model, Calibration(**vars(made) | {"batch_fit": None}))
    table, *_ = query_labels(known, query, [], "Unknown", TransferSettings(), trust)
    assert fitness(table)["reference"] == "not known"


def test_how_far_batches_may_be_is_not_learned_of_batches_that_were_seen(
    learned, scanvi, reference
):
    _, held = learned
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    latent = reference_latent(reference, scanvi, split, CPU)
    settings = CalibrationSettings(min_cells_per_label=10)
    stand_in = held.copy()
    stand_in.obs["batch"] = [f"held out: {name}" for name in stand_in.obs["batch"]]
    for cells, scheme in [(held, "validation cells"), (stand_in, "held-out batches")]:
        made = calibrate(scanvi.model, scanvi.registry.labels, cells, latent, scheme, settings)
        assert made.batch_fit is None


def test_how_strange_a_batch_is_by_hand():
    batches = np.array(["a", "a", "a", "b", "b", "b"])
    fit = BatchFit(1.0, 3.0)
    found = fit.strangeness(np.array([0.5, 0.8, 9.0, 1.0, 4.0, 6.0]), batches)
    assert found.tolist() == [0, 0, 0, 1.5, 1.5, 1.5]


def test_what_batches_are_like_is_learned(rng):
    distance, batches = np.array([1.0, 1.1, 1.2, 1.3, 1.4, 1.5]), np.array(list("aaabbb"))
    labels, missing = np.array(list("xxyyzz")), np.array([2.0, 2, 3, 3, np.nan, np.nan])
    assert fit_batches(distance, batches, missing, labels) == BatchFit(1.4, 2.5)
    assert fit_batches(distance, batches, distance / 2, labels) is None
    assert fit_batches(distance, batches, np.full(6, np.nan), labels) is None


def test_a_run_ends_with_the_batches_that_do_not_fit():
    rows = [("b1", "fixed", 0.1, "fits"), ("b1", "linear", 0.7, "doubtful"),
            ("b2", "fixed", 0, "fits"), ("b3", "fixed", 1.6, "does not fit")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["batch", "variant", "strangeness", "reference"])
    said = strange_batches(table.assign(strategy="per_batch"))
    assert said.splitlines() == [
        "reference doubtful: batch b1, strangeness 0.70 (linear, per_batch)",
        "reference does not fit: batch b3, strangeness 1.60 (fixed, per_batch)",
    ]
    assert strange_batches(pd.DataFrame(columns=["seed", "variant"])) == ""  # none was calibrated


def test_a_run_ends_with_its_verdicts_in_cells():
    keys = {"seed": 0, "variant": "fixed", "strategy": "joint"}
    of_batch = {"confident": 0.5, "ambiguous": 0.3, "novel": 0.2}
    rows = [keys | of_batch | {"batch": name, "n": n} for name, n in (("a", 100), ("b", 30))]
    *_, last = verdict_table(pd.DataFrame(rows)).strip().splitlines()
    assert last.split() == ["fixed", "joint", "130", "65", "39", "26"]
    *_, last = verdict_table(pd.DataFrame([*rows, rows[0] | {"seed": 1}])).strip().splitlines()
    assert last.split() == ["1", "fixed", "joint", "100", "50", "30", "20"]
    assert verdict_table(pd.DataFrame(columns=["seed", "variant"])) == ""


def test_a_check_ends_with_what_was_found():
    reference = {"n_cells": 2500, "n_genes": 400, "batches": {"a": 1, "b": 2}, "labels": {"B": 1}}
    queries = {"q": {"n_cells": 420, "gene_overlap": 0.897}, "p": {"n_cells": 1000}}
    said = checked_data({"reference": reference, "queries": queries})
    assert "2,500 cells, 2 batches, 1 labels, 400 genes" in said
    assert "1,420 query cells in 2 batches" in said and "89.7%" in said
    assert "with all of" in checked_data({"reference": reference, "queries": {"p": {"n_cells": 9}}})
    assert "no query batches" in checked_data({"reference": reference, "queries": {}})


def test_sets_are_named_the_likeliest_first():
    p = np.array([[0.2, 0.5, 0.3]])
    assert set_names(np.array([[True, True, False]]), p, ["a", "b", "c"]) == [["b", "a"]]
    assert set_names(np.zeros((1, 3), bool), p, ["a", "b", "c"]) == [[]]


def test_scores_of_sets_and_verdicts_by_hand():
    cells = pd.DataFrame(
        {
            "truth": ["a", "a", "b", "new", "Unknown"],
            "predicted_label": ["a", "b", "b", "a", "a"],
            "prediction_set": ["a", "b", "a | b", "a", "a"],
            "prediction_set_size": [1, 1, 2, 1, 1],
            "novelty": [0.1, 0.2, 0.3, 2.0, 9.0],
            "verdict": ["confident", "confident", "ambiguous", "novel", "novel"],
        }
    )
    found = score_trust(cells, {"a", "b"}, "Unknown")
    assert found["n"] == 3 and found["n_not_in_reference"] == 1
    assert found["coverage"] == pytest.approx(2 / 3) and found["set_size"] == pytest.approx(4 / 3)
    assert found["novel_auroc"] == 1 and found["known_called_novel"] == 0
    assert found["new_called_novel"] == 1 and found["accuracy_confident"] == 0.5
    assert found["accuracy_ambiguous"] == 1
    assert score_trust(cells, {"z"}, "Unknown") is None
    longer = cells.assign(prediction_set="ab")  # a name that holds another
    assert score_trust(longer, {"a", "b"}, "Unknown")["coverage"] == 0
    assert CutOffs(None, None).novelty(np.ones(3), None).tolist() == [0, 0, 0]
