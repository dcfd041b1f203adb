"""Splits, minibatches, the loop: sizes, schedules, repeatability, the NaN stop."""

import numpy as np
import pytest
import torch
from scipy import sparse
from small import CPU, SCVI, states_equal

from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, warmed_by_step
from atlasmap.models import ops
from atlasmap.models.compiled.sparse import SparseRows
from atlasmap.models.random import keyed_generator, keyed_seed
from atlasmap.models.scvi import Scvi
from atlasmap.models.vae import Shape
from atlasmap.settings import ScanviSettings, ScviSettings, TotalviTrainSettings, TrainSettings
from atlasmap.training.cells import Cells, Counts
from atlasmap.training.history import expected_calibration_error, peer_calibration_error
from atlasmap.training.loop import Plateau, epochs_by_size, fit, kl_weight
from atlasmap.training.objectives import SemiSupervised, Unsupervised
from atlasmap.training.split import Split, minibatches, split_by_labels, split_cells


def test_split_is_the_peers():
    order = np.random.RandomState(7).permutation(1000)
    split = split_cells(np.arange(1000), 0.9, 7)
    assert (split.validation == order[:100]).all() and (split.train == order[100:]).all()


@pytest.mark.parametrize(
    ("n", "move", "sizes"),
    [
        (145, 128, (131, 14)),  # three left over stay
        (143, 128, (128, 15)),  # one left over moves, for scVI
        (143, None, (129, 14)),  # and stays for scANVI
        (2, 128, (2, 0)),
        (3, 3, (3, 0)),
    ],
)
def test_left_over_training_cells_move_for_scvi_alone(n, move, sizes):
    split = split_cells(np.arange(n), 0.9, 0, move)
    assert (len(split.train), len(split.validation)) == sizes


def test_labelled_and_unlabelled_cells_split_separately():
    labels = np.array([0] * 50 + [-1] * 30 + [1] * 50)
    split = split_by_labels(labels, 0.9, 0)
    assert (labels[split.validation] >= 0).sum() == 10
    assert (labels[split.validation] < 0).sum() == 3
    assert sorted(np.concatenate([split.train, split.validation])) == list(range(130))


@pytest.mark.parametrize("n", [1, 2, 3, 127, 128, 129, 130, 131, 256, 257, 1000])
def test_no_minibatch_of_one_or_two(n):
    parts = minibatches(np.arange(n), 128)
    assert (np.concatenate(parts) == np.arange(n)).all()
    assert all(len(part) >= min(3, n) for part in parts)
    assert all(len(part) <= 130 for part in parts)


def test_counts_rows_are_scipys(bodies, rng):
    matrix = sparse.random(50, 20, 0.2, format="csr", random_state=0, dtype=np.float32)
    matrix.data[::7] = 0.0  # stored zeros are no entries
    index = rng.permutation(50)[:13]
    rows = Counts.of(matrix, CPU).rows(torch.as_tensor(index))
    np.testing.assert_array_equal(ops.dense(rows).numpy(), matrix[index].toarray())
    np.testing.assert_allclose(rows.sum(1, keepdim=True), matrix[index].sum(1), rtol=1e-6)
    assert isinstance(rows, torch.Tensor) == (bodies == "plain")
    if bodies == "auto":
        expected = SparseRows.of(ops.dense(rows))
        for name in ("starts", "gene", "value"):
            assert getattr(rows, name).tolist() == getattr(expected, name).tolist()


def make_cells(n=60, genes=12, labels=None) -> Cells:
    counts = np.random.default_rng(1).poisson(1.0, (n, genes)) + 1
    return Cells(
        Counts.of(sparse.csr_matrix(counts), CPU), torch.zeros(n, 1, dtype=torch.int64), None,
        torch.as_tensor(np.full(n, -1) if labels is None else labels),
        np.array([f"cell{k}" for k in range(n)]),
    )  # fmt: skip


def small_model(genes=12) -> Scvi:
    settings = ScviSettings(n_hidden=8, n_latent=3)
    return Scvi(settings, Shape(genes, (2,)), keyed_generator(0, "test"))


