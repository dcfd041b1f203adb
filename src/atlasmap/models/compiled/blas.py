"""Matrix products within a kernel, by the BLAS that torch is linked to.

Called from a kernel that `threads` runs in slices, a product uses one thread.
"""

import ctypes

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types


def carried(name: str) -> bool:
    """Whether torch's libraries export the C function `name`. If so, register it with LLVM as
    torch_{name}; the prefix keeps it apart from another library's function of the same name."""
    library = ctypes.CDLL(torch._C.__file__)  # its lookup includes the libraries it is linked to
    if hasattr(library, name):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"torch_{name}", address)
    return hasattr(library, name)


LIMIT = "MKL_Set_Num_Threads_Local"
LIMITS = carried(LIMIT)
if not carried("sgemm_"):  # some builds of torch lack it
    raise ImportError("this build of torch carries no sgemm_")
sgemm = types.ExternalFunction("torch_sgemm_", types.void(*[types.intp] * 13))
NO, YES = 78, 84  # ASCII codes of "N" and "T", BLAS's flags for "as it is" and "transposed"


@numba.njit(inline="always")
def product(left, right, turns_left, turns_right, adds, out):
    """out = left · right, or out += if `adds`; an operand is transposed first if `turns_…`.

    All are float32 matrices with contiguous rows. BLAS is column-major, so it is asked for
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
