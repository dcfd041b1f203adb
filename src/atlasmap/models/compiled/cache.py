"""Compilation of kernels and their cache on disk.

Rule for kernels: a loop either sums or writes. LLVM compiles a loop that does both twice, for
arrays that may overlap and for arrays that do not, with sums in different order; which one runs,
and so the rounding, would depend on memory addresses.
"""

import contextlib
import hashlib
import logging
from pathlib import Path

import numba
from numba.core import event

from atlasmap.models.compiled.threads import DIVIDES, LIMITS

# Sums may be reordered. No `nnan` and no `arcp`: NaN is kept and division is exact.
FAST = {"reassoc", "contract", "nsz"}
# Key of the cache. numba's own key is the file of a function alone, so that it would reuse kernels
# that inline functions of another, changed file.
SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    + bytes((DIVIDES, LIMITS))
).hexdigest()
log = logging.getLogger("atlasmap")


class Told(event.Listener):
    """Logs once that kernels are being compiled, since this takes a minute or two."""

    def on_start(self, _event) -> None:
        event.unregister(COMPILING, self)
        log.info(
            "compiling for this processor, once: a minute or two, then it is kept",
            extra={"progress": True},
        )

    def on_end(self, _event) -> None:
        pass


COMPILING = "numba:compile"
event.register(COMPILING, Told())
inlined = numba.njit(inline="always")


def compiled(function):
    """Decorator: compile `function` at its first call, and cache it on disk if a cache folder is
    writable.

    `forceinline`, for results that are equal bit for bit: otherwise a process that compiles both
    caller and callee calls the stand-alone callee, but a process that loads the caller from the
    cache uses a copy of the callee that was optimised once more.
    """
    out = numba.njit(fastmath=FAST, error_model="numpy", nogil=True, forceinline=True)(function)
    with contextlib.suppress(RuntimeError):
        out.enable_caching()
        out._cache._cache_file._source_stamp = SOURCES
    return out
