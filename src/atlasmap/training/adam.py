"""Adam with torch's fused kernel.

torch.optim's class does the same, but to make one loads torch's compiler (two seconds a process),
and what it asks in each step takes as long as the kernel.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)


def lying(turned: list[bool], matrices: list[Tensor]) -> list[Tensor]:
    """Those that are `turned` have columns together in memory: the kernel would copy them."""
    return [x.t() if turn else x for turn, x in zip(turned, matrices, strict=True)]


class Adam:
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient (L2), as torch.optim.Adam."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, eps: float, weight_decay: float
    ):
        self.parameters = list(parameters)
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.moments = {
            "exp_avg": [torch.zeros_like(p) for p in self.parameters],
            "exp_avg_sq": [torch.zeros_like(p) for p in self.parameters],
            "step": [torch.zeros((), device=p.device) for p in self.parameters],
        }

    def zero_grad(self) -> None:
        """Forget gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        own = [k for k, parameter in enumerate(self.parameters) if parameter.grad is not None]
        parameters = [self.parameters[k] for k in own]
        turned = [p.dim() == 2 and not p.is_contiguous() for p in parameters]
        first, second, steps = ([values[k] for k in own] for values in self.moments.values())
        slopes = [p.grad for p in parameters]
        parameters, slopes, first, second = (
            lying(turned, matrices) for matrices in (parameters, slopes, first, second)
        )
        if not own:
            return
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters, slopes, first, second, [], steps,
            amsgrad=False, maximize=False, beta1=BETAS[0], beta2=BETAS[1],
            lr=self.lr, eps=self.eps, weight_decay=self.weight_decay,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Moments and steps of each parameter, by name."""
        return {f"{k} {name}": v for name, all_ in self.moments.items() for k, v in enumerate(all_)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Be as `state` says."""
        for key, value in state.items():
            k, name = key.split(" ")
            self.moments[name][int(k)].copy_(value)
