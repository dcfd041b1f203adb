"""The operations of `ops` on a CPU in float32, compiled by numba, with gradients of their own.

Between matrix products torch makes a pass over memory for every operation; here a row stays in the
first cache until all is done with it. `ops` alone imports this.
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
