"""The one seam between the models and faster ways to compute them.

Each operation stands here in plain torch: what it means, and what a GPU runs. On a CPU in float32 a
faster body with a gradient of its own (`compiled`) takes its place, with the same numbers to
rounding. `use("plain")`, or ATLASMAP_OPS=plain, keeps the plain bodies everywhere.
"""

import logging
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from atlasmap.errors import AtlasmapError
from atlasmap.models.operands import Layers, Logits
from atlasmap.models.random import Noise

log = logging.getLogger("atlasmap")
CHOICES = ("auto", "plain")
EPS = 1e-8  # where scvi-tools 1.4.2 has it
Counts = Tensor  # cells × genes; or `compiled.SparseRows`, which `dense` makes a tensor of
_chosen = "auto"


def use(choice: str) -> None:
    """Which bodies this process runs: "auto" (the faster ones where there are any) or "plain"."""
    global _chosen
    if choice not in CHOICES:
        raise AtlasmapError(
            "OPS_UNKNOWN",
            expected=f"ATLASMAP_OPS as one of: {', '.join(CHOICES)}",
            found=choice,
            mend="set it to one of these, or unset it",
        )
    _chosen = choice


use(os.environ.get("ATLASMAP_OPS", "auto"))


def faster(x: Tensor) -> ModuleType | None:
    """The faster bodies, where there are any for values like `x`. Nothing else decides by
    device."""
    if _chosen == "plain" or x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    return tested()


@cache
def tested() -> ModuleType | None:
    """The faster bodies, if they can be loaded and a known result comes out right."""
    try:
        from atlasmap.models import compiled

        x, one = torch.tensor([[1.0, 3.0]]).expand(300, 2), torch.eye(2)
        head = torch.tensor([[2.0, 5.0]]), torch.ones(1)
        found = compiled.network(x, Layers([one], [one[0] * 0], [None], head=head), None, None)
        if not torch.allclose(found, torch.full((300, 1), 6.0), atol=1e-3):
            raise ArithmeticError("a layer of known numbers came out otherwise")
    except Exception as error:
        log.warning("models run on plain torch, which is slower: %r", error)
        return None
    return compiled


def in_use(device: torch.device) -> str:
    """What models in float32 run on there: "compiled" or "plain"."""
    return "compiled" if faster(torch.empty(0, device=device)) else "plain"


def rows(indptr: Tensor, indices: Tensor, data: Tensor, n_genes: int, index: Tensor) -> Counts:
    """Cells `index` of a CSR matrix of counts."""
    if fast := faster(data):
        return fast.rows(indptr, indices, data, n_genes, index)
    first = indptr[index]
    n = indptr[index + 1] - first
    cell = torch.arange(len(index), device=index.device).repeat_interleave(n)
    at = torch.arange(len(cell), device=index.device) + (first - n.cumsum(0) + n)[cell]
    out = data.new_zeros(len(index), n_genes)
    out[cell, indices[at].long()] = data[at]
    return out


def dense(counts: Counts) -> Tensor:
    """cells × genes."""
    return counts if isinstance(counts, Tensor) else counts.dense()