def test_nan_stops_and_names_the_cells(bodies):
    cells = make_cells()
    cells.counts.data[cells.counts.indptr[17]] = torch.nan
    split = Split(np.arange(60), np.arange(0))
    objective = Unsupervised(small_model(), cells, split, 20, 0, "test")
    with pytest.raises(AtlasmapError) as error:
        fit(objective, TrainSettings(max_epochs=2), "test")
    assert error.value.code == "TRAINING_NAN"
    step = next(k for k, (i, _) in enumerate(objective.steps(0)) if 17 in i)
    assert f"epoch 0, step {step}" in error.value.found
    assert "(20 in all)" in error.value.found


def test_history_has_the_schedule_and_both_splits(bodies):
    split = split_cells(np.arange(60), 0.8, 0)
    objective = Unsupervised(small_model(), make_cells(), split, 20, 0, "test")
    settings = TrainSettings(max_epochs=5, n_epochs_kl_warmup=4, check_val_every_n_epoch=2)
    table = fit(objective, settings, "test").history.table()
    weights = table[table["metric"] == "kl_weight"].set_index("epoch")["value"]
    assert weights.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert table[table["split"] == "validation"]["epoch"].unique().tolist() == [1, 3, 4]
    train = table[(table["split"] == "train") & (table["epoch"] == 3)].set_index("metric")["value"]
    assert train["elbo"] == pytest.approx(
        train["reconstruction_loss"] + train["kl_local"], rel=1e-6
    )


