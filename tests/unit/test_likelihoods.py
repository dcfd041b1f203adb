"""Likelihoods against scipy, gradients against finite differences, both in float64."""

import numpy as np
import pytest
import torch
from scipy import stats
from small import as_logits

from atlasmap.models.compiled.counts import LARGEST
from atlasmap.models.likelihoods import (
    CountDistribution,
    nb_log_prob,
    poisson_log_prob,
    zinb_log_prob,
)


@pytest.fixture
def cells(rng):
    x = torch.tensor(
        rng.poisson(1.5, (40, 30)) * rng.integers(0, 30, (40, 30)), dtype=torch.float64
    )
    mean = torch.tensor(rng.gamma(2.0, 2.0, (40, 30)) + 1e-3)
    theta = torch.tensor(rng.gamma(1.0, 3.0, (1, 30)) + 1e-2)
    return x, mean, theta


def scipy_nb(x, mean, theta):
    p = (theta / (theta + mean)).expand_as(x)
    return stats.nbinom.logpmf(x.numpy(), theta.expand_as(x).numpy(), p.numpy())


def test_negative_binomial_is_scipys(cells):
    x, mean, theta = cells
    assert (x == 0).any() and (x > 20).any()
    np.testing.assert_allclose(nb_log_prob(x, mean, theta), scipy_nb(x, mean, theta), atol=2e-5)


def test_zero_inflated_is_scipys_mixture(cells, rng):
    x, mean, theta = cells
    logits = torch.tensor(rng.normal(size=x.shape))
    pi = torch.sigmoid(logits).numpy()
    plain = np.exp(scipy_nb(x, mean, theta))
    expected = np.log(pi * (x.numpy() == 0) + (1 - pi) * plain)
    np.testing.assert_allclose(zinb_log_prob(x, mean, theta, logits), expected, atol=2e-5)


def test_poisson_is_scipys(cells):
    x, mean, _ = cells
    np.testing.assert_allclose(
        poisson_log_prob(x, mean), stats.poisson.logpmf(x.numpy(), mean.numpy()), atol=1e-9
    )


def test_corrected_float_counts_keep_the_general_form():
    x = torch.tensor([[0.0, 0.4, 3.7]], dtype=torch.float64)
    mean, theta = torch.full_like(x, 2.0), torch.full_like(x, 1.3)
    from scipy.special import gammaln

    expected = (
        gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
        + theta * np.log(theta / (theta + mean)) + x * np.log(mean / (theta + mean))
    )  # fmt: skip
    np.testing.assert_allclose(nb_log_prob(x, mean, theta), expected, atol=1e-6)


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_gradients(rng, zero_inflated):
    x = torch.tensor(rng.poisson(2.0, (4, 5)), dtype=torch.float64)
    inputs = [torch.tensor(rng.gamma(2.0, 1.0, (4, 5)) + 0.1, requires_grad=True) for _ in range(2)]
    if zero_inflated:
        inputs.append(torch.tensor(rng.normal(size=(4, 5)), requires_grad=True))
    function = zinb_log_prob if zero_inflated else nb_log_prob
    assert torch.autograd.gradcheck(lambda *args: function(x, *args), inputs)


def leaves(rng, by_cell: bool, zero_inflated: bool) -> dict[str, torch.Tensor]:
    """Logits, log library, log θ (and logits of the zero inflation) of 20 cells × 9 genes."""
    shapes = {"logits": (20, 9), "library": (20, 1), "log_theta": (20 if by_cell else 1, 9)}
    if zero_inflated:
        shapes["zi_logits"] = (20, 9)
    values = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
    values["library"] += 3
    return {name: value.requires_grad_() for name, value in values.items()}


def distribution(of: dict[str, torch.Tensor]) -> CountDistribution:
    theta = of["log_theta"].exp()
    return CountDistribution(as_logits(of["logits"]), of["library"], theta, of.get("zi_logits"))


@pytest.mark.parametrize("zero_inflated", [False, True])
@pytest.mark.parametrize("by_cell", [False, True])
@pytest.mark.parametrize("counts", ["small", "large", "corrected"])
def test_the_loss_is_the_mean_of_entries_and_so_are_gradients(
    bodies, rng, zero_inflated, by_cell, counts
):
    of = leaves(rng, by_cell, zero_inflated)
    x = torch.tensor(rng.poisson(2.0, (20, 9)) * rng.integers(0, 2, (20, 9)), dtype=torch.float64)
    x[3] = 0
    if counts == "large":
        x[:, 4] += LARGEST - 2
    if counts == "corrected":
        x[:, 2] *= 0.37
    exact = -distribution(of).log_prob(x).sum(1)
    expected = torch.autograd.grad(exact.mean(), list(of.values()))
    of = {name: value.detach().float().requires_grad_() for name, value in of.items()}
    loss, each = distribution(of).mean_loss(x.float())
    torch.testing.assert_close(each.double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.double(), exact.mean(), rtol=1e-5, atol=1e-5)
    assert loss.requires_grad and not each.requires_grad
    for ours, autograds in zip(torch.autograd.grad(loss, list(of.values())), expected, strict=True):
        scale = autograds.abs().max().item()
        torch.testing.assert_close(ours.double(), autograds, rtol=1e-4, atol=1e-5 * scale)
