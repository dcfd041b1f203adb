"""Compiled operations: against torch in float64, and what is not a number."""

import numba
import numpy as np
import pytest
import torch
from placed import placed
from scipy import special
from torch.nn import functional as F

from atlasmap.models import ops
from atlasmap.models.compiled import arithmetic, counts_kernels
from atlasmap.models.compiled.counts import LARGEST, counts_loss
from atlasmap.models.compiled.sparse import DENSE, SparseRows
from atlasmap.models.compiled.threads import side_by_side
from atlasmap.models.operands import Logits
from atlasmap.models.random import keyed_generator


@numba.njit
def each(function, x, out):
    for k in range(len(x)):
        out[k] = function(x[k])


def test_exponentials_and_logarithms_are_numpys():
    x = np.concatenate([np.linspace(-86, 88, 10_001), [0.0, 1e-8, -1e-8]]).astype(np.float32)
    found = np.empty_like(x)
    each(arithmetic.exp, x, found)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=2e-7)
    y = np.concatenate([np.logspace(-37, 37, 10_001), [1.0, 1 + 1e-6]]).astype(np.float32)
    found = np.empty_like(y)
    each(arithmetic.log, y, found)
    exact = np.log(y.astype(np.float64))
    assert np.abs(found - exact).max() < 1e-5
    np.testing.assert_allclose(found, exact, rtol=3e-7, atol=1e-9)


def test_counts_that_are_no_small_integers_have_scipys_gammas():
    x, theta = np.meshgrid([0.3, 1.0, 15.5, 16.0, 4e3, 3e5], [1e-3, 0.2, 1.0, 7.0, 5e3])
    x, theta = x.ravel(), theta.ravel()
    found = [arithmetic.digamma(v) for v in x + theta]
    np.testing.assert_allclose(found, special.digamma(x + theta), rtol=1e-12)
    found = [arithmetic.rising_of_any(*both) for both in zip(x, theta, strict=True)]
    exact = special.gammaln(x + theta) - special.gammaln(theta) - special.gammaln(x + 1)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


def decoded(n_cells: int, n_genes: int) -> dict[str, torch.Tensor]:
    """What a decoder's last layer is given, with two categories, and a likelihood's parts."""
    rng = keyed_generator(5, "t")
    shapes = {"hidden": (n_cells, 6), "weight": (n_genes, 6), "bias": (2, n_genes),
              "library": (n_cells, 1), "theta": (1, n_genes)}  # fmt: skip
    of = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    return of | {"library": of["library"] + 3, "theta": of["theta"].exp()}


def of_counts(of: dict[str, torch.Tensor], code: torch.Tensor, x: torch.Tensor):
    """The compiled loss (mean, per cell)."""
    hidden, weight, bias, library, theta = of.values()
    return counts_loss(Logits(hidden, weight, bias, code), library, theta, x)


def plain(of: dict[str, torch.Tensor], code: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """−log p(x) per cell in plain torch, differentiable."""
    hidden, weight, bias, library, theta = of.values()
    mean = library.exp() * torch.softmax(Logits(hidden, weight, bias, code).value, -1)
    terms = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -(ops.nb_mean_terms(x, mean, theta) + terms).sum(1)


@pytest.mark.parametrize("n_cells", [5, counts_kernels.BLOCK, 3 * counts_kernels.BLOCK + 7])
@pytest.mark.parametrize("counts", ["small", "large", "corrected"])
def test_the_loss_of_counts_is_torchs_in_float64_and_so_are_gradients(counts, n_cells):
    n_genes = counts_kernels.GENES + 9
    of, rng = decoded(n_cells, n_genes), np.random.default_rng(0)
    x = rng.poisson(2.0, (n_cells, n_genes)) * rng.integers(0, 2, (n_cells, n_genes))
    x = torch.tensor(x, dtype=torch.float32)
    x[3] = 0
    if counts == "large":
        x[:, 4] += LARGEST - 2
    if counts == "corrected":
        x[:, 2] *= 0.37
    code = torch.arange(n_cells) % 2
    given = {name: value.clone().requires_grad_() for name, value in of.items()}
    loss, each = of_counts(given, code, x)
    exact = {name: value.double().requires_grad_() for name, value in of.items()}
    expected = plain(exact, code, x.double())
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(0.7 * loss, list(given.values()))
    slopes = torch.autograd.grad(0.7 * expected.mean(), list(exact.values()))
    for ours, autograds in zip(found, slopes, strict=True):
        scale = autograds.abs().max().item()
        torch.testing.assert_close(ours.double(), autograds, rtol=1e-4, atol=1e-5 * scale)
    with torch.no_grad():
        assert torch.equal(of_counts(of, code, x)[1], each)


def test_what_does_not_train_changes_nothing_for_what_does():
    of, x, code = decoded(9, 20), torch.ones(9, 20), torch.zeros(9, dtype=torch.long)
    of["hidden"].requires_grad_()
    (alone,) = torch.autograd.grad(of_counts(of, code, x)[0], of["hidden"])
    for value in of.values():
        value.requires_grad_()
    (among,) = torch.autograd.grad(of_counts(of, code, x)[0], of["hidden"])
    assert torch.equal(alone, among)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["hidden", "weight", "bias", "library", "theta"])
