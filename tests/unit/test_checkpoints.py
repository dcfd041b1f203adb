"""A training that was killed and taken up again gives the bundle of an undisturbed one."""

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from citeseq import SETTINGS as CITESEQ
from citeseq import citeseq
from small import SCANVI, SCVI, states_equal
from test_training import make_cells, small_model
from tqdm import tqdm

from atlasmap.bundle import Bundle, load, save
from atlasmap.data.registry import Registry
from atlasmap.device import pick_device
from atlasmap.files import sha256
from atlasmap.mapping.query import map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi, fit_totalvi
from atlasmap.settings import SurgerySettings, TrainSettings
from atlasmap.training import checkpoint
from atlasmap.training.checkpoint import LAST, PREVIOUS, Checkpoints, Store
from atlasmap.training.loop import Training, fit
from atlasmap.training.objectives import Unsupervised
from atlasmap.training.split import split_cells
from atlasmap.training.stopping import JobTimes, Stopped, Watch

LONG = TrainSettings(max_epochs=12)
SURGERY = SurgerySettings(max_epochs=30)


@pytest.fixture
def device(request):
    """The CPU, or where a test asks for it the GPU, as the package picks it."""
    yield pick_device(getattr(request, "param", "cpu"))
    torch.set_deterministic_debug_mode("default")


ON_CPU_AND_GPU = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no GPU"))],
    indirect=True,
)  # fmt: skip


@pytest.fixture
def trainings(reference, scvi, scanvi, queries, tmp_path, device):
    """name → a training of that kind, given its checkpoints; each call starts from the same."""
    save(scvi, tmp_path / "scvi")
    save(scanvi, tmp_path / "scanvi")
    registry = Registry.of(reference)
    settings, semi = replace(SCVI, train=LONG), replace(SCANVI, train=LONG)

    def semi_supervised(checkpoints: Checkpoints | None) -> Bundle:
        start = load(tmp_path / "scvi", device)
        return fit_scanvi(reference, start, semi, "fixed", 0, device, checkpoints)[0]

    def surgery(checkpoints: Checkpoints | None) -> Bundle:
        start = load(tmp_path / "scanvi", device)
        return map_query(start, queries["query0"], SURGERY, "per_batch", 0, checkpoints).bundle

    cells = citeseq({"r0": 70, "r1": 60}, lacking={"r1": [2]})  # so there is an adversary
    proteins, of_cite = Registry.of(cells), replace(
        CITESEQ, train=replace(CITESEQ.train, max_epochs=6), classifier=replace(
            CITESEQ.classifier, max_epochs=3))  # fmt: skip

    return {
        "totalvi": lambda c: fit_totalvi(cells, proteins, of_cite, 0, device, c)[0],
        "scvi": lambda c: fit_scvi(reference, registry, settings, 0, device, c)[0],
        "scanvi": semi_supervised,
        "surgery": surgery,
    }


def same(a: Bundle, b: Bundle) -> bool:
    """Bit for bit: weights, history, and all that settings.json will say."""
    states = states_equal(a.model.state_dict(), b.model.state_dict())
    return states and a.history.equals(b.history) and a.about == b.about


