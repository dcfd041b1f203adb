"""How a kernel is compiled, and kept for other processes.

A loop either sums or writes: one that does both is compiled twice, for arrays that lie apart and
for others, with sums in another order; which of the two runs would depend on where memory is.
"""

import contextlib
import hashlib
import logging
from pathlib import Path

import numba
from numba.core import event

from atlasmap.models.compiled.threads import DIVIDES, LIMITS

FAST = {"reassoc", "contract", "nsz"}  # sums in another order; NaN stays NaN, quotients exact
# What compiled functions are made of. numba knows a function again by its own file alone, and would
# keep one that inlines what has changed elsewhere.
SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    + bytes((DIVIDES, LIMITS))
).hexdigest()
log = logging.getLogger("atlasmap")


class Told(event.Listener):
    """Says once that something is compiled, so that nobody wonders what takes so long."""

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
    """Compiled at its first call, and kept for other processes where a folder can be written.

    Always inlined where another calls it: a process that compiles both would otherwise call the one
    that stands alone, and a process that loads the caller a copy that was optimised once more, with
    other bits.
    """
    out = numba.njit(fastmath=FAST, error_model="numpy", nogil=True, forceinline=True)(function)
    with contextlib.suppress(RuntimeError):
        out.enable_caching()
        out._cache._cache_file._source_stamp = SOURCES
    return out