def test_a_likelihood_of_what_is_not_a_number_is_none(where, bad):
    of, x = decoded(4, 6), torch.poisson(torch.ones(4, 6))
    of[where].view(-1)[0] = bad
    code = torch.tensor([0, 1, 1, 1])
    theirs = plain(of, code, x).isfinite()
    ours = of_counts(of, code, x)[1].isfinite()
    assert not (ours & ~theirs).any() and (bad < 0 or not ours[0])
    assert where in ("weight", "theta") or ours[1:].all()


@pytest.mark.parametrize("share", [DENSE / 2, DENSE * 2])
def test_the_product_of_sparse_counts_is_the_dense_one_and_so_are_gradients(share):
    rng = keyed_generator(3, "t")
    x = torch.randn(30, 50, generator=rng) * (torch.rand(30, 50, generator=rng) < share)
    x[4] = 0
    given = [torch.randn(s, generator=rng, requires_grad=True) for s in ((8, 50), (8,))]
    out = ops.product(SparseRows.of(x), *given)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = F.linear(x.double(), *exact)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(out.shape, generator=rng)
    found = torch.autograd.grad((out * weights).sum(), given)
    for ours, autograds in zip(
        found, torch.autograd.grad((expected * weights).sum(), exact), strict=True
    ):
        torch.testing.assert_close(ours.double(), autograds, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of_x", [(5, 7, 3), (7, 3)])
def test_normals_are_torchs_and_so_are_gradients(of_x):
    rng = keyed_generator(4, "t")
    packed, x = (torch.randn(s, generator=rng, requires_grad=True) for s in ((5, 7, 6), of_x))
    weights = torch.randn(5, 7, 6, generator=rng)

    def told(packed: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        return [*ops.draw(packed, fixed.to(packed), 1e-4), ops.log_density(x, packed, 1e-4)]

    def weighted(parts: list[torch.Tensor]) -> torch.Tensor:
        z, *others = parts
        return (weights[..., :3] * z).sum() + sum(
            (weights[..., 3 + k] * part).sum() for k, part in enumerate(others)
        )

    fixed = torch.randn(5, 7, 3, generator=rng)
    found, exact = told(packed, x), [t.detach().double().requires_grad_() for t in (packed, x)]
    expected = told(*exact)
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), torchs, rtol=1e-5, atol=1e-5)
    slopes = torch.autograd.grad(weighted(found), (packed, x))
    for ours, torchs in zip(slopes, torch.autograd.grad(weighted(expected), exact), strict=True):
        torch.testing.assert_close(ours.double(), torchs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", [0, 5])
def test_a_normal_that_is_no_number_stays_so(place):
    packed = torch.zeros(2, 6)
    packed[1, place] = torch.nan
    _, kl, _ = ops.draw(packed, torch.zeros(2, 3), 1e-4)
    for values in (kl, ops.log_density(torch.zeros(2, 3), packed, 1e-4)):
        assert values[0].isfinite() and values[1].isnan()


def test_neither_where_arrays_lie_nor_how_many_threads_there_are_changes_a_bit(threads):
    rng = np.random.default_rng(0)
    starts, gene, code = np.arange(71) * 5, rng.integers(0, 50, 350), np.zeros(70, np.int64)
    count, theta = rng.poisson(3.0, 350).astype(np.float32) + 1, np.full(50, 2.5, np.float32)
    rows, weights = (rng.normal(size=(n, 16)).astype(np.float32) for n in (70, 50))
    seen = set()
    for k in range(400):
        threads(1 + k % 3)
        hidden, weight, bias, depth, t, log_t, n, up, steep, slopes, *of = placed(
            [rows, weights, np.zeros((1, 50)), np.ones(70), theta, np.log(theta), count,
             np.zeros((3, 50)), np.zeros((3, 50)), np.zeros((70, 50)), np.zeros(70), 0 * rows,
             np.zeros(70), np.zeros((3, 50)), 0 * weights, np.zeros((1, 50))], rng,
        )  # fmt: skip
        value, of_rows, of_depth, of_t, of_weight, of_bias = of
        side_by_side(counts_kernels.rising, 50, t, up, steep)
        given = hidden, weight, bias, code, depth, t, log_t, starts, gene, n, up, steep
        of_cells = slopes, value, of_rows, of_depth, of_t
        side_by_side(counts_kernels.counts, 3, *given, True, np.float32(0.3), *of_cells)
        given = slopes, hidden, code, of_weight, of_bias
        side_by_side(counts_kernels.weight_grad, 1, *given)
        seen.add(b"".join(array.tobytes() for array in (slopes, *of)))
    assert len(seen) == 1
