"""Likelihoods against scipy, gradients against finite differences, both in float64."""

import numpy as np
import pytest
import torch
from scipy import stats

from atlasmap.models.likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob


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
