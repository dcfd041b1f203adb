"""Arguments of the operations in `ops` that group several tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.nn import functional as F

from atlasmap.models.random import Noise

Affine = tuple[Tensor, Tensor]  # weight (outputs × inputs) and bias (outputs)


@dataclass(frozen=True)
class Layers:
    """Layers of a network, each linear → batch norm → layer norm → ReLU → dropout.

    Lists with one entry per layer: `weights` (outputs × inputs), `biases`, `tables` (what
    covariates add: categories × outputs, or cells × outputs with several covariates; None:
    nothing), `batch_norms` (empty: no batch norm). `head`: an affine map applied last, or None; if
    its output parameterises normals, `floor` is added to their variances.
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
        """Whether the faster implementation of `ops` supports these layers."""
        widths = {len(bias) for bias in self.biases}
        return self.layer_norm and not self.batch_norms and len(widths) == 1


@dataclass(frozen=True)
class Logits:
    """hidden · weightᵀ + bias[code], computed on demand. `hidden`: cells × width; `weight`:
    genes × width; `bias`: rows × genes; `code`: each cell's row of `bias`."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    code: Tensor

    @cached_property
    def value(self) -> Tensor:
        """The logits (cells × genes)."""
        if len(self.bias) == 1:
            return F.linear(self.hidden, self.weight, self.bias[0])
        return F.linear(self.hidden, self.weight) + F.embedding(self.code, self.bias)