def test_minibatches_are_keyed_by_epoch_purpose_and_seed():
    split = Split(np.arange(60), np.arange(0))
    orders = {
        tuple(np.concatenate([step for step, _ in objective.steps(epoch)]))
        for objective in (
            Unsupervised(small_model(), make_cells(), split, 20, seed, purpose)
            for seed in (0, 1)
            for purpose in ("a", "b")
        )
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_early_stopping_and_plateau():
    plateau = Plateau()
    for value in [5, 4, 4.5, 4.2]:
        plateau.update(value)
    assert plateau.since == 2
    split = split_cells(np.arange(60), 0.8, 0)
    objective = Unsupervised(small_model(), make_cells(), split, 20, 0, "test")
    settings = TrainSettings(
        max_epochs=500, early_stopping=True, early_stopping_patience=3, learning_rate=0.05
    )
    outcome = fit(objective, settings, "test")
    assert "no better validation ELBO" in outcome.stopped
    assert outcome.history.table()["epoch"].max() < 499


def test_gradient_clip_changes_training(bodies):
    split = split_cells(np.arange(60), 0.8, 0)
    norms = []
    for clip in (None, 1e-6):
        model = small_model()
        start = model.scale.weight.clone()
        objective = Unsupervised(model, make_cells(), split, 20, 0, "test")
        fit(objective, TrainSettings(max_epochs=1, gradient_clip=clip), "test")
        norms.append(float((model.scale.weight - start).norm()))
    assert norms[1] < norms[0] / 100


def test_epochs_rule():
    assert [epochs_by_size(n) for n in (700, 20_000, 40_000, 10**8)] == [400, 400, 200, 1]


def semi(labels, batch_size=10, **given) -> SemiSupervised:
    cells = make_cells(len(labels), labels=labels)
    split = Split(np.arange(len(labels)), np.arange(0))
    given = {"classification_ratio": 50.0, "n_samples_per_label": None} | given
    return SemiSupervised(small_model(), cells, split, batch_size, 0, "semi", **given)


def test_scanvi_steps_replay_the_shorter_list():
    labels = np.array([0] * 12 + [-1] * 38)
    steps = semi(labels).steps(0)
    assert len(steps) == 5
    labelled = [tuple(step[1]) for step in steps]
    assert sorted(np.concatenate([s[0] for s in steps])) == list(range(50))
    # 12 labelled cells: two left over join the one minibatch of ten, which is replayed
    assert len(labelled[0]) == 12 and len(set(labelled)) == 1


def test_n_samples_per_label_thins_anew_each_epoch_and_small_classes_give_all():
    labels = np.array([0] * 30 + [1] * 4 + [-1] * 10)
    objective = semi(labels, n_samples_per_label=6)
    first, second = (objective.labelled(objective.split.train, epoch) for epoch in (0, 1))
    assert np.bincount(labels[first]).tolist() == [6, 4]
    assert set(first) != set(second)


def test_same_seed_same_bits_and_another_seed_differs(bodies, reference):
    registry = Registry.of(reference)
    bundles = [fit_scvi(reference, registry, SCVI, seed, CPU)[0] for seed in (0, 0, 1)]
    states = [bundle.model.state_dict() for bundle in bundles]
    assert states_equal(states[0], states[1])
    assert not states_equal(states[0], states[2])
    assert bundles[0].history.equals(bundles[1].history)


def test_ambient_randomness_is_never_drawn(reference):
    registry = Registry.of(reference)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    fit_scvi(reference, registry, SCVI, 0, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_scanvi_learns_labels(bodies, reference, scvi):
    settings = ScanviSettings(train=TrainSettings(max_epochs=150))
    bundle, _ = fit_scanvi(reference, scvi, settings, "fixed", 0, CPU)
    table = bundle.history[bundle.history["split"] == "train"]
    accuracy = table[table["metric"] == "accuracy"]["value"].to_numpy()
    assert accuracy[-1] > 0.75 > accuracy[0] + 0.3
    assert {"classification_loss", "calibration_error", "ece"} <= set(table["metric"])


def test_ece_of_known_cases():
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    assert expected_calibration_error(confidence, torch.tensor([1, 1, 1, 0])) == pytest.approx(0.05)
    assert expected_calibration_error(torch.ones(4), torch.ones(4)) == 0


def test_the_peers_calibration_error_is_torchmetrics():
    # torchmetrics 1.x: multiclass_calibration_error of [[1, 0], [1, 0], [.97, .03], [.96, .04]]
    # against [1, 0, 0, 0] is 0.2675: a confidence of exactly 1 has a bin of its own
    confidence, correct = torch.tensor([1.0, 1.0, 0.97, 0.96]), torch.tensor([0, 1, 1, 1])
    assert peer_calibration_error(confidence, correct) == pytest.approx(0.2675)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.2325)


def test_weights_that_the_last_step_spoilt_are_noticed():
    split = Split(np.arange(60), np.arange(0))
    objective = Unsupervised(small_model(), make_cells(), split, 60, 0, "test")
    settings = TrainSettings(max_epochs=1)
    object.__setattr__(settings, "learning_rate", 1e39)  # which no config may say
    with pytest.raises(AtlasmapError) as error:
        fit(objective, settings, "test")
    assert error.value.code == "TRAINING_NAN" and "weights" in error.value.expected


def test_keyed_seeds_depend_on_every_part():
    seeds = {keyed_seed(*key) for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", "b")]}
    assert len(seeds) == 5
    assert keyed_seed(0, "ab", "c") != keyed_seed(0, "a", "bc")


@pytest.mark.parametrize(
    ("settings", "expected"),  # of epoch 2, after 30 steps
    [
        (TrainSettings(n_epochs_kl_warmup=8), 2 / 8),
        (TrainSettings(n_epochs_kl_warmup=8, n_steps_kl_warmup=40), 30 / 40),
        (TrainSettings(n_epochs_kl_warmup=None), 1.0),
        (warmed_by_step(TotalviTrainSettings(), 100), 30 / 75),
        (warmed_by_step(TotalviTrainSettings(n_epochs_kl_warmup=8), 100), 2 / 8),
        (warmed_by_step(TotalviTrainSettings(n_steps_kl_warmup=60), 100), 30 / 60),
    ],
)
def test_what_the_kl_terms_are_warmed_up_by(settings, expected):
    assert kl_weight(settings, epoch=2, n_steps=30) == expected
