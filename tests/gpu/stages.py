"""The stages of check.py: each is told how, and says its figures one by one."""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import golden_subset
import numpy as np
import torch
from golden_numbers import Golden, differences
from named_cuda import named_cuda
from trainings import KINDS, LABELS, Sizes, Trainings, after_each_step

from atlasmap.bundle import Bundle
from atlasmap.device import pick_device
from atlasmap.models.surgery import classifier_of, vae_of
from atlasmap.training.checkpoint import Checkpoints
from atlasmap.training.loop import Training
from atlasmap.training.stopping import Stopped, Watch

UNIT, CPU = Path(__file__).resolve().parents[1] / "unit", torch.device("cpu")
WARM = 2  # blocks of steps that are not counted
SMALL = Sizes(cells=1000, genes=60, epochs=1, timed=3, longer=3, block=2)
STEPS = 5  # that are compared with those on a CPU
SAME, SAME_WEIGHTS = 1e-4, 1e-3  # relative difference of CPU and GPU


@dataclass(frozen=True)
class How:
    """cuda or `forced` (named_cuda.py), and whether only to see that the check works."""

    device: str
    small: bool

    @property
    def sizes(self) -> Sizes:
        """Of what is trained."""
        return SMALL if self.small else Sizes()

    @contextlib.contextmanager
    def on_gpu(self) -> Iterator[torch.device]:
        """The GPU, as the package picks it."""
        with named_cuda() if self.device == "forced" else contextlib.nullcontext():
            yield pick_device("cuda")


def environment(how: How, say) -> None:
    """The card, and with what it is used."""
    with how.on_gpu() as device:
        say("card", torch.cuda.get_device_name())
        values = torch.arange(2.0, device=device)
        say("one and one", float((values + values).sum()), float((values + values).sum()) == 2)
    if how.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        say("memory, MB", round(card.total_memory / 2**20))
        say("compute capability", f"{card.major}.{card.minor}")
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        say("driver", subprocess.run(asked, capture_output=True, text=True).stdout.strip())
    say("CUDA of torch", torch.version.cuda)
    say("cores", os.cpu_count())
    say("threads", torch.get_num_threads())
    say("python", platform.python_version())
    for name in ("torch", "numpy", "scipy", "numba", "anndata", "pandas"):
        say(name, version(name))


def tests(how: How, say) -> None:
    """The unit tests that need CUDA; of `forced`, the same on a CPU."""
    import pytest

    class Told:
        """Tells each test's outcome."""

        def pytest_runtest_logreport(self, report) -> None:
            if report.when == "call" or not report.passed:
                good = report.passed if report.when == "call" else report.when == "teardown"
                said = {} if good else {"why": str(report.longrepr)[-1500:]}
                say(report.nodeid.split("::")[-1], report.outcome, good, **said)

    files = [str(path) for path in sorted(UNIT.glob("test_*.py")) if "mark.gpu" in path.read_text()]
    name = "cuda" if how.device == "cuda" else "cpu"
    chosen = f"{name} and 5-scvi" if how.small else name
    told = [*files, "-m", "gpu", "-k", chosen, "-p", "no:cacheprovider"]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else is installed
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(told, plugins=[Told()])
    say("pytest ended with", int(code), code == 0)


def golden(how: How, say) -> None:
    """Numbers of scvi-tools, reproduced on the device."""
    for name in golden_subset.NAMES:
        with how.on_gpu() as device:
            found = list(differences(golden_subset.read(name, device)))
        for each in found:
            say(f"{name} {each.what}", each.found, each.found < each.most, most=each.most)


@torch.no_grad()
def outputs(golden: Golden) -> dict[str, np.ndarray]:
    """What a golden model says of its cells, without noise."""
    model, cells = golden.model, golden.cells
    latent, classifier = vae_of(model).encode(cells, None), classifier_of(model)
    said = {"latent": latent.mean, "latent variance": latent.var}
    if classifier is not None:
        said["label probabilities"] = classifier.probabilities(classifier(latent.mean, None))
    said["loss"] = model.loss(cells, None, 0.5).total
    return {name: value.cpu().numpy() for name, value in said.items()}


