"""What is said of a label's trustworthiness holds: on data where the truth is known."""

import itertools
import json
from copy import deepcopy
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from small import CPU, SCANVI, SCVI, of_rate

from atlasmap.data.label_tree import LabelTree, levels_of_tree
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.evaluation.criticism import draw
from atlasmap.evaluation.opinions import second_opinions
from atlasmap.evaluation.trust import at_level, score_trust
from atlasmap.labels import verdict as verdict_module
from atlasmap.labels.atlas import query_labels
from atlasmap.labels.calibrated import (
    BATCHES,
    PARTS,
    VALIDATION,
    Calibration,
    View,
    calibrate,
    read_calibration,
    read_profiles,
    save_profiles,
)
from atlasmap.labels.confidence import (
    Confidence,
    Held,
    fit_weights,
    pooled,
    risk_threshold,
    set_threshold,
    weights_of_others,
)
from atlasmap.labels.fit import BatchFit, distances_if_missing, fit_batches, local_distance
from atlasmap.labels.folds import folds_of, thinned
from atlasmap.labels.held_out import Mapped, from_batches, from_validation
from atlasmap.labels.novelty import (
    Batch,
    CutOffs,
    choose_score,
    cut_offs,
    relative,
    would_be_found,
)
from atlasmap.labels.profiles import Seen
from atlasmap.labels.verdict import Trust, fitness, judged, set_names
from atlasmap.mapping.embed import embed, posterior_soft_labels, soft_labels_at
from atlasmap.mapping.encode import encode
from atlasmap.mapping.query import map_held_out, map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, reference_latent
from atlasmap.mapping.residuals import residual_score, residuals
from atlasmap.models.likelihoods import CountDistribution
from atlasmap.report.summary import checked_data, shifted_batches, verdict_table
from atlasmap.settings import CalibrationSettings, SurgerySettings, TransferSettings

SURGERY = SurgerySettings(max_epochs=3)
SETTINGS = CalibrationSettings(min_cells_per_label=10, folds=2)


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


FLAT = LabelTree({})  # labels that exclude each other


def learned_from(held: list, folds: list[int]) -> Confidence:
    """A confidence of a risk of 5 %, and sets that cover 90 %."""
    of_others = weights_of_others([one.told for one in held], folds)
    return Confidence.learned(held, folds, of_others, 0.05, 0.9)


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
        return residual_score(scanvi.model, encode(scanvi.registry, batch, CPU), latent)

    fitting = found(counts)
    chemistry = counts * np.where(np.arange(counts.shape[1]) < 15, 4, 1)  # of the whole batch
    assert np.median(found(chemistry)) < 2.5 * np.median(fitting)
    counts[odd, :10] += rng.poisson(10, (odd.sum(), 10))
    values = found(counts)
    assert np.median(values[odd]) > 2 * np.median(values[~odd])
    assert np.quantile(fitting, 0.9) < np.quantile(values[odd], 0.1)


def test_misfit_of_a_batch_knows_nothing_of_other_batches(reference, scanvi):
    cells = encode(scanvi.registry, reference, CPU)
    whole = residual_score(scanvi.model, cells, embed(scanvi.model, cells).mean)
    own = (reference.obs["batch"] == "batch1").to_numpy()
    alone = encode(scanvi.registry, reference[own].copy(), CPU)
    assert np.array_equal(
        whole[own], residual_score(scanvi.model, alone, embed(scanvi.model, alone).mean)
    )


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


# how sure a label is


def told(rng, n=4000, n_labels=5, temperature=2.5):
    """Probabilities that are too sure by a known temperature, and true codes."""
    scores = rng.normal(scale=2, size=(n, n_labels))
    true = softmax(scores, axis=1)
    codes = (true.cumsum(1) > rng.random((n, 1))).argmax(1)
    return softmax(scores * temperature, axis=1), codes, true


