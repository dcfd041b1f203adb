"""The seam between models and faster bodies of their operations."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from citeseq import SETTINGS, citeseq
from small import CPU, SCANVI, SCVI
from torch.utils._python_dispatch import TorchDispatchMode

import atlasmap
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.mapping.encode import encode, shape_of
from atlasmap.mapping.reference import fit_scanvi, fit_scvi
from atlasmap.models import compiled, ops
from atlasmap.models.random import Noise, keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import append_categories
from atlasmap.models.totalvi import Totalvi

SRC = Path(atlasmap.__file__).parent


def test_one_place_decides_by_device():
    asks = re.compile(r"device\.type [!=]= |is_cuda|is_cpu")
    files = [*SRC.glob("models/**/*.py"), *SRC.glob("training/*.py"), *SRC.glob("data/*.py")]
    found = [path.name for path in files for _ in asks.findall(path.read_text())]
    assert found == ["ops.py"]


def test_the_seam_alone_knows_what_is_compiled():
    """What is plain has no word of kernels, threads or numba."""
    for path in SRC.glob("models/*.py"):
        if path.name != "ops.py":
            assert not re.search("compiled|numba|thread|kernel", path.read_text()), path
    for path in SRC.rglob("*.py"):
        if path.parent.name != "compiled" and path.name != "ops.py":
            assert "models.compiled" not in path.read_text(), path


def test_a_choice_that_there_is_not_is_refused():
    with pytest.raises(AtlasmapError) as error:
        ops.use("fast")
    assert error.value.code == "OPS_UNKNOWN"
    code = "from atlasmap.models import ops; import torch; print(ops.in_use(torch.device('cpu')))"
    env = os.environ | {"ATLASMAP_OPS": "plain"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "plain"


@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_where_a_faster_body_does_not_hold_models_are_plain_and_say_so(fault, monkeypatch, caplog):
    def broken(x, *_, **__):
        if fault == "raises":
            raise AttributeError("no such symbol")
        return torch.zeros(len(x), 1)

    monkeypatch.setattr(compiled, "network", broken)
    ops.tested.cache_clear()
    with caplog.at_level(logging.WARNING, "atlasmap"):
        assert not ops.faster(torch.ones(2)) and not ops.faster(torch.ones(2))
    assert [r.message.split(":")[0] for r in caplog.records] == [
        "models run on plain torch, which is slower"
    ]
    ops.tested.cache_clear()


def test_what_ran_stands_in_the_settings(reference, bodies):
    registry = Registry.of(reference)
    scvi = fit_scvi(reference, registry, SCVI, 0, CPU)[0]
    scanvi = fit_scanvi(reference, scvi, SCANVI, "fixed", 0, CPU)[0]
    expected = {"auto": "compiled", "plain": "plain"}[bodies]
    assert scvi.about["training"]["ops"] == scanvi.about["training"]["ops"] == expected


def test_both_bodies_train_the_same_model(reference):
    registry, found = Registry.of(reference), {}
    for choice in ops.CHOICES:
        ops.use(choice)
        history = fit_scvi(reference, registry, SCVI, 0, CPU)[0].history
        at = (history["metric"] == "elbo") & (history["split"] == "validation")
        found[choice] = history.loc[at, "value"].iloc[-1]
    ops.use("auto")
    assert found["plain"] == pytest.approx(found["auto"], rel=0.01)  # dropout draws otherwise


class Static(TorchDispatchMode):
    """Operations whose result's shape, or Python's next step, depends on values."""

    BAD = "nonzero|_local_scalar_dense|masked_select|unique|repeat_interleave.Tensor"

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if re.search(self.BAD, str(func)):
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def models(reference):
    """Each model with a minibatch of its own, in training and in surgery."""
    rng = keyed_generator(0, "t")
    registry = Registry.of(reference)
    cells = encode(registry, reference, CPU)
    for likelihood in ("nb", "zinb", "poisson"):
        settings = SCVI.__class__(**vars(SCVI) | {"gene_likelihood": likelihood})
        yield likelihood, Scvi(settings, shape_of(registry), rng), cells
    scvi = Scvi(SCVI, shape_of(registry), rng)
    for variant in ("fixed", "prefix", "linear"):
        yield variant, Scanvi(scvi, variant, len(registry.labels), rng), cells
    surgery = Scanvi(scvi, "fixed", len(registry.labels), rng)
    append_categories(surgery, {0: ["new"]}, 0)
    yield "surgery", surgery, cells
    both = citeseq({"x": 60, "y": 50})
    registry = Registry.of(both)
    totalvi = Totalvi(SETTINGS, shape_of(registry), 3, rng)
    yield "totalvi", totalvi, encode(registry, both, CPU)


def test_a_plain_step_has_shapes_that_depend_on_sizes_alone(reference):
    """So that a GPU can capture it, and never waits for a value."""
    ops.use("plain")
    for name, model, cells in models(reference):
        batch = cells.minibatch(torch.arange(40).numpy())
        noise = Noise(keyed_generator(1, "t"))
        with Static() as static:
            if name in ("fixed", "prefix", "linear"):
                loss, cross_entropy, _ = model.loss_with_labels(batch, 20, noise, 0.5)
                total = loss.total + cross_entropy
            else:
                total = model.loss(batch, noise, 0.5).total
            total.backward()
        assert not static.found, (name, static.found)
    ops.use("auto")
