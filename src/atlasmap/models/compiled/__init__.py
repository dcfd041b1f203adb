"""numba implementations of the operations of `ops` for float32 on a CPU, with their own gradients.

Between matrix products, torch makes one pass over memory per operation; these kernels fuse the
operations, so that a row stays in the L1 cache. Imported by `ops` only.
"""

from atlasmap.models.compiled.counts import counts_loss, gamma_terms
from atlasmap.models.compiled.labels import label_loss
from atlasmap.models.compiled.network import network
from atlasmap.models.compiled.normal import draw, log_density
from atlasmap.models.compiled.sparse import product, rows

__all__ = [
    "counts_loss",
    "draw",
    "gamma_terms",
    "label_loss",
    "log_density",
    "network",
    "product",
    "rows",
]