def in_a_child(work) -> int:
    """Run `work` in a forked process; its pid."""
    pid = os.fork()
    if pid:
        return pid
    # Processes share tqdm's own lock: one killed while it holds it would stop all later ones.
    tqdm.set_lock(threading.RLock())
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.mark.parametrize("kind", ["scvi", "scanvi", "surgery", "totalvi"])
def test_killed_at_twenty_random_moments(trainings, kind, tmp_path, capsys):
    # A checkpoint after every step: most kills come while one is written.
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0)

    def train() -> None:
        save(trainings[kind](checkpoints), tmp_path / "done")

    began = time.monotonic()
    assert os.waitpid(in_a_child(train), 0)[1] == 0
    lasts = time.monotonic() - began
    checkpoints.remove()
    rng, kills, in_mid_write = np.random.default_rng([1, len(kind)]), 0, 0
    while kills < 20:
        pid = in_a_child(train)
        time.sleep(rng.uniform(0, 0.7) * lasts)
        os.kill(pid, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            kills += 1
            partial = list(checkpoints.folder.glob("*/.*.partial"))
            in_mid_write += len(partial)
            for path in partial:  # the next child has another pid: count each once
                path.unlink()
        else:
            checkpoints.remove()  # it was done before: start over
    assert os.waitpid(in_a_child(train), 0)[1] == 0
    assert not [path for path in (tmp_path / "done").iterdir() if "partial" in path.name]
    with capsys.disabled():
        print(f" {kind}: {kills} kills, {in_mid_write} in mid-write ", end="")
    save(trainings[kind](None), tmp_path / "undisturbed")
    for name in ("weights.safetensors", "history.csv", "golden.npz", "settings.json"):
        assert sha256(tmp_path / "done" / name) == sha256(tmp_path / "undisturbed" / name), name


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_killed_in_the_middle_of_a_write(trainings, tmp_path, monkeypatch, moment, n):
    """SIGKILL when the n-th checkpoint is written but not yet renamed, or between the renames."""
    undisturbed, calls = trainings["scvi"](None), []
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0)
    original = getattr(os, moment)

    def killed(*args):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, moment, killed)
        pid = in_a_child(lambda: trainings["scvi"](checkpoints))
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert list(checkpoints.folder.glob("*/.*.partial"))
    assert same(trainings["scvi"](checkpoints), undisturbed)


def test_a_signal_after_the_last_step_is_not_lost(tmp_path, monkeypatch):
    whole = fit(objective(), SETTINGS, "t").history.table()
    validate = Training.validate_if_due

    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def signalled(self):
        if self.epoch == SETTINGS.max_epochs - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Training, "validate_if_due", signalled)
        fit(objective(), SETTINGS, "t", checkpoints=Checkpoints(tmp_path))
    steps = []
    monkeypatch.setattr(Training, "take_step", lambda *_: steps.append(1))
    again = fit(objective(), SETTINGS, "t", checkpoints=Checkpoints(tmp_path))
    assert again.history.table().equals(whole) and steps == []


@pytest.mark.gpu
@ON_CPU_AND_GPU
@pytest.mark.parametrize("kind", ["scvi", "scanvi", "surgery", "totalvi"])
@pytest.mark.parametrize("step", [1, 2, 5, 6, 11])
def test_taken_up_after_any_step(trainings, kind, step, tmp_path, monkeypatch):
    undisturbed, looks = trainings[kind](None), []

    def reason(_self):
        looks.append(1)
        return Stopped("test") if len(looks) == step else None

    monkeypatch.setattr(Watch, "reason", reason)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(Stopped):
        trainings[kind](checkpoints)
    assert len(list(checkpoints.folder.glob(f"*/{LAST}"))) == 1
    resumed = trainings[kind](checkpoints)
    assert same(resumed, undisturbed)
    parts = (undisturbed.about["training"], undisturbed.about.get("classifier", {}))
    steps = sum(part.get("n_steps", 0) for part in parts)
    assert len(looks) == steps, "the steps before the checkpoint were taken again"


def objective(seed: int = 0) -> Unsupervised:
    split = split_cells(np.arange(60), 0.8, 0)
    return Unsupervised(small_model(), make_cells(), split, 20, seed, "test")


def stopped_after(n: int, checkpoints: Checkpoints, monkeypatch, **identity) -> None:
    looks = iter([None] * (n - 1) + [Stopped("test")])
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "reason", lambda _self: next(looks))
        with pytest.raises(Stopped):
            fit(objective(), SETTINGS, "t", checkpoints=checkpoints, identity=identity)


SETTINGS = TrainSettings(max_epochs=3)


def test_plateaus_and_learning_rates_are_taken_up(tmp_path, monkeypatch):
    settings = TrainSettings(
        max_epochs=300, early_stopping=True, early_stopping_patience=9, learning_rate=0.05,
        reduce_lr_on_plateau=True, gradient_clip=5.0, check_val_every_n_epoch=2,
    )  # fmt: skip
    monkeypatch.setattr("atlasmap.training.loop.LR_PATIENCE", 1)
    whole = fit(objective(), settings, "t")
    checkpoints, runs = Checkpoints(tmp_path), 0
    while True:
        count = iter(range(10**6))
        with monkeypatch.context() as patch:
            patch.setattr(
                Watch, "reason", lambda _s, n=count: Stopped("t") if next(n) > 6 else None
            )
            try:
                again = fit(objective(), settings, "t", checkpoints=checkpoints)
                break
            except Stopped:
                runs += 1
    assert runs > 5 and again.stopped == whole.stopped != "max_epochs"
    assert again.history.table().equals(whole.history.table())


