"""Training totalVI against an adversary that predicts the batch from the latent.

Without it, the latent would separate batches in which proteins were not measured (Gayoso et al.
2021, methods). The adversary's weight falls from 1 to 0 while the KL terms warm up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlasmap.models.layers import Linear, Stack
from atlasmap.models.random import Noise, keyed_generator
from atlasmap.models.vae import Loss
from atlasmap.training.adam import Adam
from atlasmap.training.objectives import Step, Unsupervised

WIDTH = 32


class Adversary(nn.Module):
    """Predicts the batch from the latent: two hidden layers with batch norm, as in scvi-tools."""

    def __init__(self, n_latent: int, n_batches: int, rng: torch.Generator):
        super().__init__()
        self.stack = Stack(
            n_latent, [WIDTH, WIDTH], (), rng, batch_norm=True, layer_norm=False, dropout_rate=0.1
        )
        self.out = Linear(WIDTH, n_batches, rng)

    def forward(self, z: Tensor, noise: Noise) -> Tensor:
        """`z` cells × latent → logits, cells × batches."""
        return self.out(self.stack(z, (), noise))


@dataclass
class Adversarial(Unsupervised):
    """totalVI's loss plus the loss of fooling the adversary, which is trained after each step.

    `n_optimisers` = 2: in a KL warm-up by steps, scvi-tools also counts the adversary's steps, so
    that the warm-up is twice as fast.
    """

    n_optimisers = 2

    def __post_init__(self):
        shape, rng = self.model.shape, keyed_generator(self.seed, self.purpose, "adversary")
        n_batches = shape.n_categories[0]
        self.adversary = Adversary(self.model.settings.n_latent, n_batches, rng)
        self.adversary.to(self.cells.device)
        parameters = self.adversary.parameters()
        self.optimiser = Adam(parameters, lr=1e-3, eps=0.01, weight_decay=1e-6)

    def training_loss(self, step: Step, noise: Noise, kl_weight: float) -> Loss:
        loss = self.loss(step, noise, kl_weight)
        batch = self.cells.codes[torch.as_tensor(step[0], device=self.cells.device), 0]
        self._last = (loss.z.detach(), batch)
        weight = 1 - kl_weight
        if weight == 0:
            return loss
        logs = torch.log_softmax(self.adversary(loss.z, noise), -1)
        others = 1 - F.one_hot(batch, logs.shape[1]).to(logs)
        fooled = -(logs * others).sum(1).mean() / (logs.shape[1] - 1)
        return Loss(loss.total + weight * fooled, loss.n, loss.sums)

    def after_step(self, noise: Noise, kl_weight: float) -> None:
        if kl_weight == 1:
            return
        z, batch = self._last
        self.optimiser.zero_grad()
        ((1 - kl_weight) * F.cross_entropy(self.adversary(z, noise), batch)).backward()
        self.optimiser.step()

    def extra(self) -> dict[str, Tensor]:
        parts = {"weight": self.adversary.state_dict(), "moment": self.optimiser.state()}
        return {f"{part} {k}": v for part, values in parts.items() for k, v in values.items()}

    def restore_extra(self, extra: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"weight": {}, "moment": {}}
        for key, value in extra.items():
            part, name = key.split(" ", 1)
            parts[part][name] = value
        self.adversary.load_state_dict(parts["weight"])
        self.optimiser.restore(parts["moment"])
