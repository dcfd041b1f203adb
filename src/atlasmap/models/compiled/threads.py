"""Runs a numba kernel over static slices of range(n) on torch's OpenMP pool.

numba's own pool would contend with it, and numba compiles a loop that it parallelises differently
from the same loop on one thread. Results do not depend on the number of threads. Needs libgomp,
which the kernels call through LLVM IR; with another OpenMP (macOS) a kernel runs on one thread.
"""

import ctypes
from collections.abc import Iterable

import numba
import torch  # loads its OpenMP into the process
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from atlasmap.models.compiled.blas import LIMIT, LIMITS

BYTES, INT32 = ir.IntType(8).as_pointer(), ir.IntType(32)


OPENMP = "GOMP_parallel"
DIVIDES = hasattr(ctypes.CDLL(None), OPENMP)


def bounds(builder: ir.IRBuilder, n: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit the first and last (exclusive) index of the calling thread's slice of range(n)."""
    told = ir.FunctionType(INT32, [])
    k, of = (
        builder.sext(
            builder.call(cgutils.get_or_insert_function(builder.module, told, name), []), n.type
        )
        for name in ("omp_get_thread_num", "omp_get_num_threads")
    )
    after = builder.add(k, ir.Constant(n.type, 1))
    return tuple(builder.sdiv(builder.mul(n, at), of) for at in (k, after))


def threads_of_products(builder: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """Emit a call that sets MKL's number of threads for the calling thread to `n` (0: the global
    setting) and returns the number before; without MKL nothing is emitted.

    Within a parallel region MKL takes one thread anyway, but is slower unless it is set explicitly.
    """
    if not LIMITS:
        return n
    form = ir.FunctionType(INT32, [INT32])
    limit = cgutils.get_or_insert_function(builder.module, form, f"torch_{LIMIT}")
    return builder.call(limit, [n])


@intrinsic
def forked(typing, kernel, n, threads, given):
    """Call `kernel(first, last, *given)` on `threads` threads, each for its slice of range(n)."""
    types_of_kernel = types.intp, types.intp, *given.types
    signature = kernel.get_call_type(typing, types_of_kernel, {})

    def generate(context, builder, _, arguments):
        _, n, threads, given = arguments
        told = cgutils.pack_struct(builder, [n, given])
        place = cgutils.alloca_once_value(builder, told)
        form = ir.FunctionType(ir.VoidType(), [BYTES])
        part = ir.Function(builder.module, form, builder.module.get_unique_name("part"))
        part.linkage = "internal"
        inner = ir.IRBuilder(part.append_basic_block())
        own = inner.load(inner.bitcast(part.args[0], told.type.as_pointer()))
        n, given = cgutils.unpack_tuple(inner, own, 2)
        compiled = kernel.dispatcher.get_compile_result(signature)
        context.active_code_library.add_linking_library(compiled.library)
        values = *bounds(inner, n), *cgutils.unpack_tuple(inner, given, len(types_of_kernel) - 2)
        before = threads_of_products(inner, INT32(1))
        context.call_internal_no_propagate(inner, compiled.fndesc, signature, values)
        threads_of_products(inner, before)
        inner.ret_void()
        form = ir.FunctionType(ir.VoidType(), [part.type, BYTES, INT32, INT32])
        fork = cgutils.get_or_insert_function(builder.module, form, OPENMP)
        place = builder.bitcast(place, BYTES)
        builder.call(fork, [part, place, builder.trunc(threads, INT32), INT32(0)])
        return context.get_dummy_value()

    return types.void(kernel, n, threads, given), generate


@numba.njit
def alone(kernel, n, threads, given):
    """As `forked`, on one thread, where libgomp is not loaded (macOS)."""
    kernel(0, n, *given)


in_parts = forked if DIVIDES else alone


def as_arrays(given: Iterable) -> tuple:
    """`given` with tensors converted to numpy arrays that share their memory."""
    return tuple([
        (x.detach() if x.requires_grad else x).numpy() if isinstance(x, torch.Tensor) else x
        for x in given
    ])  # fmt: skip


def side_by_side(kernel, n: int, *given) -> None:
    """Call a compiled `kernel(threads, n, *given)` on torch's threads, tensors as numpy arrays."""
    kernel(torch.get_num_threads(), n, *as_arrays(given))
