"""Operations of the models, each with a plain and, for CPUs, a compiled implementation.

Each operation is defined here in plain torch, which also runs on GPUs. On a CPU in float32 a numba
implementation with its own gradient (`compiled`) replaces it, with equal results up to rounding.
`use("plain")`, or ATLASMAP_OPS=plain, selects plain torch everywhere.
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
EPS = 1e-8  # placed where scvi-tools 1.4.2 places it
Counts = Tensor  # cells × genes; or `compiled.sparse.SparseRows`, which `dense` converts
_chosen = "auto"


def use(choice: str) -> None:
    """Choose this process's implementation: "auto" (compiled where possible) or "plain" torch.

    Raises OPS_UNKNOWN.
    """
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
    """The compiled implementations if they support tensors like `x`, else None. All operations
    decide by this function alone."""
    if _chosen == "plain" or x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    return tested()


@cache
def tested() -> ModuleType | None:
    """The compiled implementations; None if they fail to load or to reproduce a known result."""
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
    """Which implementation float32 models use on `device`: "compiled" or "plain"."""
    return "compiled" if faster(torch.empty(0, device=device)) else "plain"


def rows(indptr: Tensor, indices: Tensor, data: Tensor, n_genes: int, index: Tensor) -> Counts:
    """The cells `index` of a CSR matrix of counts (len(index) × genes)."""
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
    """The counts as a dense tensor (cells × genes)."""
    return counts if isinstance(counts, Tensor) else counts.dense()


def product(x: Counts, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b (cells × outputs) for an `x` (cells × inputs) that is mostly zero."""
    if not isinstance(x, Tensor) and (fast := faster(weight)):
        return fast.product(x, weight, bias)
    return F.linear(dense(x), weight, bias)


def network(
    x: Tensor, layers: Layers, code: Tensor | None, noise: Noise | None, *, known: bool = False
) -> Tensor:
    """Apply the layers, and their head if there is one, to `x` (…, inputs).

    `code` (broadcast to …): the table row of each row of `x`; None: row i of `x` has table row i.
    `known`: `x` is already the first layer's W x + b.
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
    """log N(x), summed over the width (…). `x` has the shape of the normals, or lacks their leading
    axis, along which it is then broadcast."""
    if fast := faster(packed):
        return fast.log_density(x, packed, floor)
    return log_normal(x, *moments(packed, floor)).sum(-1)


def nb_mean_terms(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """The terms of the negative binomial's log-probability that depend on the mean."""
    log_total = torch.log(theta + mean + EPS)
    return theta * (torch.log(theta + EPS) - log_total) + x * (torch.log(mean + EPS) - log_total)


def gamma_terms(x: Tensor, theta: Tensor) -> Tensor:
    """ln Γ(x + θ) − ln Γ(θ) − ln x!, elementwise; zero where x is zero."""
    if fast := faster(x):
        return fast.gamma_terms(x, theta)
    return torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def nb_log_prob(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Elementwise negative binomial log-probability (Lopez et al. 2018, methods); `x`, `mean`
    cells × genes, inverse dispersion `theta` broadcast to them."""
    return nb_mean_terms(x, mean, theta) + gamma_terms(x, theta)


def counts_loss(
    logits: Logits, library: Tensor, theta: Tensor, counts: Counts
) -> tuple[Tensor, Tensor]:
    """Returns (mean over cells of −log p(x), −log p(x) per cell); only the mean is differentiable.

    p is the negative binomial with mean exp(`library`) · softmax(`logits`); `library`: log library
    size (cells × 1); `theta`: inverse dispersion (1 × genes).
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
    """Label-dependent terms of scANVI's loss, each weighted by q(y | z1) (`probs`, cells × labels)
    and summed over cells and labels y.

    Returns (Σ q (kl_weight · KL − log p), Σ q log p, Σ q KL), where log p is log p(z1 | z2, y) and
    KL is that of q(z2 | z1, y); the latter two without gradients. `encoder`: q(z2 | z1, y);
    `decoder`: p(z1 | z2, y); their tables have one row per label. `frozen`: the classifier is not
    trained, so that the compiled implementation may skip labels of negligible probability.
    """
    if encoder.have_faster and decoder.have_faster and (fast := faster(z1)):
        return fast.label_loss(encoder, decoder, z1, probs, kl_weight, noise, frozen=frozen)
    log_p, kl = (probs.T.flatten() @ terms.flatten()
                 for terms in label_terms(encoder, decoder, z1, noise))  # fmt: skip
    return kl_weight * kl - log_p, log_p.detach(), kl.detach()


def label_terms(
    encoder: Layers, decoder: Layers, z1: Tensor, noise: Noise | None
) -> tuple[Tensor, Tensor]:
    """log p(z1 | z2, y) and KL(q(z2 | z1, y)) of each label y and cell (labels × cells)."""
    labels = torch.arange(len(encoder.tables[0]), device=z1.device)[:, None]
    packed = network(z1, encoder, labels, noise)  # labels × cells × 2 latent
    z2, kl, _ = draw(packed, standard_normal(z1.expand(len(labels), -1, -1), noise), encoder.floor)
    return log_density(z1, network(z2, decoder, labels, noise), decoder.floor), kl


def standard_normal(like: Tensor, noise: Noise | None) -> Tensor:
    """Standard normal values of `like`'s shape; zeros without noise, so that z is the mean."""
    like = torch.empty_like(like, memory_format=torch.contiguous_format)
    return like.zero_() if noise is None else noise.normal_like(like)
