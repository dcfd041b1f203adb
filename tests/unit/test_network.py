"""Layers in one compiled pass: against torch in float64, with dropout, on any threads."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from placed import placed
from torch.nn import functional as F

from atlasmap.models import ops
from atlasmap.models.compiled import network_kernels
from atlasmap.models.compiled.threads import side_by_side
from atlasmap.models.layers import Linear, Stack
from atlasmap.models.random import Noise, keyed_generator

IN, WIDTH = 6, 17
COVARIATES = {"none": (), "one": (3,), "several": (3, 2), "alone": (1,)}


def noise() -> Noise:
    return Noise(keyed_generator(0, "t"))


def stack_of(n_layers: int, n_categories: tuple[int, ...] = (), n_in: int = IN, **more) -> Stack:
    rng, widths = keyed_generator(1, "t"), [WIDTH] * n_layers
    how = {"batch_norm": False, "layer_norm": True} | more
    return Stack(n_in, widths, n_categories, rng, **how)


def known_of(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, stack.layers[0].weight, stack.layers[0].bias)


def told(stack, last, x, codes, known) -> list[torch.Tensor]:
    """The result, and gradients of a sum of it for all that it depends on."""
    x = x.clone().requires_grad_()
    start = known_of(stack, x) if known else x
    if last is not None:
        last = last.weight, last.bias
    out = stack(start, codes, None, last, known=known)
    rng = keyed_generator(3, "t")
    weights = torch.randn(out.shape, generator=rng).to(out)
    asked = [x, *(p for p in stack.parameters() if p.requires_grad), *(last or ())]
    return [out, *torch.autograd.grad((out * weights).sum(), asked, allow_unused=True)]


@pytest.mark.parametrize("covariates", COVARIATES)
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("n_rows", "ends", "deep"), [(3, True, True), (600, False, False)])
def test_layers_are_torchs_in_float64(covariates, n_layers, known, n_rows, ends, deep):
    rng, sizes = keyed_generator(2, "t"), COVARIATES[covariates]
    stack = stack_of(n_layers, sizes, deep=deep)
    last = Linear(WIDTH, 5, rng) if ends else None
    x = torch.randn(n_rows, IN, generator=rng)
    codes = tuple(torch.arange(n_rows) % n for n in sizes)
    assert ops.faster(x) and not ops.faster(x.double())
    found = told(stack, last, x, codes, known)
    exact = told(deepcopy(stack).double(), last and deepcopy(last).double(), x.double(), codes,
                 known)  # fmt: skip
    for ours, torchs in zip(found, exact, strict=True):
        assert (ours is None) == (torchs is None)
        if ours is not None:
            torch.testing.assert_close(ours.double(), torchs, rtol=1e-4, atol=2e-5 * n_rows**0.5)


def test_without_codes_there_may_be_more_axes():
    stack, x = stack_of(2), torch.randn(4, 50, IN)
    one_by_one = torch.stack([stack(part, (), None) for part in x])
    torch.testing.assert_close(stack(x, (), None), one_by_one, rtol=1e-6, atol=1e-6)


def test_what_does_not_train_changes_nothing_for_what_does():
    stack, x, codes = stack_of(2, (3,)), torch.randn(40, IN), (torch.arange(40) % 3,)

    def of_tables() -> list[torch.Tensor]:
        out = stack(x, codes, None)
        return torch.autograd.grad(out.square().sum(), [t.reference for t in tables])

    tables = [layer.tables[0] for layer in stack.layers]
    among = of_tables()
    stack.requires_grad_(False)
    for table in tables:
        table.reference.requires_grad_(True)
    assert all(torch.equal(a, b) for a, b in zip(among, of_tables(), strict=True))


def key_of(source: Noise) -> int:
    return torch.randint(2**32, (), generator=source.generator).item()


def kept_by(key: int, n_rows: int, rate: float) -> torch.Tensor:
    """Values that dropout keeps: hashes (lowbias32) of their places and a key, in numpy."""
    h = (np.uint64(key) + np.arange(n_rows * WIDTH, dtype=np.uint64)).astype(np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return torch.as_tensor(h < (1 - rate) * 2**32).view(n_rows, WIDTH)


@pytest.mark.parametrize("n_rows", [3, 600])
@pytest.mark.parametrize("known", [False, True])
def test_dropout_goes_both_ways_through_every_layer_and_row(n_rows, known):
    rate, source = 0.3, noise()
    stack, last = stack_of(3, dropout_rate=rate), Linear(WIDTH, 5, keyed_generator(2, "t"))
    x = torch.randn(n_rows, IN, requires_grad=True)
    start = known_of(stack, x) if known else x
    out = stack(start, (), noise(), (last.weight, last.bias), known=known)
    asked = [x, *stack.parameters(), *last.parameters()]
    weights = torch.randn(out.shape)
    found = torch.autograd.grad((out * weights).sum(), asked)

    exact = [t.detach().double().requires_grad_() for t in asked]
    hidden, *layers = exact
    for k in range(3):
        hidden = torch.relu(F.layer_norm(F.linear(hidden, *layers[2 * k : 2 * k + 2]), (WIDTH,)))
        hidden = hidden * kept_by(key_of(source), n_rows, rate) / (1 - rate)
    expected = F.linear(hidden, *layers[-2:])
    slopes = torch.autograd.grad((expected * weights).sum(), exact)
    for ours, torchs in zip((out, *found), (expected, *slopes), strict=True):
        torch.testing.assert_close(ours.double(), torchs, rtol=1e-4, atol=2e-5 * n_rows**0.5)


def test_values_are_dropped_at_the_rate_anew_each_time_and_the_same_for_a_key():
    stack = stack_of(1, dropout_rate=0.3)
    x = torch.randn(30_000, WIDTH, generator=keyed_generator(2, "t"))
    positive = F.layer_norm(x, (WIDTH,)) > 1e-3
    source = noise()
    one, two = (stack(x, (), source, known=True) for _ in range(2))
    for out in (one, two):
        assert abs(float((out[positive] == 0).float().mean()) - 0.3) < 0.003
        by_column = (out == 0).float().mean(0)  # no column is favoured
        assert by_column.std() < 0.02
    both = ((one == 0) & (two == 0))[positive].float().mean()
    assert abs(float(both) - 0.09) < 0.003
    assert torch.equal(one, stack(x, (), noise(), known=True))
    still = Noise(keyed_generator(0, "t"), dropout=False)
    assert torch.equal(stack(x, (), still, known=True), stack(x, (), None, known=True))


def test_every_layer_drops_others():
    stack = stack_of(2, dropout_rate=0.5)
    with torch.no_grad():  # the second layer makes what the first did
        stack.layers[1].weight.copy_(torch.eye(WIDTH))
        stack.layers[1].bias.zero_()
    x = torch.randn(2000, WIDTH, generator=keyed_generator(2, "t"))
    out = stack(x, (), noise(), known=True)
    assert abs(float((out > 0).float().mean()) - 0.125) < 0.03  # positive, kept, kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(bad):
    x = torch.randn(3, WIDTH)
    x[1, 2] = bad
    out = stack_of(2)(x, (), None, known=True)
    assert out[[0, 2]].isfinite().all() and out[1].isnan().any()


def test_what_does_not_fit_is_refused():
    """A compiled pass would read beyond the end of arrays."""
    stack, x, code = stack_of(2, (3,)), torch.randn(9, IN), torch.arange(9) % 3
    for codes in ((), (code, code)):
        with pytest.raises(ValueError, match="codes a cell for 1 covariates"):
            stack(x, codes, None)
    for bad in (code + 1, code - 1):
        with pytest.raises(IndexError, match="for 3 rows"):
            stack(x, (bad,), None)
    for start, known in ((x[:, 1:], False), (x, True)):
        with pytest.raises(ValueError, match="values a row"):
            stack(start, (code,), None, known=known)
    with pytest.raises(ValueError, match="float64"):
        stack.double()(x, (code,), None)


def test_weights_changed_before_the_way_back_are_noticed():
    stack = stack_of(2)
    out = stack(torch.randn(9, IN), (), None)
    with torch.no_grad():
        stack.layers[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_there_are_no_second_derivatives():
    x = torch.randn(9, IN, requires_grad=True)
    out = stack_of(2)(x, (), None)
    (slopes,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slopes.sum().backward()


def test_neither_where_arrays_lie_nor_how_many_threads_there_are_changes_a_bit(threads):
    rng, n = np.random.default_rng(0), 70
    x, above, first, second, shift, head, bias = (
        rng.normal(size=size).astype(np.float32)
        for size in ((n, IN), (n, 5), (16, IN), (16, 16), (3, 16), (5, 16), 5)
    )
    code, key, seen = rng.integers(0, 3, n), (np.uint32(7), np.uint32(9)), set()
    how = key, np.uint32(3 << 30), np.float32(4 / 3), np.float32(0)
    parts = first, second, shift, shift, head, bias
    zeros = [np.zeros(s) for s in ((n, 5), (n, IN), (2, n, 16), (2, n, 16), (2, n),
                                   (4, sum(map(np.size, parts))))]  # fmt: skip
    for k in range(300):
        threads(1 + k % 3)
        x_, above_, w1, w2, s1, s2, h, b, out, of_x, normed, left, factor, values = placed(
            [x, above, *parts, *zeros], rng
        )
        layers, kept = ((w1, w2), (s1, s2), h, b, how), (normed, left, factor)
        side_by_side(network_kernels.network, 4, x_, False, code, layers, kept, out)
        given = above_, x_, False, code, layers, kept, True, True, True, of_x, values
        side_by_side(network_kernels.network_grad, 4, *given)
        seen.add(b"".join(array.tobytes() for array in (out, of_x, values)))
    assert len(seen) == 1
