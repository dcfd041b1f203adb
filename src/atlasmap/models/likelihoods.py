"""Log-likelihoods of counts: negative binomial, its zero-inflated form, Poisson, and the mixture of
two negative binomials that proteins have.

The negative binomial is parameterised by mean and inverse dispersion (Lopez et al. 2018, methods;
Grønbech et al. 2020). Small constants are placed as scvi-tools 1.4.2 places them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from atlasmap.models.counts_loss import Logits, compiles, counts_loss
from atlasmap.models.negative_binomial import EPS, Entries, nb_of_cells


@dataclass(frozen=True)
class CountDistribution:
    """p(x | z) for a minibatch; shapes are cells × genes.

    `last` (the decoder's last layer, or logits) gives each gene's share of the library by a
    softmax, `library` is its log size (cells × 1), `theta` the inverse dispersion (absent for
    Poisson; 1 × genes is allowed), `zi_logits` the logit of the zero inflation (zero-inflated form
    only).
    """

    last: Logits | Tensor
    library: Tensor
    theta: Tensor | None = None
    zi_logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """Of each gene's share."""
        return self.last.value if isinstance(self.last, Logits) else self.last

    @property
    def share(self) -> Tensor:
        """Each gene's share of the library."""
        return torch.softmax(self.logits, -1)

    @property
    def rate(self) -> Tensor:
        """The mean before zero inflation."""
        return torch.exp(self.library) * self.share

    @property
    def mean(self) -> Tensor:
        """Expected counts, zero inflation included."""
        if self.zi_logits is None:
            return self.rate
        return self.rate * torch.sigmoid(-self.zi_logits)

    @property
    def variance(self) -> Tensor:
        """Variance of the counts, zero inflation included."""
        within = self.rate if self.theta is None else self.rate + self.rate.square() / self.theta
        if self.zi_logits is None:
            return within
        zeros = torch.sigmoid(self.zi_logits)
        return (1 - zeros) * (within + zeros * self.rate.square())

    def of_cells(self, entries: Entries) -> Tensor:
        """Log-probability of a cell's counts (those above zero: `entries`), one a cell."""
        if self.theta is None:
            x = entries.dense(entries.count, self.logits.shape[1])
            return self.log_prob(x).sum(1)
        return nb_of_cells(self.logits, self.library, self.theta, self.zi_logits, entries)

    def mean_loss(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Mean over cells of −log p(x), and that of each cell without gradients."""
        if self.zi_logits is None and compiles(self.last, self.theta):
            return counts_loss(self.last, self.library, self.theta, entries)
        each = -self.of_cells(entries)
        return each.mean(), each.detach()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of counts `x` (cells × genes) of each entry."""
        if self.theta is None:
            return poisson_log_prob(x, self.rate)
        if self.zi_logits is None:
            return nb_log_prob(x, self.rate, self.theta)
        return zinb_log_prob(x, self.rate, self.theta, self.zi_logits)


def _gamma_terms(x: Tensor, theta: Tensor) -> Tensor:
    """lgamma(x + θ) − lgamma(θ) − lgamma(x + 1): zero where x is zero, so taken elsewhere only."""
    theta = theta.expand_as(x)
    where = x.nonzero(as_tuple=True)
    x_, theta_ = x[where], theta[where]
    terms = torch.lgamma(x_ + theta_) - torch.lgamma(theta_) - torch.lgamma(x_ + 1)
    return torch.zeros_like(x, dtype=terms.dtype).index_put(where, terms)


def _mean_terms(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """What of the negative binomial's log-probability depends on the mean."""
    log_rate_total = torch.log(theta + mean + EPS)
    return theta * (torch.log(theta + EPS) - log_rate_total) + x * (
        torch.log(mean + EPS) - log_rate_total
    )


def nb_log_prob(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Negative binomial log-probability; `x`, `mean` cells × genes, `theta` broadcast to them."""
    return _mean_terms(x, mean, theta) + _gamma_terms(x, theta)


def nb_mixture_log_prob(
    x: Tensor, first: Tensor, second: Tensor, theta: Tensor, logits: Tensor
) -> Tensor:
    """Log-probability of two negative binomials with means `first` and `second` (cells × proteins)
    and one inverse dispersion; `logits` are those of the first (Gayoso et al. 2021, methods)."""
    either = torch.logaddexp(_mean_terms(x, first, theta), _mean_terms(x, second, theta) - logits)
    return either - F.softplus(-logits) + _gamma_terms(x, theta)


def nb_first_probability(
    x: Tensor, first: Tensor, second: Tensor, theta: Tensor, logits: Tensor
) -> Tensor:
    """Probability that `x` came from the first of the two of `nb_mixture_log_prob` (Bayes)."""
    return torch.sigmoid(logits + _mean_terms(x, first, theta) - _mean_terms(x, second, theta))


def zinb_log_prob(x: Tensor, mean: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """Zero-inflated negative binomial log-probability; shapes as `nb_log_prob`.

    With π the inflation's logit: a zero has log(σ(π) + σ(−π)·NB(0)), any other x has
    log σ(−π) + log NB(x), both written with softplus for stability.
    """
    softplus_pi = F.softplus(-zi_logits)
    log_theta = torch.log(theta + EPS)
    log_rate_total = torch.log(theta + mean + EPS)
    pi_theta_log = -zi_logits + theta * (log_theta - log_rate_total)
    zero = F.softplus(pi_theta_log) - softplus_pi
    other = (
        -softplus_pi
        + pi_theta_log
        + x * (torch.log(mean + EPS) - log_rate_total)
        + _gamma_terms(x, theta)
    )
    return torch.where(x < EPS, zero, other)


def poisson_log_prob(x: Tensor, mean: Tensor) -> Tensor:
    """Poisson log-probability; `x`, `mean` cells × genes."""
    return torch.xlogy(x, mean) - mean - torch.lgamma(x + 1)