def product(x: Counts, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b (cells × outputs) of an `x` (cells × inputs) that is mostly zero."""
    if not isinstance(x, Tensor) and (fast := faster(weight)):
        return fast.product(x, weight, bias)
    return F.linear(dense(x), weight, bias)


def network(
    x: Tensor, layers: Layers, code: Tensor | None, noise: Noise | None, *, known: bool = False
) -> Tensor:
    """`x` (…, inputs) through the layers (and their head).

    `code` (broadcast to …) is each row's row in the tables; None: its own. If the first layer's
    product W x + b is `known`, it is given for `x`.
    """
    aligned = code is None or (x.dim() == 2 and code.shape == x.shape[:1])
    if layers.have_faster and aligned and (fast := faster(x)):
        return fast.network(x, layers, code, noise, known=known)
    for k, (weight, bias, table) in enumerate(
        zip(layers.weights, layers.biases, layers.tables, strict=True)
    ):
        x = x if known and k == 0 else F.linear(x, weight, bias)
        if table is not None:
            x = x + (table if code is None else F.embedding(code, table))
        if layers.batch_norms:
            x = layers.batch_norms[k](x, noise)
        if layers.layer_norm:
            x = F.layer_norm(x, x.shape[-1:])
        x = torch.relu(x)
        if noise is not None:
            x = noise.drop(x, layers.dropout_rate)
    return x if layers.head is None else F.linear(x, *layers.head)


def moments(packed: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of normals (…, width): packed = [mean, raw]; var = exp(raw) + floor."""
    mean, raw = packed.chunk(2, -1)
    return mean, torch.exp(raw) + floor


def log_normal(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """log N(x; mean, var), elementwise."""
    return -0.5 * ((x - mean).square() / var + torch.log(2 * torch.pi * var))


def kl_standard_normal(mean: Tensor, var: Tensor) -> Tensor:
    """KL(N(mean, var) ‖ N(0, 1)), elementwise."""
    return 0.5 * (var + mean.square() - 1 - torch.log(var))


def draw(packed: Tensor, noise: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Reparameterised samples z (…, width) of normals, given standard normal `noise` (…, width).

    Also KL(N ‖ N(0, 1)) and log N(z), both summed over the width (…).
    """
    if fast := faster(packed):
        return fast.draw(packed, noise, floor)
    mean, var = moments(packed, floor)
    z = mean + var.sqrt() * noise
    return z, kl_standard_normal(mean, var).sum(-1), log_normal(z, mean, var).sum(-1)


def log_density(x: Tensor, packed: Tensor, floor: float) -> Tensor:
    """log N(x), summed over the width (…): `x` as the normals, or without their leading axis, over
    which it is then repeated."""
    if fast := faster(packed):
        return fast.log_density(x, packed, floor)
    return log_normal(x, *moments(packed, floor)).sum(-1)


def nb_mean_terms(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """What of the negative binomial's log-probability depends on the mean."""
    log_total = torch.log(theta + mean + EPS)
    return theta * (torch.log(theta + EPS) - log_total) + x * (torch.log(mean + EPS) - log_total)


def gamma_terms(x: Tensor, theta: Tensor) -> Tensor:
    """ln Γ(x + θ) − ln Γ(θ) − ln x! of each entry: zero where x is zero."""
    if fast := faster(x):
        return fast.gamma_terms(x, theta)
    return torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def nb_log_prob(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Negative binomial log-probability of each entry; `x`, `mean` cells × genes, the inverse
    dispersion `theta` broadcast to them (Lopez et al. 2018, methods)."""
    return nb_mean_terms(x, mean, theta) + gamma_terms(x, theta)


def counts_loss(
    logits: Logits, library: Tensor, theta: Tensor, counts: Counts
) -> tuple[Tensor, Tensor]:
    """Returns (mean over cells of −log p(x), that of each cell); only the mean is differentiable.

    The negative binomial whose mean is exp(`library`) · softmax(`logits`): `library` is the log
    library size (cells × 1), `theta` the inverse dispersion (1 × genes).
    """
    if fast := faster(logits.hidden):
        return fast.counts_loss(logits, library, theta, counts)
    mean = torch.exp(library) * torch.softmax(logits.value, -1)
    each = -nb_log_prob(dense(counts), mean, theta).sum(1)
    return each.mean(), each.detach()


def label_loss(
    encoder: Layers, decoder: Layers, z1: Tensor, probs: Tensor, kl_weight: float,
    noise: Noise | None, *, frozen: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Σ p (kl_weight · KL(q(z2 | z1, y)) − log p(z1 | z2, y)) over cells and labels y, with their
    probabilities p (`probs`, cells × labels); also Σ p log p(z1) and Σ p KL, without gradients.

    `encoder` is q(z2 | z1, y), `decoder` p(z1 | z2, y); a table's rows are labels. If the
    classifier is `frozen`, a faster body may leave out labels that a cell hardly can have.
    """
    if encoder.have_faster and decoder.have_faster and (fast := faster(z1)):
        return fast.label_loss(encoder, decoder, z1, probs, kl_weight, noise, frozen=frozen)
    log_p, kl = (probs.T.flatten() @ terms.flatten()
                 for terms in label_terms(encoder, decoder, z1, noise))  # fmt: skip
    return kl_weight * kl - log_p, log_p.detach(), kl.detach()


def label_terms(
    encoder: Layers, decoder: Layers, z1: Tensor, noise: Noise | None
) -> tuple[Tensor, Tensor]:
    """log p(z1 | z2, y) and KL(q(z2 | z1, y)) of every label y with every cell (labels × cells)."""
    labels = torch.arange(len(encoder.tables[0]), device=z1.device)[:, None]
    packed = network(z1, encoder, labels, noise)  # labels × cells × 2 latent
    z2, kl, _ = draw(packed, standard_normal(z1.expand(len(labels), -1, -1), noise), encoder.floor)
    return log_density(z1, network(z2, decoder, labels, noise), decoder.floor), kl


def standard_normal(like: Tensor, noise: Noise | None) -> Tensor:
    """Samples of `like`'s shape; zeros without noise, which make a draw the mean."""
    like = torch.empty_like(like, memory_format=torch.contiguous_format)
    return like.zero_() if noise is None else noise.normal_like(like)
