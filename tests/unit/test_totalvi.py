"""totalVI: likelihood and loss against torch and scipy, training, surgery, the adversary."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from citeseq import N_PROTEINS, SETTINGS, citeseq
from scipy import stats
from sklearn.metrics import roc_auc_score

from atlasmap.audit.matched import Causes, members
from atlasmap.audit.strategies import Query, matched
from atlasmap.bundle import load, load_delta, save, save_delta
from atlasmap.data.registry import PROTEINS, Registry
from atlasmap.mapping.certificate import witness
from atlasmap.mapping.denoise import denoise
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode, shape_of
from atlasmap.mapping.protein_background import background_prior
from atlasmap.mapping.query import as_train_settings, map_query, without_unknown
from atlasmap.mapping.reference import fit_totalvi, of_labelled, reference_latent
from atlasmap.models.likelihoods import nb_first_probability, nb_mixture_log_prob
from atlasmap.models.random import Noise, keyed_generator
from atlasmap.settings import DenoiseSettings, TotalviSurgerySettings
from atlasmap.training.adversary import Adversarial
from atlasmap.training.split import Split

CPU = torch.device("cpu")
SURGERY = TotalviSurgerySettings(max_epochs=6, batch_size=32)


@pytest.fixture(scope="module")
def reference():
    """A trained reference: cells and bundle."""
    cells = citeseq({"r0": 150, "r1": 120})
    registry = Registry.of(cells)
    bundle, split = fit_totalvi(cells, registry, SETTINGS, 0, CPU)
    return cells, bundle, split


def test_the_mixture_is_that_of_scipy(rng):
    x = torch.tensor(rng.integers(0, 300, (40, 3)), dtype=torch.float64)
    first, second, theta = (torch.tensor(rng.gamma(2, s, (40, 3))) for s in (5.0, 60.0, 1.0))
    logits = torch.tensor(rng.normal(0, 3, (40, 3)))
    ours = nb_mixture_log_prob(x, first, second, theta, logits)
    share = 1 / (1 + np.exp(-logits.numpy()))

    def nb(mean):
        return stats.nbinom.pmf(x, theta, theta / (theta + mean))

    expected = np.log(share * nb(first) + (1 - share) * nb(second))
    assert np.abs(ours - expected).max() < 1e-6
    bayes = share * nb(first) / np.exp(expected)
    assert np.abs(nb_first_probability(x, first, second, theta, logits) - bayes).max() < 1e-6


def test_gradients_of_the_mixture(rng):
    x = torch.tensor(rng.integers(0, 20, (4, 2)), dtype=torch.float64)
    inputs = [torch.tensor(rng.gamma(2, 2, (4, 2)), requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *values: nb_mixture_log_prob(x, *values), inputs)


def expected_loss(model, cells, decoded, posterior, weight) -> torch.Tensor:
    """The loss again, from torch.distributions."""
    from torch.distributions import Bernoulli, LogNormal, Normal, kl_divergence

    py, codes = decoded.protein, cells.codes[0]
    efficiency = torch.exp(model.log_efficiency(codes))
    gene = -decoded.rna.log_prob(cells.x).sum(1)
    share = torch.sigmoid(py.mixing)

    def nb(mean):
        from torch.distributions import NegativeBinomial

        return NegativeBinomial(py.theta, probs=mean / (mean + py.theta)).log_prob(cells.proteins)

    either = torch.stack(
        [nb(efficiency * py.background) + share.log(),
         nb(efficiency * py.foreground) + (1 - share).log()]
    )  # fmt: skip
    protein = -(either.logsumexp(0) * cells.measured).sum(1)
    kl_z = kl_divergence(
        Normal(posterior.latent.mean, posterior.latent.var.sqrt()), Normal(0.0, 1.0)
    ).sum(1)
    prior = Normal(
        model.background_prior_mean(codes), torch.exp(model.background_prior_log_sd(codes))
    )
    back = (kl_divergence(Normal(py.back_mean, py.back_sd), prior) * cells.measured).sum(1)
    back = back - LogNormal(0.0, 1.0).log_prob(efficiency).sum(1)
    back = back - 1e-3 * Bernoulli(logits=py.mixing).log_prob(torch.ones(())).sum(1)
    return (gene + weight * (protein + kl_z + back)).mean()


@pytest.mark.parametrize("lacking", [None, {"r1": [0, 3]}])
def test_the_loss_is_that_of_the_paper_with_scvi_tools_terms(bodies, lacking):
    data = citeseq({"r0": 30, "r1": 20}, lacking=lacking)
    registry = Registry.of(data)
    model = load_untrained(registry)
    torch.nn.init.normal_(model.log_efficiency.reference)
    cells = encode(registry, data, CPU).minibatch(np.arange(50))

    def noise():
        return Noise(keyed_generator(0, "t"), dropout=False, batch_statistics=False)

    loss = model.loss(cells, noise(), 0.3)
    again = noise()
    posterior = model.inference(cells, again)
    decoded = model.decode(posterior.z, posterior.library, cells, again)
    expected = expected_loss(model, cells, decoded, posterior, 0.3)
    assert torch.isclose(loss.total, expected, rtol=1e-5)
    sums = {name: float(value) for name, value in loss.sums.items()}
    assert np.isclose(sums["elbo"], sums["reconstruction_loss"] + sums["kl_local"])


def load_untrained(registry: Registry):
    """A model with start values."""
    from atlasmap.models.totalvi import Totalvi

    rng = keyed_generator(0, "weights")
    return Totalvi(SETTINGS, shape_of(registry), len(registry.labels), rng)


def test_what_was_not_measured_has_no_say_in_the_likelihood(bodies):
    data = citeseq({"r0": 20, "r1": 20}, lacking={"r1": [2]})
    registry = Registry.of(data)
    model = load_untrained(registry)
    cells = encode(registry, data, CPU).minibatch(np.arange(40))
    assert not cells.measured[20:, 2].any() and (cells.proteins[20:, 2] == 0).all()
    posterior = model.inference(cells, None)
    decoded = model.decode(posterior.z, posterior.library, cells, None)
    before, _ = model.protein_terms(cells, decoded.protein)
    cells.proteins[20:, 2] = 1000.0
    after, _ = model.protein_terms(cells, decoded.protein)
    assert torch.equal(before, after)


def test_training_learns_the_types_and_the_foreground(bodies, reference):
    cells, bundle, split = reference
    elbo = bundle.history.query("metric == 'elbo' and split == 'validation'")["value"].to_numpy()
    assert elbo[-1] < 0.8 * elbo[0]
    said = embed(bundle.model, encode(bundle.registry, cells, CPU))
    named = np.array(bundle.registry.labels)[said.soft_labels.argmax(1)]
    assert (named == cells.obs["label"]).mean() > 0.95
    assert bundle.about["classifier"]["n_epochs"] > 1
    latent = reference_latent(cells, bundle, split, CPU)
    assert "totalvi_latent_qzm" in latent.obsm and latent.obsm["soft_labels"].shape[1] == 3


def test_kl_and_proteins_are_warmed_up_by_step(reference):
    _, bundle, split = reference
    weights = bundle.history.query("metric == 'kl_weight' and split == 'train'")["value"].to_numpy()
    per_epoch = -(-len(split.train) // 64)
    n_warm = int(0.75 * 270)
    ended = np.arange(1, 101) * per_epoch / n_warm
    assert np.allclose(weights[:100], np.minimum(1, ended)) and weights[99] == 1


def test_the_background_starts_where_single_cells_have_it():
    cells = citeseq({"r0": 80, "r1": 80}, lacking={"r1": list(range(8))})
    rows = background_prior(cells, ["r0", "r1"], SETTINGS, 0)
    mean, sd = rows["background_prior_mean"], rows["background_prior_log_sd"].exp()
    assert mean.shape == (2, N_PROTEINS) and (mean[0] == mean[0, 0]).all()
    assert 1.0 < mean[0, 0] < 2.6  # the background's mean count is 6
    assert 0 < sd[0, 0] < 0.2
    assert mean[1, 0] == 0 and sd[1, 0] == pytest.approx(0.05)  # four proteins are too few
    plain = replace(SETTINGS, empirical_protein_background_prior=False)
    rows = background_prior(cells, ["r0"], plain, 0)
    assert (rows["background_prior_mean"] == 3).all()
    assert (rows["background_prior_log_sd"] == 0).all()


def mapped(reference, query, strategy="per_batch", settings=SURGERY):
    cells, bundle, _ = reference
    fresh = copy.deepcopy(bundle)
    return map_query(fresh, query, settings, strategy, 0, probe=cells[:50].copy())


def test_surgery_moves_the_query_and_nothing_of_the_reference(bodies, reference, tmp_path):
    _, bundle, _ = reference
    query = citeseq({"q0": 90}, seed=3, lacking={"q0": [1, 5]})
    mapping = mapped(reference, query)
    proof = mapping.certificate["reference"]
    assert proof["unchanged"] and {"latent", "golden_py_denoised"} <= set(proof["compared"])
    assert mapping.certificate["query"]["displacement"]["median"] > 0
    model = mapping.bundle.model
    for name in ("log_efficiency", "background_prior_mean", "background_prior_log_sd"):
        rows = getattr(model, name).appended
        assert rows.shape == (1, N_PROTEINS) and rows.requires_grad
    assert (model.log_efficiency.appended != 0).any()
    save(bundle, tmp_path / "reference")
    save_delta(mapping.bundle, tmp_path / "delta", mapping.new)
    again = load_delta(tmp_path / "delta", load(tmp_path / "reference", CPU))
    ours = embed(model, encode(mapping.bundle.registry, query, CPU)).mean
    assert np.array_equal(embed(again.model, encode(again.registry, query, CPU)).mean, ours)


def test_a_reference_that_moves_is_noticed(reference):
    cells, bundle, _ = reference
    fresh = copy.deepcopy(bundle)
    before = witness(fresh.model, fresh.registry, cells[:20].copy())
    fresh.model.foreground.outs["scale"].bias.data += 0.5
    after = witness(fresh.model, fresh.registry, cells[:20].copy())
    assert not np.array_equal(before.golden["py_denoised"], after.golden["py_denoised"])


def test_as_scvi_tools_leaves_efficiency_untrained(reference):
    query = citeseq({"q0": 60}, seed=3)
    mapping = mapped(reference, query, settings=replace(SURGERY, as_scvi_tools=True))
    assert (mapping.bundle.model.log_efficiency.appended == 0).all()


def test_strategies_agree_in_matched_mode(reference):
    _, bundle, _ = reference
    query = citeseq({"q0": 70, "q1": 20}, seed=5, lacking={"q1": [4]})  # two steps, and one
    request = Query(["q0", "q1"], query, SURGERY, 0)
    together = matched(copy.deepcopy(bundle), request, Causes())
    for name in ("q0", "q1"):
        at = (query.obs["batch"] == name).to_numpy()
        alone = mapped(reference, query[at].copy()).latent.obsm["X_latent"]
        assert np.array_equal(alone, together.mean[at])
    for cause in ("updates", "scale", "momentum"):
        other = matched(copy.deepcopy(bundle), request, Causes(**{cause: True}))
        assert np.abs(other.mean - together.mean).max() > 1e-3, cause


def test_cells_without_proteins_are_mapped(reference):
    query = citeseq({"rna": 60}, seed=4, lacking={"rna": list(range(N_PROTEINS))})
    mapping = mapped(reference, query)
    named = mapping.latent.obsm["soft_labels"].argmax(1)
    truth = pd.Categorical(query.obs["label"], mapping.bundle.registry.labels).codes
    assert (named == truth).mean() > 0.8


def test_an_adversary_is_trained_where_a_batch_lacks_a_protein(bodies, reference):
    _, whole, _ = reference
    cells = citeseq({"r0": 60, "r1": 60}, lacking={"r1": [0]})
    registry = Registry.of(cells)
    settings = replace(SETTINGS, train=replace(SETTINGS.train, max_epochs=2))
    bundle, _ = fit_totalvi(cells, registry, settings, 0, CPU)
    assert bundle.about["adversarial"] and not whole.about["adversarial"]
    without, _ = fit_totalvi(cells, registry, replace(settings, adversarial=False), 0, CPU)
    ours, theirs = bundle.model.encoder.mean.weight, without.model.encoder.mean.weight
    assert not torch.equal(ours, theirs)
    weights = bundle.history.query("metric == 'kl_weight'")["value"].to_numpy()
    assert np.allclose(weights[:2], [2 * 2 / 90, 2 * 4 / 90])  # the warm-up is twice as fast


def test_the_adversary_learns_and_what_it_costs_to_be_told_apart():
    cells = citeseq({"r0": 60, "r1": 60, "r2": 60}, lacking={"r1": [0]})
    registry = Registry.of(cells)
    split = Split(np.arange(180), np.arange(0))
    model, encoded = load_untrained(registry), encode(registry, cells, CPU)
    objective = Adversarial(model, encoded, split, 64, 0, "t")
    step = (np.arange(64), None)

    def noise():
        return Noise(keyed_generator(0, "t"), dropout=False, batch_statistics=False)

    plain = objective.loss(step, noise(), 0.25)
    logs = torch.log_softmax(objective.adversary(plain.z, None), -1)
    with_it = objective.training_loss(step, noise(), 0.25)
    batch = encoded.codes[:64, 0]
    of_others = [logs[k, [b for b in range(3) if b != batch[k]]].mean() for k in range(64)]
    assert torch.isclose(with_it.total - plain.total, -0.75 * torch.stack(of_others).mean())
    ended = (objective.training_loss(step, noise(), 1.0), objective.loss(step, noise(), 1.0))
    assert torch.equal(ended[0].total, ended[1].total)
    objective._last = (torch.randn(64, 5) + batch[:, None] * 3.0, batch)
    for _ in range(200):
        objective.after_step(Noise(keyed_generator(1, "t")), 0.0)
    guess = objective.adversary(objective._last[0], Noise(keyed_generator(1, "t"), False)).argmax(1)
    assert (guess == batch).float().mean() > 0.95


def test_the_adversary_does_not_learn_from_what_fools_it():
    cells = citeseq({"r0": 60, "r1": 60}, lacking={"r1": [0]})
    registry = Registry.of(cells)
    split, found = Split(np.arange(120), np.arange(0)), []
    for fool in (True, False):
        model, encoded = load_untrained(registry), encode(registry, cells, CPU)
        objective = Adversarial(model, encoded, split, 64, 0, "t")
        loss = objective.training_loss((np.arange(64), None), Noise(keyed_generator(0, "t")), 0.0)
        if fool:
            loss.total.backward()
        objective.after_step(Noise(keyed_generator(1, "t")), 0.0)
        found.append(objective.adversary.out.weight)
    assert torch.equal(*found)


def test_denoised_cells(bodies, reference):
    cells, bundle, _ = reference
    out = denoise(bundle, cells[:60].copy(), DenoiseSettings(n_samples=10))
    assert out.layers["denoised_rna"].shape == (60, cells.n_vars)
    np.testing.assert_allclose(out.layers["denoised_rna"].sum(1), 1e4, rtol=1e-4)
    for place, name in ((out.layers, "denoised_rna"), (out.obsm, "denoised_protein")):
        lower, mean, upper = (place[name + end] for end in ("_lower", "", "_upper"))
        assert (lower <= upper).all() and ((mean >= lower) & (mean <= upper)).mean() > 0.9
    share = out.obsm["foreground_probability"]
    assert ((share >= 0) & (share <= 1)).all()
    few = denoise(bundle, cells[20:30].copy(), DenoiseSettings(n_samples=10))
    for name in ("denoised_protein", "foreground_probability"):  # whoever is around a cell
        np.testing.assert_allclose(few.obsm[name], out.obsm[name][20:30], rtol=1e-4, atol=1e-5)


def test_foreground_is_told_from_background(reference):
    cells, bundle, _ = reference
    out = denoise(bundle, cells, DenoiseSettings(n_samples=5, rna=False))
    truth = cells.obsm[PROTEINS] > 40  # types have means of 6 or 120
    score = roc_auc_score(truth.ravel(), out.obsm["foreground_probability"].ravel())
    assert score > 0.9 and "denoised_rna" not in out.layers


def test_missing_proteins_are_imputed_as_in_batches_that_have_them(reference):
    whole = citeseq({"q0": 120}, seed=3)
    lacking = whole.copy()
    lacking.obsm[PROTEINS][:, [1, 5, 7]] = np.nan
    mapping = mapped(reference, lacking)
    out = denoise(mapping.bundle, lacking, DenoiseSettings(n_samples=5, rna=False))
    of_type = whole.obs["label"].to_numpy()
    for protein in (1, 5, 7):
        imputed = np.log1p(out.obsm["denoised_protein"][:, protein])
        true = np.log1p(whole.obsm[PROTEINS][:, protein])
        means = [[x[of_type == t].mean() for t in "abc"] for x in (imputed, true)]
        if np.ptp(means[1]) > 1:  # types differ in it
            assert np.corrcoef(imputed, true)[0, 1] > 0.6
            assert np.argmax(means[0]) == np.argmax(means[1])


def test_denoised_reference_cells_are_the_same_after_surgery(reference):
    cells, bundle, _ = reference
    few, settings = cells[:40].copy(), DenoiseSettings(n_samples=3)
    before = denoise(bundle, few, settings)
    mapping = mapped(reference, citeseq({"q0": 60}, seed=3))
    after = denoise(mapping.bundle, few, settings)
    for name in ("denoised_protein", "foreground_probability"):
        assert np.array_equal(before.obsm[name], after.obsm[name])
    assert np.array_equal(before.layers["denoised_rna"], after.layers["denoised_rna"])


def test_updates_as_in_joint_training_warm_up_as_it_does():
    data = citeseq({"q0": 60, "q1": 20}, seed=5)
    registry = Registry.of(data)
    cells = encode(registry, data, CPU)
    settings = partial(as_train_settings, SURGERY)
    batches = members(load_untrained(registry), cells, ["q0", "q1"], 0, settings, 0)
    assert [member.settings.n_steps_kl_warmup for member in batches] == [45, 15]
    assert [member.joint.n_steps_kl_warmup for member in batches] == [60, 60]


@pytest.mark.parametrize("labelled", [[0, 1, 2], list(range(60))])
def test_few_labelled_cells_are_enough_for_a_classifier(labelled):
    cells = citeseq({"r0": 60, "r1": 50})
    names = cells.obs["label"].to_numpy().copy()
    keep = np.zeros(110, bool)
    keep[labelled] = True
    cells.obs["label"] = np.where(keep, names, "Unknown")
    cells.obs.loc[cells.obs_names[:3], "label"] = list("abc")
    registry = Registry.of(cells)
    few = replace(SETTINGS.train, max_epochs=2)
    bundle, _ = fit_totalvi(cells, registry, replace(SETTINGS, train=few), 0, CPU)
    assert bundle.about["classifier"]["n_train"] >= 3
    keys = ["epoch", "split", "metric"]
    assert not bundle.history.duplicated(keys).any()


def test_a_label_that_only_validation_cells_have_is_learned():
    labels = np.array([0, 0, 1, 1, 2, -1])
    split = of_labelled(labels, Split(np.array([0, 1, 2, 5]), np.array([3, 4])))
    assert list(split.train) == [0, 1, 2, 4] and list(split.validation) == [3]


def test_what_no_reference_batch_has_is_not_measured(reference):
    _, bundle, _ = reference
    lacks = {name: ["p3"] for name in bundle.registry.batches}
    known = replace(bundle.registry, proteins_missing=lacks)
    query = citeseq({"q0": 30}, seed=3)
    out = without_unknown(query, known)
    assert np.isnan(out.obsm[PROTEINS][:, 3]).all() and not np.isnan(query.obsm[PROTEINS]).any()
    assert without_unknown(query, bundle.registry) is query


def test_the_delta_says_what_the_query_lacks(reference):
    mapping = mapped(reference, citeseq({"q0": 40}, seed=3, lacking={"q0": [1]}))
    assert mapping.bundle.registry.proteins_missing == {"q0": ["p1"]}


def test_denoised_genes_sum_up_where_the_library_is_inferred():
    cells = citeseq({"r0": 40, "r1": 40})
    settings = replace(
        SETTINGS, use_observed_lib_size=False, train=replace(SETTINGS.train, max_epochs=1)
    )
    bundle, _ = fit_totalvi(cells, Registry.of(cells), settings, 0, CPU)
    out = denoise(bundle, cells, DenoiseSettings(n_samples=2))
    np.testing.assert_allclose(out.layers["denoised_rna"].sum(1), 1e4, rtol=1e-4)
