"""Adam: the same bits as torch.optim's, without its compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from atlasmap.training.adam import Adam, body_on

HOW = {"lr": 1e-3, "eps": 0.01, "weight_decay": 1e-2}


def some_parameters() -> list[nn.Parameter]:
    """The same each time."""
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(*size)) for size in ((30, 12), (12,), (5, 7))]


def take_steps(optimiser, parameters: list[nn.Parameter], n: range) -> None:
    """Of gradients that go by the step; the last parameter has none in every third."""
    for k in n:
        rng = torch.Generator().manual_seed(k)
        optimiser.zero_grad()
        for parameter in parameters[: 3 if k % 3 else 2]:
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        optimiser.step()


def test_the_same_bits_as_torch():
    ours, theirs = some_parameters(), some_parameters()
    take_steps(Adam(ours, **HOW), ours, range(30))
    take_steps(torch.optim.Adam(theirs, fused=True, **HOW), theirs, range(30))
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def gone(*_, **__):
    raise AttributeError("module 'torch' has no attribute '_fused_adam_'")


@pytest.mark.parametrize("kernel", [gone, lambda *_, **__: None], ids=["gone", "does otherwise"])
def test_without_torch_s_kernel_plain_torch_steps_the_same(kernel, monkeypatch, caplog):
    body_on.cache_clear()
    ours, theirs = some_parameters(), some_parameters()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_fused_adam_", kernel)
        take_steps(Adam(ours, **HOW), ours, range(30))
    body_on.cache_clear()
    take_steps(torch.optim.Adam(theirs, **HOW), theirs, range(30))
    assert caplog.text.count("Adam runs in plain torch") == 1
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(ours, theirs, strict=True))


def test_a_state_is_taken_up():
    whole, halves = some_parameters(), some_parameters()
    take_steps(Adam(whole, **HOW), whole, range(20))
    first = Adam(halves, **HOW)
    take_steps(first, halves, range(10))
    second = Adam(halves, **HOW)
    second.restore({key: value.clone() for key, value in first.state().items()})
    take_steps(second, halves, range(10, 20))
    assert all(torch.equal(x, y) for x, y in zip(whole, halves, strict=True))


def test_torch_s_compiler_is_not_loaded():
    script = (
        "import sys, torch, atlasmap.training.loop, atlasmap.training.adversary as a\n"
        "from atlasmap.training.adam import Adam\n"
        "p = [torch.nn.Parameter(torch.ones(3))]\n"
        "optimiser = Adam(p, 0.1, 0.1, 0.0)\n"
        "optimiser.zero_grad(); p[0].sum().backward(); optimiser.step()\n"
        "assert not torch.equal(p[0], torch.ones(3))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