def losses(trainings: Trainings, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each of some steps of a training without noise, and what it trains after them."""
    seen, weights = [], []

    def look(training: Training) -> None:
        seen.append(float(training.losses[-1]))
        if len(seen) == STEPS:
            weights.extend(x.detach().cpu().flatten() for x in training.objective.parameters())
            raise Stopped("for the check")

    without = mock.patch("atlasmap.training.loop.Noise", lambda *_: None)
    with without, after_each_step(look), contextlib.suppress(Stopped):
        trainings.train(kind, STEPS)
    return np.array(seen), torch.cat(weights).numpy()


def apart(found: np.ndarray, known: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(found - known).max() / np.abs(known).max())


def cpu(how: How, say) -> None:
    """The same numbers as on a CPU: of golden models, and of the first steps from one start (what
    rounding does to them grows with each)."""
    for name in golden_subset.NAMES:
        known = outputs(golden_subset.read(name, CPU))
        with how.on_gpu() as device:
            found = outputs(golden_subset.read(name, device))
        for what, value in found.items():
            gap = apart(value, known[what])
            say(f"{name} {what}", gap, gap < SAME, most=SAME)
    trainings = Trainings.of(how.sizes, CPU)
    for kind in KINDS:
        known, weights_known = losses(trainings, kind)
        with how.on_gpu() as device:
            found, weights = losses(trainings.on(device), kind)
        gap = float(np.max(np.abs(found / known - 1)))
        say(f"{kind} losses of {len(known)} steps", gap, gap < SAME, most=SAME)
        gap = float(np.linalg.norm(weights - weights_known) / np.linalg.norm(weights_known))
        say(f"{kind} weights after them", gap, gap < SAME_WEIGHTS, most=SAME_WEIGHTS)


def unlike(a: Bundle, b: Bundle) -> int:
    """How many weights differ in any bit, or -1 if all that is written beside them does."""
    of_a, of_b = a.model.state_dict(), b.model.state_dict()
    beside = a.history.equals(b.history) and a.about == b.about and of_a.keys() == of_b.keys()
    return sum(int((of_a[k] != of_b[k]).sum()) for k in of_a) if beside else -1


def interrupted(trainings: Trainings, kind: str, epochs: int, step: int) -> Bundle:
    """A training that left at a step and was taken up from its checkpoint."""
    looks = []

    def reason(_watch) -> Stopped | None:
        looks.append(1)
        return Stopped("for the check") if len(looks) == step else None

    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(Watch, "reason", reason), contextlib.suppress(Stopped):
            trainings.train(kind, epochs, Checkpoints(Path(folder)))
        return trainings.train(kind, epochs, Checkpoints(Path(folder)))


def bits(how: How, say) -> None:
    """The same bits again, and after an interruption."""
    with how.on_gpu() as device, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainings, epochs = Trainings.of(how.sizes, device), how.sizes.epochs
        for kind in KINDS:
            once = trainings.train(kind, epochs)
            n = unlike(once, trainings.train(kind, epochs))
            say(f"{kind} weights unlike those of a repeat", n, n == 0)
            n, at = once.about["training"]["n_steps"], once.about["training"]["n_steps"] // 2 + 1
            n = unlike(once, interrupted(trainings, kind, epochs, at))
            say(f"{kind} weights unlike when taken up after step {at}", n, n == 0)
    warned = {str(w.message)[:200] for w in heard if "determinis" in str(w.message)}
    say("torch warned of", sorted(warned))


def peak_mb() -> int | None:
    """Most memory of this process so far, where the kernel says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)


def seconds_a_step(trainings: Trainings, kind: str, sizes: Sizes) -> np.ndarray:
    """Of each block of steps after those that warm up."""
    marks, n = [], 0

    def look(_training) -> None:
        nonlocal n
        n += 1
        if n % sizes.block == 0:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())

    with after_each_step(look):
        trainings.train(kind, sizes.timed * (sizes.longer if kind == "surgery" else 1))
    return np.diff(marks)[WARM:] / sizes.block


def speed(how: How, say) -> None:
    """Seconds a step of 128 cells, and peak memory."""
    sizes = how.sizes
    with how.on_gpu() as device:
        trainings = Trainings.of(sizes, device)
        labels = len(trainings.begun["scvi"].registry.labels)
        say("labels", labels, labels == LABELS)
        for kind in KINDS:
            torch.cuda.reset_peak_memory_stats()
            took = seconds_a_step(trainings, kind, sizes)
            say(f"{kind} seconds a step, median", float(np.median(took)), blocks=len(took),
                steps_a_block=sizes.block, least=took.min(), most=took.max())  # fmt: skip
            say(f"{kind} peak MB of the GPU", round(torch.cuda.max_memory_allocated() / 2**20))
            say(f"{kind} peak MB of the process so far", peak_mb())