@pytest.mark.parametrize("change", ["identity", "start", "none"])
def test_a_checkpoint_of_other_inputs_is_never_taken_up(tmp_path, monkeypatch, change):
    checkpoints = Checkpoints(tmp_path)
    stopped_after(4, checkpoints, monkeypatch, data="a")
    taken_up, read = [], Store.read
    monkeypatch.setattr(Store, "read", lambda self: taken_up.append(read(self)) or taken_up[-1])
    other = objective()
    if change == "start":
        with torch.no_grad():
            other.model.scale.weight.add_(1e-3)
    identity = {"data": "b" if change == "identity" else "a"}
    fit(other, SETTINGS, "t", checkpoints=checkpoints, identity=identity)
    assert (taken_up[0] is not None) == (change == "none")


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "missing"])
def test_the_last_good_checkpoint_is_kept(tmp_path, monkeypatch, harm):
    checkpoints = Checkpoints(tmp_path, every=0)
    whole = fit(objective(), SETTINGS, "t").history.table()
    stopped_after(4, checkpoints, monkeypatch)
    last = next(tmp_path.glob(f"*/{LAST}"))
    assert last.with_name(PREVIOUS).exists()
    content = bytearray(last.read_bytes())
    if harm == "flipped":
        content[-3] ^= 1
    last.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(harm, content))
    if harm == "missing":
        last.unlink()
    store = Store(checkpoints, last.parent.name)
    assert store.read().facts["step"] == 3  # of the first epoch, which is not yet closed
    assert fit(objective(), SETTINGS, "t", checkpoints=checkpoints).history.table().equals(whole)


def test_a_full_disk_costs_the_checkpoint_alone(tmp_path, monkeypatch, caplog):
    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    outcome = fit(objective(), SETTINGS, "t", checkpoints=Checkpoints(tmp_path, every=0))
    assert outcome.stopped == "max_epochs" and "No space left" in caplog.text
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_leave_a_checkpoint(tmp_path, monkeypatch, number):
    signal.signal(number, lambda *_: None)  # whoever runs the tests may have it ignored
    before = signal.getsignal(number)
    steps, take = [], Unsupervised.loss

    def loss(self, *args):
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), number)
        return take(self, *args)

    monkeypatch.setattr(Unsupervised, "loss", loss)
    with pytest.raises(Stopped) as why:
        fit(objective(), SETTINGS, "t", checkpoints=Checkpoints(tmp_path))
    assert number.name in str(why.value) and why.value.kind == (
        "interrupted" if number == signal.SIGINT else "preempted"
    )
    assert signal.getsignal(number) == before
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    state = Store(Checkpoints(tmp_path), next(tmp_path.iterdir()).name).read()
    assert state.facts["epoch"] * 3 + state.facts["step"] >= 3


@pytest.mark.parametrize(
    ("length", "left", "leaves"),
    [(3600, 130, False), (3600, 110, True), (60, 15, False), (60, 11, True)],
)
def test_it_leaves_two_minutes_before_the_end_or_a_fifth_of_a_short_job(length, left, leaves):
    end = time.time() + left
    told = JobTimes(end - length, end)
    reason = Watch(lambda anew: None if anew else told).reason()
    assert (reason is not None) == leaves
    if leaves:
        assert reason.kind == "walltime"
        raised = JobTimes(end, end + 9999)
        assert Watch(lambda anew: raised if anew else told).reason() is None


def test_it_says_early_that_time_will_not_do(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Watch, "seconds_left", lambda _self: 0.001)
    monkeypatch.setattr(Watch, "reason", lambda _self: None)
    fit(objective(), SETTINGS, "t")
    assert caplog.text.count("will leave a checkpoint") == 1 and "2 epochs" in caplog.text


def test_removing_checkpoints_removes_those_of_other_settings_too(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / ".checkpoints")
    stopped_after(2, checkpoints, monkeypatch, data="a")
    stopped_after(2, checkpoints, monkeypatch, data="b")
    assert len(list(checkpoints.folder.iterdir())) == 2
    checkpoints.remove()
    assert not checkpoints.folder.exists()
    checkpoints.remove()