def test_a_pool_by_hand(rng):
    by_model, by_genes = np.array([[0.8, 0.2]]), np.array([[0.4, 0.6]])
    assert np.allclose(pooled([1, 0], by_model, by_genes), by_model)
    product = np.array([0.8**0.5 * 0.4**2, 0.2**0.5 * 0.6**2])
    assert np.allclose(pooled([0.5, 2], by_model, by_genes), product / product.sum())


def test_a_known_temperature_and_who_knows_nothing_are_found(rng):
    said, codes, true = told(rng)
    blind = rng.dirichlet(np.ones(5), len(codes))
    for parts, knows in (((said, blind), 0), ((blind, said), 1)):
        weights = fit_weights([(*parts, codes)])
        assert weights[knows] == pytest.approx(1 / 2.5, rel=0.06) and weights[1 - knows] < 0.12
        assert np.abs(pooled(weights, *parts) - true).mean() < 0.02


def test_the_least_probability_of_few_wrong_cells_by_hand():
    p, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    # (wrong + 1) / (n + 1): 1/2, 1/3, 2/4, 2/5
    assert risk_threshold(p, right, 0.35) == 0.8 and risk_threshold(p, right, 0.45) == 0.6
    assert risk_threshold(p, right, 0.1) > 0.9  # nobody is sure enough


def test_confident_cells_are_wrong_as_often_as_was_allowed(rng):
    said, codes, true = told(rng, 20_000)
    given, sure = said.argmax(1), true.max(1)
    at = risk_threshold(sure[:10_000], (given == codes)[:10_000], 0.05)
    new = (sure >= at) & (np.arange(20_000) >= 10_000)
    assert (given != codes)[new].mean() == pytest.approx(0.05, abs=0.01) and new.sum() > 1000


def test_a_threshold_of_sets_by_hand():
    p = 1 - np.arange(1, 21) / 20
    unsure = np.arange(20) < 19  # 19 scores: rank ceil(20 · 0.9) = 18
    assert set_threshold(p, unsure, 0.9) == pytest.approx(18 / 20)
    assert set_threshold(p, np.arange(20) < 8, 0.9) == pytest.approx(8 / 20)  # the largest seen


def held(rng, n=3000, wrong=0.0):
    """Cells whose classifier and genes say the same, and their truth, of some a wrong one."""
    said, codes, _ = told(rng, n)
    truth = np.where(rng.random(n) < wrong, (codes + 1) % 5, codes)
    return Held((said, said, truth), said.argmax(1), said.argmax(1))


def test_sets_of_unsure_cells_cover_as_often_as_asked(rng):
    learned = learned_from([held(rng) for _ in range(3)], [0, 1, 2])
    new, rows = held(rng), np.arange(3000)
    (by_model, by_genes, codes), own = new.told, new.given
    p = pooled(learned.weights, by_model, by_genes)
    unsure = p[rows, own] < learned.threshold
    sets = learned.sets(p, own)
    assert sets[rows, own].all()
    assert sets[rows, codes][unsure].mean() == pytest.approx(0.9, abs=0.025)
    assert (own != codes)[~unsure].mean() < 0.07 and 0.05 < unsure.mean() < 0.95
    other = (own + 1) % 5
    assert learned.sets(p, own, other)[rows, other].all()


def test_the_worst_fold_says_who_is_sure(rng):
    good, bad = held(rng), held(rng, wrong=0.3)
    mixed, fine = (learned_from([good, two], [0, 1]) for two in (bad, good))
    assert mixed.threshold > fine.threshold


