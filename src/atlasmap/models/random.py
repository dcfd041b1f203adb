"""Randomness as an argument: generators keyed by (seed, purpose, …), never ambient state."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def keyed_seed(seed: int, *key: object) -> int:
    """63-bit seed that depends on `seed` and every part of `key` and on nothing else."""
    text = "\x1f".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keyed_generator(seed: int, *key: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one purpose, e.g. `keyed_generator(seed, "noise", batch, epoch)`."""
    return torch.Generator(device=device).manual_seed(keyed_seed(seed, *key))


@dataclass(frozen=True)
class Noise:
    """What a stochastic forward pass draws from.

    `dropout` switches dropout on, `batch_statistics` makes batch norm use and update those of the
    minibatch; the reparameterisation noise is drawn either way. A forward pass given no `Noise` at
    all is deterministic.
    """

    generator: torch.Generator
    dropout: bool = True
    batch_statistics: bool = True

    def normal_like(self, like: Tensor) -> Tensor:
        """Standard normal values of `like`'s shape."""
        return torch.empty_like(like).normal_(generator=self.generator)

    def drop(self, values: Tensor, rate: float) -> Tensor:
        """Inverted dropout."""
        if not self.dropout or rate == 0:
            return values
        keep = torch.empty_like(values).bernoulli_(1 - rate, generator=self.generator)
        return values * keep.div_(1 - rate)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """Uniform values in [-bound, bound)."""
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
