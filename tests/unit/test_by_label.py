"""scANVI's labels in one compiled pass: against torch in float64, with dropout, on any threads."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from fixed_noise import Fixed
from torch.nn import functional as F

from atlasmap.models import ops
from atlasmap.models.compiled.labels import NEGLIGIBLE, Rows
from atlasmap.models.random import Noise, keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.vae import Minibatch, Shape
from atlasmap.settings import ScviSettings

CELLS, LABELS, LATENT = 9, 7, 3


def scanvi(n_layers: int = 2, n_labels: int = LABELS, n_hidden: int = 16, **more) -> Scanvi:
    rng = keyed_generator(0, "t")
    settings = ScviSettings(n_hidden=n_hidden, n_latent=LATENT, n_layers=n_layers, **more)
    return Scanvi(Scvi(settings, Shape(20, (2,)), rng), "linear", n_labels, rng)


def given(n_cells: int = CELLS, n_labels: int = LABELS) -> tuple[torch.Tensor, torch.Tensor]:
    """z1 and probabilities, of which every label lacks some cells and one label all."""
    rng = keyed_generator(0, "t")
    probs = torch.softmax(30 * torch.randn(n_cells, n_labels, generator=rng), 1)
    probs[:, 2] = 0
    return torch.randn(n_cells, LATENT, generator=rng), probs


def networks(model: Scanvi) -> list[torch.nn.Parameter]:
    return [*model.encoder_z2.parameters(), *model.decoder_z1.parameters()]


def label_loss(model: Scanvi, z1: torch.Tensor, probs: torch.Tensor, noise):
    frozen = not model.classifier.out.weight.requires_grad
    return ops.label_loss(*model.label_networks, z1, probs, 0.3, noise, frozen=frozen)


def told(model: Scanvi, z1: torch.Tensor, probs: torch.Tensor, noise) -> list[torch.Tensor]:
    """Loss, both sums, and gradients for z1, the probabilities and what trains."""
    asked = [t.detach().clone().requires_grad_() for t in (z1, probs)]
    out = label_loss(model, *asked, noise)
    trained = [p for p in networks(model) if p.requires_grad]
    return [*out, *torch.autograd.grad(0.7 * out[0], asked + trained)]


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("surgery", [False, True])
def test_the_compiled_pass_is_torchs_in_float64(n_layers, surgery):
    model = scanvi(n_layers)
    z1, probs = given()
    if surgery:  # nothing of it trains, and labels are left out
        model.requires_grad_(False)
    rows = Rows.of(probs.T > NEGLIGIBLE)
    assert CELLS < len(rows.cell) < CELLS * LABELS
    noise = torch.randn(LABELS, CELLS, LATENT, generator=keyed_generator(1, "t"))
    some = noise[rows.label, rows.cell] if surgery else noise
    found = told(model, z1, probs, Fixed(some))
    exact = told(deepcopy(model).double(), z1.double(), probs.double(), Fixed(noise))
    assert (len(found) > 5) != surgery
    if surgery:  # what is left out gives no gradient: it is multiplied by its probability
        found[4], exact[4] = (g * (probs > NEGLIGIBLE) for g in (found[4], exact[4]))
    for ours, torchs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), torchs, rtol=1e-4, atol=1e-5)


def test_dropout_is_that_of_the_networks_one_by_one(monkeypatch):
    model, (z1, probs) = scanvi(dropout_rate=0.4), given()
    found = told(model, z1, probs, Noise(keyed_generator(2, "t")))

    def one_by_one(encoder, decoder, z1, probs, kl_weight, noise, *, frozen):
        rows = Rows.of_all(*probs.shape, z1.device)
        x, share = z1[rows.cell], probs.T.flatten()
        packed = ops.network(x, encoder, rows.label, noise)
        z2, kl, _ = ops.draw(packed, ops.standard_normal(x, noise), encoder.floor)
        packed = ops.network(z2, decoder, rows.label, noise)
        kl, log_p = share @ kl, share @ ops.log_density(x, packed, decoder.floor)
        return kl_weight * kl - log_p, log_p.detach(), kl.detach()

    monkeypatch.setattr(ops, "label_loss", one_by_one)
    apart = told(model, z1, probs, Noise(keyed_generator(2, "t")))
    for ours, torchs in zip(found, apart, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)
    without = told(model, z1, probs, Noise(keyed_generator(2, "t"), dropout=False))
    assert not torch.allclose(without[0], found[0], rtol=1e-3)


@pytest.mark.parametrize(("n_cells", "n_labels", "n_hidden"), [(9, 7, 16), (128, 17, 128),
                                                               (128, 300, 8)])  # fmt: skip
def test_threads_change_no_bit(n_cells, n_labels, n_hidden):
    """Nor where torch would divide a sum among threads, or BLAS goes another way."""
    model, (z1, probs) = scanvi(2, n_labels, n_hidden), given(n_cells, n_labels)
    before, seen = torch.get_num_threads(), set()
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            parts = told(model, z1, probs, Noise(keyed_generator(2, "t")))
            seen.add(b"".join(part.detach().numpy().tobytes() for part in parts))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_what_is_no_number_stays_so():
    model, (z1, probs) = scanvi(), given()
    with torch.no_grad():
        model.decoder_z1.log_var.bias[1] = torch.nan
    assert label_loss(model, z1, probs, None)[0].isnan()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_cells_encoded_together_are_those_encoded_apart(norm):
    more = {f"use_{kind}_norm": "both" if kind == norm else "none" for kind in ("layer", "batch")}
    model, rng = scanvi(**more), keyed_generator(3, "t")
    x = torch.poisson(torch.rand(11, 20, generator=rng))
    codes, labels = torch.arange(11) % 2, torch.arange(11) % LABELS

    def cells(rows: np.ndarray) -> Minibatch:
        return Minibatch.of(x[rows], (codes[rows],), None, labels[rows])

    def noise() -> Noise:
        return Noise(keyed_generator(4, "t"), dropout=False)

    loss, *of_labels = model.loss_with_labels(cells(np.arange(11)), 7, noise(), 0.5)
    same = noise()
    first = model.loss(cells(np.arange(7)), same, 0.5)
    others = cells(np.arange(7, 11))
    out = model.classify(others, same)
    others = F.cross_entropy(out, others.labels), model.classifier.probabilities(out)
    assert loss.n == first.n == 7
    torch.testing.assert_close(loss.total, first.total)
    for ours, apart in zip([*loss.sums.values(), *of_labels], [*first.sums.values(), *others],
                           strict=True):  # fmt: skip
        torch.testing.assert_close(ours, apart)