def test_who_is_sure_is_learned_of_cells_on_which_classifier_and_genes_agree(rng):
    """Of others nobody is, however probable their label."""
    good = held(rng)
    said, _, truth = good.told
    other = (good.given + 1) % 5
    astray = Held((said, said, other), good.given, other)  # wrong, and the classifier says another
    weights = fit_weights([good.told])
    sure, agree, right, of_truth = good.weighed(weights)
    assert agree.all() and np.array_equal(right, good.given == truth)
    assert not astray.weighed(weights)[1].any() and not astray.weighed(weights)[2].any()
    p = pooled(weights, said, said)
    assert np.allclose(of_truth, p[np.arange(3000), truth]) and np.allclose(sure, p.max(1))
    some = slice(0, 900)  # cells on which they differ, most of them wrong: they do not matter
    both = Held(
        tuple(np.concatenate([a, b[some]]) for a, b in zip(good.told, astray.told, strict=True)),
        *(np.concatenate([getattr(good, key), getattr(astray, key)[some]])
          for key in ("given", "predicted")),
    )  # fmt: skip
    alone, beside = (learned_from([one, one], [0, 1]) for one in (good, both))
    assert beside.threshold < alone.threshold + 0.05 < 1
    nobody = learned_from([astray, astray], [0, 1])
    assert nobody.threshold > 1


# novelty


class Same(Seen):
    """Cells whose correlations are known, whatever they are called."""

    @property
    def opinion(self):
        return self.by_genes

    def renamed(self, codes):
        return self


