"""Time and memory of what is learned of 100,000 reference cells and said of a batch of 800,000.

Counts are drawn from Poisson rates of thirty labels; nothing is trained. Prints one line a step.
"""

import resource
import time

import numpy as np
from scipy import sparse

from atlasmap.labels.novelty import Batch, cut_offs
from atlasmap.labels.profiles import Profiles, Seen
from atlasmap.labels.shifts import shifted

N_REFERENCE, N_QUERY, N_GENES, N_LABELS, DEPTH, BLOCK = 100_000, 800_000, 2000, 30, 400.0, 10_000


def counts(
    n: int, rates: np.ndarray, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Cells (n × genes) and the codes of their labels."""
    codes, blocks = rng.integers(0, len(rates), n), []
    for start in range(0, n, BLOCK):
        drawn = rng.poisson(rates[codes[start : start + BLOCK]]).astype(np.float32)
        blocks.append(sparse.csr_matrix(drawn))
    return sparse.vstack(blocks, format="csr"), codes


def said(what: str, began: float) -> None:
    """How long it took, and the most memory so far."""
    gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {time.monotonic() - began:.0f} s, {gb:.1f} GB at most", flush=True)


def main() -> None:
    rng = np.random.default_rng(0)
    rates = rng.lognormal(0, 1.5, N_GENES) * rng.lognormal(0, 0.5, (N_LABELS, N_GENES))
    rates *= DEPTH / rates.sum(1, keepdims=True)
    names = [f"label {k}" for k in range(N_LABELS)]
    reference, codes = counts(N_REFERENCE, rates, rng)
    query, own = counts(N_QUERY, rates, rng)
    said(f"{N_REFERENCE:,} and {N_QUERY:,} cells made", time.monotonic())
    began = time.monotonic()
    profiles = Profiles.of(reference, np.array(names, object)[codes], names, DEPTH)
    said("profiles of the reference", began)
    began = time.monotonic()
    seen = Seen.of(profiles, query, own)
    said("the query seen from it", began)
    began = time.monotonic()
    batch = Batch(names, own, seen.by_genes, seen, None, 0, np.array(names, object)[own])
    cuts = cut_offs([batch], "correlation", 0.05)
    novel = cuts.novelty(batch.score("correlation"), names, own) > 1
    print(f"{novel.mean():.3f} novel, {shifted(seen, novel).mean():.3f} of them shifted")
    said("verdicts", began)


if __name__ == "__main__":
    main()
