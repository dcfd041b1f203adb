"""Adam with torch's fused kernel.

torch.optim.Adam does the same, but its construction loads torch's compiler (two seconds per
process), and its checks in each step take as long as the kernel. The kernel is private to torch, so
it is first tested on known numbers; if the test fails, plain torch replaces it.
"""

import logging
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor, nn

log = logging.getLogger("atlasmap")
BETAS = (0.9, 0.999)
Tensors = list[Tensor]


def fused(
    parameters: Tensors, gradients: Tensors, first: Tensors, second: Tensors, steps: Tensors,
    lr: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """One step by torch's fused kernel, in place. `first`, `second`: the moments; `steps`: steps of
    each parameter so far, including this one."""
    torch._fused_adam_(
        parameters, gradients, first, second, [], steps,
        amsgrad=False, maximize=False, beta1=BETAS[0], beta2=BETAS[1],
        lr=lr, eps=eps, weight_decay=weight_decay,
    )  # fmt: skip


def plain(
    parameters: Tensors, gradients: Tensors, first: Tensors, second: Tensors, steps: Tensors,
    lr: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """As `fused`, in plain torch (Kingma & Ba 2015, algorithm 1)."""
    of_each = zip(parameters, gradients, first, second, steps, strict=True)
    for parameter, gradient, mean, square, step in of_each:
        gradient = gradient + weight_decay * parameter
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        scale = (square / (1 - BETAS[1] ** step)).sqrt() + eps
        parameter.sub_(lr / (1 - BETAS[0] ** step) * mean / scale)


@cache
def body_on(device: torch.device) -> Callable:
    """`fused`, if it gives the results of `plain` on this device, else `plain`."""
    start = torch.tensor([1.0, -2.0, 3.0], device=device)
    found = []
    try:
        for body in (plain, fused):
            x, moments, step = start.clone(), start.new_zeros(2, 3), start.new_ones(())
            body([x], [start * 2], [moments[0]], [moments[1]], [step], 0.1, 0.01, 1e-3)
            found.append(torch.cat([x, moments.flatten()]))
        if not torch.allclose(*found, atol=1e-6):
            raise ArithmeticError("a step from known numbers came out otherwise")
    except Exception as error:
        log.warning("Adam runs in plain torch, which is slower: %r", error)
        return plain
    return fused


def lying(turned: list[bool], matrices: list[Tensor]) -> list[Tensor]:
    """Transposes the matrices marked in `turned`, which are stored column by column: the kernel
    would copy them otherwise."""
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
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        own = [k for k, parameter in enumerate(self.parameters) if parameter.grad is not None]
        parameters = [self.parameters[k] for k in own]
        turned = [p.dim() == 2 and not p.is_contiguous() for p in parameters]
        first, second, steps = ([values[k] for k in own] for values in self.moments.values())
        gradients = [p.grad for p in parameters]
        parameters, gradients, first, second = (
            lying(turned, matrices) for matrices in (parameters, gradients, first, second)
        )
        if not own:
            return
        torch._foreach_add_(steps, 1)
        how = self.lr, self.eps, self.weight_decay
        body_on(parameters[0].device)(parameters, gradients, first, second, steps, *how)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts, named "{index of the parameter} {name}"."""
        return {f"{k} {name}": v for name, all_ in self.moments.items() for k, v in enumerate(all_)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set moments and step counts from `state`, in place."""
        for key, value in state.items():
            k, name = key.split(" ")
            self.moments[name][int(k)].copy_(value)