def batch(rng, fold=0, n=400, like=0.9, other=0.5, residual_if_missing=1.0):
    """A held-out batch of labels a and b: correlation `like` with the own label, `other` with the
    other one."""
    codes = np.repeat([0, 1], n // 2)
    correlation = np.full((n, 2), other) + rng.normal(0, 0.02, (n, 2))
    correlation[np.arange(n), codes] = like + rng.normal(0, 0.02, n)
    certain = np.where(np.eye(2, dtype=bool)[codes], 0.95, 0.05)
    seen = object.__new__(Same)
    vars(seen).update(codes=codes, like=correlation, by_genes=certain)
    misfits = rng.lognormal(0, 0.1, n)
    return Batch(["a", "b"], codes, certain, seen, misfits, fold, np.array(["a", "b"])[codes],
                 misfits * residual_if_missing)  # fmt: skip


@pytest.mark.parametrize("score", ["correlation", "misfit"])
def test_as_many_known_cells_are_novel_as_was_allowed(rng, score):
    cuts = cut_offs([batch(rng, n=4000)], score, 0.05)
    new = batch(rng, n=4000)
    called = cuts.novelty(new.score(score), new.names, new.seen.codes) > 1
    assert called.mean() == pytest.approx(0.05, abs=0.015) and set(cuts.by_label) == {"a", "b"}


def test_of_folds_the_one_that_varies_most_sets_the_cut(rng):
    calm, wild = batch(rng, 0), batch(rng, 1, like=0.8)
    both = cut_offs([calm, wild], "correlation", 0.05)
    assert both.of_all == cut_offs([wild], "correlation", 0.05).of_all
    assert both.by_label["a"] > cut_offs([calm], "correlation", 0.05).by_label["a"]


def test_the_cut_of_a_label_with_few_cells_is_close_to_that_of_all(rng):
    one = batch(rng, n=400)
    scores = one.score("correlation")
    few = cut_offs([one], "correlation", 0.05)
    own = np.quantile(scores[one.seen.codes == 0], 0.95)
    by_hand = (own * 200 + few.of_all * 10) / 210
    assert few.by_label["a"] == pytest.approx(by_hand)
    assert cut_offs([one], "correlation", 0.05, by_label=False).by_label == {}


def test_novelty_by_hand():
    cuts = CutOffs("misfit", np.log(2.0), {"a": np.log(4.0)})
    scores = np.log([2.0, 8.0, 2.0, 6.0])
    found = cuts.novelty(scores, ["a", "b"], np.array([0, 0, 1, 1]))
    assert np.allclose(found, [0.5, 2, 1, 3])


def test_the_score_that_finds_left_out_labels_is_chosen(rng):
    told = {"correlation": batch(rng), "misfit": batch(rng, other=0.9, residual_if_missing=3.0)}
    for best, held in told.items():
        score, found = choose_score([held], 20)
        assert score == best and min(found[best].values()) > 0.99
        assert set(found) == {"correlation", "misfit"} and set(found[best]) == {"a", "b"}
        rows = would_be_found([held], cut_offs([held], score, 0.05), [1.0, 1.0], 20)
        assert [row["label"] for row in rows] == ["a", "b"]
        for row in rows:
            assert row["n"] == 200 and row["low"] < row["detected"] <= row["high"]
            assert row["detected"] > 0.95
    blind = Batch(**vars(told["misfit"]) | {"residual": None, "residual_if_missing": None})
    assert choose_score([blind], 20)[0] == "correlation"
    assert choose_score([told["misfit"]], 10**6) == ("correlation", {})


def test_cells_of_a_label_that_the_twin_lacks_are_not_known(rng):
    whole = batch(rng)
    labels = whole.labels.copy()
    labels[:30] = "c"
    held = Batch(**vars(whole) | {"labels": labels})
    assert list(held.known) == list(range(30, 400)) and len(held.truth) == 370


def test_of_a_label_that_looks_like_another_it_is_said_that_it_would_not_be_found(rng):
    held = batch(rng, other=0.94)
    rows = would_be_found([held], cut_offs([held], "correlation", 0.05), [1.0, 1.0], 20)
    assert max(row["high"] for row in rows) < 0.2


def test_the_auroc_of_a_missing_label_is_scikit_learns(rng):
    held = batch(rng, other=0.8)
    _, found = choose_score([held], 20)
    own = held.labels == "a"
    scores = np.log(1.02 - held.seen.like.max(1)), np.log(1.02 - held.seen.like[:, 1])
    values = np.r_[scores[1][own], scores[0][~own]]
    expected = roc_auc_score(np.repeat([True, False], 200), values)
    assert found["correlation"]["a"] == pytest.approx(expected)


def test_misfit_is_measured_by_the_batch():
    assert np.allclose(relative(np.array([1.0, 2, 4])), [0.5, 1, 2])
    assert np.allclose(relative(np.array([6.0]), np.array([1.0, 2, 4])), [3])


# does the reference fit a batch?


def test_distance_is_one_inside_and_grows_outside(rng):
    reference = rng.normal(size=(800, 4))
    inside = local_distance(reference, rng.normal(size=(400, 4)))
    outside = local_distance(reference, rng.normal(size=(400, 4)) + 8)
    assert 0.8 < np.median(inside) < 1.3 and outside.min() > inside.max()


def test_a_left_out_label_is_far_from_the_rest(rng):
    z = np.concatenate([rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 10])
    labels = np.repeat(["a", "b"], 200)
    found = distances_if_missing(z, labels, z, labels)
    assert np.median(found) > 5 and np.median(local_distance(z, z)) < 1.3


def test_how_strange_a_batch_is_by_hand():
    fit = BatchFit(1.0, 3.0)
    assert fit.batch_shift(np.array([0.5, 0.8, 9.0])) == 0
    assert fit.batch_shift(np.array([1.0, 4.0, 6.0])) == 1.5


def test_what_batches_are_like_is_learned():
    distances = [np.array([1.0, 1.1, 1.2]), np.array([1.3, 1.4, 1.5])]
    labels, missing = np.array(list("xxyyzz")), np.array([2.0, 2, 3, 3, np.nan, np.nan])
    assert fit_batches(distances, missing, labels) == BatchFit(1.4, 2.5)
    assert fit_batches(distances, np.full(6, 1.0), labels) is None
    assert fit_batches(distances, np.full(6, np.nan), labels) is None


# all of it together


@pytest.fixture(scope="module")
def runs(made_reference, tmp_path_factory):
    """Two folds of the reference: models, and held-out batches mapped onto them at two library
    sizes."""
    folder, out = tmp_path_factory.mktemp("folds"), []
    for k, fold in enumerate(folds_of(made_reference, 2)):
        cells = made_reference[fold.kept].copy()
        scvi, _ = fit_scvi(cells, Registry.of(cells), SCVI, 0, CPU)
        twin, split = fit_scanvi(cells, scvi, SCANVI, "fixed", 0, CPU)
        latent = reference_latent(cells, twin, split, CPU)
        out.append(Mapped(k, folder / f"latent_{k}.h5ad", folder / f"mapped_{k}.h5ad"))
        latent.write_h5ad(out[-1].latent)
        write_mapped(twin, fold.held_out(made_reference), latent, out[-1].mapped)
    return out


def write_mapped(twin, held, latent, path):
    """What the command train-held-out does."""
    mapped = []
    for name, depth in itertools.product(held.obs["batch"].cat.categories, (256.0, 64.0)):
        part = thinned(held[held.obs["batch"] == name].copy(), depth)
        mapped.append(map_held_out(deepcopy(twin), part, latent, SURGERY, "per_batch", 0))
        mapped[-1].obs["depth"] = depth
    anndata.concat(mapped, uns_merge="same").write_h5ad(path)


@pytest.fixture(scope="module")
def learned(made_reference, runs):
    """What is learned of them, and profiles of the whole reference."""
    return from_batches(made_reference.copy(), runs, SETTINGS, FLAT)


def test_what_is_learned_is_kept_as_it_is(learned, reference, tmp_path):
    made, profiles = learned
    assert made.scheme == BATCHES and made.batches == sorted(reference.obs["batch"].unique())
    assert [view.depth for view in made.views] == [256, 64] == [one.scale for one in profiles]
    assert made.views[0].n_cells == reference.n_obs
    assert made.batch_fit is None or made.batch_fit.missing > made.batch_fit.typical
    assert all(row["low"] <= row["detected"] <= row["high"] for row in made.left_out)
    made.write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json") == made


def test_a_query_is_given_what_was_learned_for_its_depth(learned):
    made, _ = learned
    assert made.view(1e5).depth == 256 and made.view(1).depth == 64
    assert made.view(129).depth == 256 and made.view(127).depth == 64  # 128: half-way, in octaves


@pytest.mark.parametrize(
    "said", ['{"format": 9}', '{"format": 1, "scaling": {}}', "[]", '{"format": 2, "risk": NaN}']
)
def test_a_calibration_of_another_format_is_refused(said, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(said)
    with pytest.raises(AtlasmapError) as error:
        read_calibration(path)
    assert error.value.code == "CALIBRATION_FORMAT"
    assert "snakemake --forcerun" in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("wrong", ["missing", "text", "labels", "nan", "pickle"])
def test_profiles_that_cannot_be_read_are_refused(learned, wrong, tmp_path):
    path, profiles = tmp_path / "profiles.npz", learned[1]
    n_labels, n_genes = profiles[0].means.shape
    if wrong == "text":
        path.write_text("no")
    elif wrong == "nan":
        from dataclasses import replace

        save_profiles([replace(profiles[0], within=profiles[0].within * np.nan)], path)
    elif wrong == "pickle":
        np.savez(path, **{"means 0": np.array([{}], object)})
    elif wrong == "labels":
        save_profiles(profiles, path)
        n_labels += 1
    with pytest.raises(AtlasmapError) as error:
        read_profiles(path, n_labels, n_genes)
    assert error.value.code == "PROFILES_UNREADABLE"


def test_a_label_that_no_score_could_be_asked_about_is_kept_too(rng, tmp_path):
    """Where it is the only one that was held out, there are no others to tell it from."""
    one = batch(rng)
    alone = Batch(**vars(one) | {"labels": np.full(400, "a")})
    made = calibrate({64.0: [alone]}, ["a", "b"], ["x"], BATCHES, SETTINGS, None, FLAT)
    assert made.left_out[0]["auroc"] is None
    made.write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json") == made


def test_too_few_cells_to_learn_from_are_an_error(rng):
    few = batch(rng, n=10)
    with pytest.raises(AtlasmapError) as error:
        calibrate({64.0: [few]}, ["a", "b"], ["x"], BATCHES, CalibrationSettings(), None, FLAT)
    assert error.value.code == "CALIBRATION_CELLS"


def test_validation_cells_stand_in_and_it_is_said(reference, scanvi):
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    latent = reference_latent(reference, scanvi, split, CPU)
    latent.obs["split"] = np.where(np.arange(latent.n_obs) % 3, "train", "validation")
    made, profiles = from_validation(scanvi.model, reference, latent, 200.0, SETTINGS, FLAT)
    assert made.scheme == VALIDATION and made.batch_fit is None and len(profiles) == 1
    assert made.views[0].cut_offs.by_label == {}
    assert made.views[0].n_cells == (latent.obs["split"] == "validation").sum()


def trusting(scanvi, learned, queries, **changed):
    made, profiles = learned
    made = Calibration(**vars(made) | changed)
    genes = scanvi.registry.genes
    return Trust(scanvi.model, genes, "Unknown", made, profiles, queries.__getitem__)


@pytest.fixture
def mapped(reference, queries, scanvi):
    """The reference's latent and a mapped query batch."""
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    known = reference_latent(reference, scanvi, split, CPU)
    known.obsm["X_latent"] = known.obsm["scanvi_latent_qzm"]
    return known, map_query(scanvi, queries["query0"], SURGERY, "per_batch", 0).latent


def named(known, query, trust, coarse=None):
    return query_labels(known, query, [], "Unknown", TransferSettings(), trust, coarse)


def test_query_cells_get_a_verdict(learned, mapped, queries, scanvi):
    known, query = mapped
    labels = scanvi.registry.labels
    coarse = levels_of_tree(LabelTree({label: label.split(".")[0] for label in labels}), labels)
    found = named(known, query, trusting(scanvi, learned, queries), coarse)
    table, raw, calibrated = found.labels, found.soft_labels, found.calibrated
    of_group = [
        [n for n in labels if n.split(".")[0] == group] for group in table["predicted_level0"]
    ]
    for column, frame in (("confidence_level0", raw), ("calibrated_confidence_level0", calibrated)):
        summed = [frame[group].iloc[k].sum() for k, group in enumerate(of_group)]
        assert np.allclose(summed, table[column], atol=1e-6)
    several = table["prediction_set_size"] > 1
    lineages = table.loc[several, "prediction_set"].str.findall(r"L\d+(?=\.)")
    same = lineages.map(lambda names: names[0] if len(set(names)) == 1 else "")
    assert (table.loc[several, "common_ancestor"] == same).all()
    assert set(table["verdict"]) <= {"confident", "ambiguous", "novel"}
    unknown = (table["novelty"] > 1) & ~table["shifted"]
    assert ((table["verdict"] == "novel") == unknown).all()
    sure = table[table["verdict"] == "confident"]
    assert (sure["prediction_set"] == sure["predicted_label"]).all()
    assert (sure["prediction_set_size"] == 1).all() and not sure["shifted"].any()
    assert (sure["pooled_label"] == sure["predicted_label"]).all()
    names = list(raw.columns[3:])
    assert list(calibrated.columns) == list(raw.columns)
    for label, sure_of in (("predicted_label", "calibrated_confidence"),
                           ("pooled_label", "pooled_confidence")):  # fmt: skip
        own = [calibrated[name].iloc[k] for k, name in enumerate(table[label])]
        assert np.allclose(own, table[sure_of])
    assert (table["predicted_label"] == np.array(names)[raw[names].to_numpy().argmax(1)]).all()
    by_genes = table["genes_confidence"].between(1 / len(names) - 1e-9, 1)
    assert by_genes.all() and set(table["genes_label"]) <= set(names)
    for said, label in zip(table["prediction_set"], table["pooled_label"], strict=True):
        assert label in said.split(" | ")
    shifts = found.shifts
    assert set(shifts["batch"]) == {"query0"} and (shifts["n_shifted"] <= shifts["n"]).all()
    assert shifts["n"].sum() <= query.n_obs and set(shifts["label"]) <= set(labels)


def test_the_majority_of_opinions_is_weighed_as_held_out_batches_taught(
    learned, mapped, queries, scanvi
):
    known, query = mapped
    made, _ = learned
    opinions = {"classifier", "genes", "knn", "random_forest", "logistic"}
    assert all(set(view.opinions) == opinions for view in made.views)
    known = known[known.obs["label"] != "Unknown"]
    reference = known.obsm["X_latent"], known.obs["label"].astype(str).to_numpy()
    for alone in ("genes", "classifier", "knn"):
        weights = dict.fromkeys(opinions, 0.0) | {alone: 1.0}
        views = [replace(view, opinions=weights) for view in made.views]
        trust = trusting(scanvi, learned, queries, views=views)
        table, seconds = second_opinions(*reference, query, trust, 15, 0, "Unknown")
        assert (table["majority"] == table[alone]).all() and seconds["genes"] > 0
    weighed = named(known, query, trust).labels
    assert list(table["genes"]) == list(weighed["genes_label"])


def test_cells_in_another_order_are_given_the_same(learned, mapped, queries, scanvi):
    """And so are batches that are mapped together."""
    known, query = mapped
    whole = named(known, query, trusting(scanvi, learned, queries)).labels
    back = query[::-1].copy()
    turned = named(known, back, trusting(scanvi, learned, queries)).labels.loc[whole.index]
    assert (turned["verdict"] == whole["verdict"]).mean() > 0.98
    assert np.allclose(turned["novelty"], whole["novelty"], rtol=0.05)
    other = query.copy()
    other.obs["batch"] = "other"
    both = anndata.concat([query, other], uns_merge="same", index_unique="-")
    cells = {"query0": queries["query0"].copy(), "other": queries["query0"].copy()}
    cells["query0"].obs_names += "-0"
    cells["other"].obs_names += "-1"
    found = named(known, both, trusting(scanvi, learned, cells)).labels
    for name in ("query0", "other"):
        own = found[found["batch"] == name]
        assert np.array_equal(own["novelty"], whole["novelty"])
        assert np.array_equal(own["verdict"], whole["verdict"])


def test_verdicts_by_hand(rng, monkeypatch):
    whole = batch(rng, n=40)
    predicted = np.where(np.arange(40) < 5, 1 - whole.seen.codes, whole.seen.codes)
    whole = Batch(**vars(whole) | {"predicted": predicted})  # five of another mind than the genes
    whole.seen.like[5:10] = 0.1  # unlike any label
    moved = np.isin(np.arange(40), [5, 6, 7])
    monkeypatch.setattr(verdict_module, "shifted", lambda seen, novel: novel & moved)
    confidence = Confidence([1.0, 1.0], 0.9, 0.0)
    view = View(64.0, 40, [1.0, 1.0], CutOffs("correlation", np.log(1.02 - 0.7), {}), confidence)
    table, _ = judged(view, whole, pd.RangeIndex(40), FLAT, "Unknown")
    expected = ["ambiguous"] * 8 + ["novel"] * 2 + ["confident"] * 30
    assert list(table["verdict"]) == expected and list(table["shifted"]) == list(moved)
    assert list(table["prediction_set_size"]) == [2] * 5 + [1] * 35
    assert (table["prediction_set"][10:] == table["pooled_label"][10:]).all()
    assert (table["safe_label"][10:] == table["pooled_label"][10:]).all()
    assert set(table["safe_label"][:10]) == {"Unknown"} and set(table["safe_level"][:10]) == {
        "none"
    }


def test_in_a_batch_that_the_reference_does_not_fit_nobody_is_confident(
    learned, mapped, queries, scanvi
):
    known, query = mapped
    far = np.median(local_distance(known.obsm["X_latent"], query.obsm["X_latent"]))
    views = [
        replace(
            view,
            confidence=replace(view.confidence, threshold=0.0),
            cut_offs=CutOffs("correlation", 1e9, {}),
        )
        for view in learned[0].views
    ]
    for fit, some in [(BatchFit(far, far + 1), True), (BatchFit(far - 2, far - 1), False)]:
        trust = trusting(scanvi, learned, queries, batch_fit=fit, views=views)
        verdict = named(known, query, trust).labels["verdict"]
        assert (verdict == "confident").any() == some


def test_whether_the_reference_fits_is_said_of_a_batch(learned, mapped, queries, scanvi):
    known, query = mapped
    far = np.median(local_distance(known.obsm["X_latent"], query.obsm["X_latent"]))
    for fit, word in [
        (BatchFit(far, far + 1), "fits"),
        (BatchFit(far - 0.7, far + 0.3), "doubtful"),
        (BatchFit(far - 2, far - 1), "does not fit"),
        (None, "not known"),
    ]:
        trust = trusting(scanvi, learned, queries, batch_fit=fit)
        found = fitness(named(known, query, trust).labels)
        assert found["reference"] == word and found["n"] == query.n_obs
        assert word != "does not fit" or found["confident"] == 0
        assert found["novel"] + found["ambiguous"] + found["confident"] == pytest.approx(1)


def test_of_parts_of_one_batch_there_is_one_cut_and_no_fit(reference, rng):
    made = calibrate({64.0: [batch(rng)]}, ["a", "b"], ["held out: x"], PARTS, SETTINGS, None, FLAT)
    assert made.views[0].cut_offs.by_label == {} and made.batch_fit is None
    assert json.loads(json.dumps(vars(made)["scheme"])) == PARTS


def test_a_run_ends_with_the_batches_that_do_not_fit():
    rows = [("b1", "fixed", 0.1, "fits"), ("b1", "linear", 0.7, "doubtful"),
            ("b2", "fixed", 0, "fits"), ("b3", "fixed", 1.6, "does not fit")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["batch", "variant", "strangeness", "reference"])
    said = shifted_batches(table.assign(strategy="per_batch"))
    assert said.splitlines() == [
        "reference doubtful: batch b1, strangeness 0.70 (linear, per_batch)",
        "reference does not fit: batch b3, strangeness 1.60 (fixed, per_batch)",
    ]
    assert shifted_batches(pd.DataFrame(columns=["seed", "variant"])) == ""  # none was calibrated


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
    assert found["coverage_ambiguous"] == 1 and found["set_size_ambiguous"] == 2
    assert found["novel_auroc"] == 1 and found["known_called_novel"] == 0
    assert found["new_called_novel"] == 1 and found["accuracy_confident"] == 0.5
    assert found["accuracy_ambiguous"] == 1
    assert score_trust(cells, {"z"}, "Unknown") is None
    groups = {"a": "A", "b": "A", "c": "C"}
    cells = cells.assign(predicted_x="A", truth_x=["A", "A", "A", "A", "Unknown"])
    coarse = at_level(cells, "x", groups)
    assert list(coarse["prediction_set"]) == ["A"] * 5
    assert list(coarse["prediction_set_size"]) == [1] * 5
    found = score_trust(coarse, {"A", "C"}, "Unknown")
    assert found["n"] == 4 and found["coverage"] == 1 and found["accuracy_confident"] == 1
    assert found["known_called_novel"] == 0.25  # a new label of a group that the reference has
    longer = cells.assign(prediction_set="ab")  # a name that holds another
    assert score_trust(longer, {"a", "b"}, "Unknown")["coverage"] == 0
