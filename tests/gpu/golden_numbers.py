"""What models of scvi-tools 1.4.2 computed, compared with what ours compute with their weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from atlasmap.bundle import Bundle
from atlasmap.models import ops
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import vae_of
from atlasmap.models.totalvi import Totalvi
from atlasmap.models.vae import Minibatch


@dataclass(frozen=True)
class Golden:
    """A model of ours with scvi-tools' weights, cells on its device, and what scvi-tools computes
    of them."""

    bundle: Bundle
    cells: Minibatch
    expected: dict[str, np.ndarray]

    @property
    def model(self) -> Scvi | Scanvi | Totalvi:
        """The bundle's."""
        return self.bundle.model


@dataclass(frozen=True)
class Difference:
    """The largest difference of one output, and what it must stay below."""

    what: str
    found: float
    most: float


def apart(what: str, ours, theirs, most: float, floor: float | None = None) -> Difference:
    """Absolute difference, or with a `floor` the relative one of values that are larger than it
    (what is smaller is measured against it)."""
    ours = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else ours
    gap, theirs = np.abs(np.asarray(ours, float) - theirs), np.abs(np.asarray(theirs, float))
    gap = gap if floor is None else gap / np.maximum(theirs, floor)
    return Difference(what, float(gap.max()), most)


relative = partial(apart, most=1e-4, floor=1e-6)
density = partial(apart, most=1e-4, floor=1.0)  # logs may be near zero: against one nat


@torch.no_grad()
def differences(golden: Golden) -> Iterator[Difference]:
    """Of all that this kind of model computes."""
    model, cells, expected = golden.model, golden.cells, golden.expected
    posterior = vae_of(model).inference(cells, None)
    yield apart("qz_mean", posterior.latent.mean, expected["qz_mean"], 1e-5)
    yield apart("qz_var", posterior.latent.var, expected["qz_var"], 1e-5)
    if isinstance(model, Totalvi):
        yield from of_totalvi(golden, posterior)
        return
    yield apart("library", posterior.library, expected["library"], 1e-5)
    px = vae_of(model).generative(posterior.z, posterior.library, cells, None)
    yield relative("px_mean", px.mean, expected["px_mean"])
    theta = px.theta.expand_as(px.mean)
    yield relative("px_theta", theta, expected["px_theta"], most=1e-5)
    yield relative("log_prob_sum", px.log_prob(cells.x).sum(1), expected["log_prob_sum"])
    if isinstance(model, Scanvi):
        yield from of_labels(golden, posterior)
        yield from of_loss(golden)


def of_labels(golden: Golden, posterior) -> Iterator[Difference]:
    """scANVI's classifier, and the terms of the unlabelled loss."""
    model, expected = golden.model, golden.expected
    out = model.classify(golden.cells, None)
    probs = model.classifier.probabilities(out)
    log_pz1, kl_z2 = ops.label_terms(*model.label_networks, posterior.z, None)
    latent = posterior.latent
    log_qz1 = ops.log_normal(posterior.z, latent.mean, latent.var).sum(1)
    yield apart("classifier_output", out, expected["classifier_output"], 1e-4)
    yield apart("predict_soft", probs, expected["predict_soft"], 1e-5)
    yield density("log_pz1", log_pz1, expected["log_pz1"])
    yield relative("kl_z2", kl_z2, expected["kl_z2"])
    yield density("log_qz1", log_qz1, expected["log_qz1"])
    yield apart("kl_y", model.kl_labels(probs), expected["kl_y"], 1e-5)


def of_loss(golden: Golden) -> Iterator[Difference]:
    """scANVI's unlabelled loss is the sum of its terms."""
    loss, e = golden.model.loss(golden.cells, None, 0.5), golden.expected
    probs = e["predict_soft"].T
    reconstruction = -e["log_prob_sum"] + e["log_qz1"] - (probs * e["log_pz1"]).sum(0)
    kl = (probs * e["kl_z2"]).sum(0) + e["kl_y"]
    yield relative("sum of reconstruction_loss", loss.sums["reconstruction_loss"],
                   reconstruction.sum())  # fmt: skip
    yield relative("sum of kl_local", loss.sums["kl_local"], kl.sum())
    yield relative("loss", loss.total, (reconstruction + 0.5 * kl).mean())


def of_totalvi(golden: Golden, posterior) -> Iterator[Difference]:
    """totalVI's decoders of genes and proteins."""
    model, cells, expected = golden.model, golden.cells, golden.expected
    decoded = model.decode(posterior.z, posterior.library, cells, None)
    rna, py = decoded.rna, decoded.protein
    yield relative("px_rate", rna.rate, expected["px_rate"])
    yield relative("px_scale", rna.rate / cells.depth, expected["px_scale"])
    yield relative("px_r", rna.theta[0], expected["px_r"])
    yield relative("py_r", py.theta[0], expected["py_r"])
    yield relative("py_back_beta", py.back_sd, expected["py_back_beta"])
    yield relative("py_fore_scale", py.fore_scale, expected["py_fore_scale"])
    efficiency = expected["log_per_batch_efficiency"].T[cells.codes[0].cpu().numpy()]
    yield density("py_back_alpha", py.back_mean, expected["py_back_alpha"])
    yield density("py_mixing", py.mixing, expected["py_mixing"])
    yield density("log_per_batch_efficiency", py.log_efficiency, efficiency)
    background = np.exp(expected["py_back_alpha"])
    yield relative("background", py.background, background)
    yield relative("foreground", py.foreground, background * expected["py_fore_scale"])
