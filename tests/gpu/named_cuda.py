"""CPU tensors that are called cuda:0, so that the code takes the branches that it takes on a GPU.

Numbers are real, and a CPU's. What only a GPU does is not seen: its kernels, its memory, and that
tensors of two devices do not mix.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CARD = "none: a CPU's tensors by another name"


def real(value):
    """A device that is there instead of one that is not."""
    named = isinstance(value, torch.device | str) and str(value).startswith("cuda")
    return CPU if named else value


class Named(TorchFunctionMode):
    """What is made on `cuda`, or moved to it, stays on the CPU; `cpu()` copies, as from a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs = kwargs | {"device": real(kwargs["device"])}
        if func is torch.Tensor.to:
            args = tuple(map(real, args))
        return func(*args, **kwargs).clone() if func is torch.Tensor.cpu else func(*args, **kwargs)


class Generator(torch.Generator):
    """A CPU's for either device."""

    def __new__(cls, device: torch.device | str = "cpu"):
        return super().__new__(cls, real(device))


@contextlib.contextmanager
def named_cuda() -> Iterator[None]:
    """Within it torch sees a GPU, and every tensor says that it is there."""
    with contextlib.ExitStack() as stack:
        for name, value in {
            "is_available": lambda: True,
            "get_device_name": lambda *_: CARD,
            "synchronize": lambda *_: None,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda *_: None,
            "max_memory_allocated": lambda *_: 0,
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        device = property(lambda _: CUDA)
        stack.enter_context(mock.patch.object(torch.Tensor, "device", device))
        stack.enter_context(Named())
        yield
