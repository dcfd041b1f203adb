"""What the operations of `ops` are given besides tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.nn import functional as F

from atlasmap.models.random import Noise

Affine = tuple[Tensor, Tensor]  # weight (outputs × inputs) and bias (outputs)


@dataclass(frozen=True)
class Layers:
    """Layers of a network: linear → batch norm → layer norm → ReLU → dropout.

    A list entry per layer: `weights` (outputs × inputs) and `biases`; `tables` hold what covariates
    add (categories × outputs, or cells × outputs with several covariates; None: nothing);
    `batch_norms` (or none at all). `head` is an affine map of what comes out, or None; where it
    gives normals, `floor` is added to their variances.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    tables: Sequence[Tensor | None]
    batch_norms: Sequence[Callable[[Tensor, Noise | None], Tensor]] = ()
    layer_norm: bool = True
    dropout_rate: float = 0.0
    head: Affine | None = None
    floor: float = 0.0

    @property
    def have_faster(self) -> bool:
        """Whether the faster bodies know such layers."""
        widths = {len(bias) for bias in self.biases}
        return self.layer_norm and not self.batch_norms and len(widths) == 1


@dataclass(frozen=True)
class Logits:
    """hidden · weightᵀ + bias[code], computed where it is asked for: `hidden` cells × width,
    `weight` genes × width, `bias` rows × genes, `code` each cell's row of it."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    code: Tensor

    @cached_property
    def value(self) -> Tensor:
        """cells × genes."""
        if len(self.bias) == 1:
            return F.linear(self.hidden, self.weight, self.bias[0])
        return F.linear(self.hidden, self.weight) + F.embedding(self.code, self.bias)
