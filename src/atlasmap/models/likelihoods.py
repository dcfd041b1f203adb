"""Log-likelihoods of counts: negative binomial, its zero-inflated form, Poisson, and the mixture of
two negative binomials used for proteins.

The negative binomial is parameterised by mean and inverse dispersion (Lopez et al. 2018, methods;
Grønbech et al. 2020). Small constants are placed as scvi-tools 1.4.2 places them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from atlasmap.models import ops
from atlasmap.models.operands import Logits
from atlasmap.models.ops import EPS, gamma_terms, nb_log_prob, nb_mean_terms


@dataclass(frozen=True)
class CountDistribution:
    """p(x | z) for a minibatch; shapes are cells × genes.

    `last`: the decoder's last layer, whose softmax is each gene's fraction of the library;
    `library`: log library size (cells × 1); `theta`: inverse dispersion (cells × genes or
    1 × genes; None for Poisson); `zi_logits`: logits of the zero inflation (zero-inflated form
    only).
    """

    last: Logits
    library: Tensor
    theta: Tensor | None = None
    zi_logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """Logits of each gene's fraction of the library."""
        return self.last.value

    @property
    def share(self) -> Tensor:
        """Each gene's fraction of the library."""
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

    def mean_loss(self, counts: ops.Counts) -> tuple[Tensor, Tensor]:
        """Returns (mean over cells of −log p(x), −log p(x) per cell without gradients)."""
        by_gene = self.theta is not None and len(self.theta) == 1
        if by_gene and self.zi_logits is None:
            return ops.counts_loss(self.last, self.library, self.theta, counts)
        each = -self.log_prob(ops.dense(counts)).sum(1)
        return each.mean(), each.detach()

    def log_prob(self, x: Tensor) -> Tensor:
        """Elementwise log-probability of the counts `x` (cells × genes)."""
        if self.theta is None:
            return poisson_log_prob(x, self.rate)
        if self.zi_logits is None:
            return nb_log_prob(x, self.rate, self.theta)
        return zinb_log_prob(x, self.rate, self.theta, self.zi_logits)


def nb_mixture_log_prob(
    x: Tensor, first: Tensor, second: Tensor, theta: Tensor, logits: Tensor
) -> Tensor:
    """Elementwise log-probability of a mixture of two negative binomials (Gayoso et al. 2021,
    methods): means `first` and `second` (cells × proteins), one inverse dispersion `theta`;
    `logits` of the first component's weight."""
    either = torch.logaddexp(
        nb_mean_terms(x, first, theta), nb_mean_terms(x, second, theta) - logits
    )
    return either - F.softplus(-logits) + gamma_terms(x, theta)


def nb_first_probability(
    x: Tensor, first: Tensor, second: Tensor, theta: Tensor, logits: Tensor
) -> Tensor:
    """Posterior probability of the first component of `nb_mixture_log_prob`, given `x`."""
    return torch.sigmoid(logits + nb_mean_terms(x, first, theta) - nb_mean_terms(x, second, theta))


def zinb_log_prob(x: Tensor, mean: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """Zero-inflated negative binomial log-probability; shapes as `nb_log_prob`.

    With π the logit of the zero inflation: log(σ(π) + σ(−π)·NB(0)) for x = 0, and
    log σ(−π) + log NB(x) otherwise; both are written with softplus for numerical stability.
    """
    nb = nb_log_prob(x, mean, theta) - zi_logits
    return torch.where(x < EPS, F.softplus(nb), nb) - F.softplus(-zi_logits)


def poisson_log_prob(x: Tensor, mean: Tensor) -> Tensor:
    """Poisson log-probability; `x`, `mean` cells × genes."""
    return torch.xlogy(x, mean) - mean - torch.lgamma(x + 1)
