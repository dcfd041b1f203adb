"""Matrix products within a compiled loop: the BLAS that torch carries.

It takes one thread where a loop in `parts` calls it.
"""

import numba
import numpy as np
from numba import types

from atlasmap.models.parts import carried

CARRIED = carried("sgemm_")  # not in builds of torch for every machine
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
