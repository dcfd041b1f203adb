"""Matrix products within a kernel: the BLAS that torch carries.

Leans on C functions that torch's library is linked to. A product takes one thread where a kernel
in slices calls it.
"""

import ctypes

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types


def carried(name: str) -> bool:
    """Whether torch carries a C function of this name, which compiled code may then call: with
    torch_ before its name, as it is not everyone's."""
    library = ctypes.CDLL(torch._C.__file__)  # and what it is linked to
    if hasattr(library, name):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"torch_{name}", address)
    return hasattr(library, name)


LIMIT = "MKL_Set_Num_Threads_Local"
LIMITS = carried(LIMIT)
if not carried("sgemm_"):  # not in builds of torch for every machine
    raise ImportError("this build of torch carries no sgemm_")
sgemm = types.ExternalFunction("torch_sgemm_", types.void(*[types.intp] * 13))
NO, YES = 78, 84  # N and T


@numba.njit(inline="always")
def product(left, right, turns_left, turns_right, adds, out):
    """`out` (+= if it `adds`, or =) left · right, each turned (transposed) first if so said.

    All are matrices with each row together in memory; BLAS has columns together, so it is given
    outᵀ = rightᵀ · leftᵀ.
    """
    rows, columns = out.shape
    inner = left.shape[0] if turns_left else left.shape[1]
    of_rows = right.strides[0] // 4, left.strides[0] // 4, out.strides[0] // 4
    sizes = np.array((columns, rows, inner, *of_rows), np.int32)
    turns = np.array((YES if turns_right else NO, YES if turns_left else NO), np.uint8)
    factors = np.array((1, adds), np.float32)
    of_turns, of_sizes, of_factors = turns.ctypes.data, sizes.ctypes.data, factors.ctypes.data
    sgemm(
        of_turns, of_turns + 1, of_sizes, of_sizes + 4, of_sizes + 8, of_factors,
        right.ctypes.data, of_sizes + 12, left.ctypes.data, of_sizes + 16, of_factors + 4,
        out.ctypes.data, of_sizes + 20,
    )  # fmt: skip
