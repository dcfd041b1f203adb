"""Random generators keyed by (seed, purpose, …) and passed as arguments; no global state."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def keyed_seed(seed: int, *key: object) -> int:
    """63-bit seed that depends only on `seed` and the parts of `key`."""
    text = "\x1f".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keyed_generator(seed: int, *key: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one purpose, e.g. `keyed_generator(seed, "noise", batch, epoch)`."""
    return torch.Generator(device=device).manual_seed(keyed_seed(seed, *key))


@dataclass(frozen=True)
class Noise:
    """Source of randomness of a forward pass, which is deterministic without one (None).

    `dropout`: apply dropout. `batch_statistics`: batch norm uses the minibatch's statistics and
    updates the running ones. Latents are sampled in any case.
    """

    generator: torch.Generator
    dropout: bool = True
    batch_statistics: bool = True

    def normal_like(self, like: Tensor) -> Tensor:
        """Standard normal values of `like`'s shape."""
        return torch.empty_like(like).normal_(generator=self.generator)

    def drop(self, values: Tensor, rate: float) -> Tensor:
        """Inverted dropout of `values` at `rate`; unchanged if dropout is off."""
        if not self.dropout or rate == 0:
            return values
        keep = torch.empty_like(values).bernoulli_(1 - rate, generator=self.generator)
        return values * keep.div_(1 - rate)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """Uniform values in [-bound, bound)."""
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
