"""Where in memory arrays are must change no bit."""

import numpy as np


def placed(arrays: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Copies in one piece of memory, in random order, next to each other or a little apart."""
    gaps = rng.choice([0, 1, 5, 16], len(arrays))
    memory = np.empty(sum(a.size for a in arrays) + gaps.sum() + 1, np.float32)
    out, at = [None] * len(arrays), int(rng.integers(0, 2))
    for k in rng.permutation(len(arrays)):
        out[k] = memory[at : at + arrays[k].size].reshape(arrays[k].shape)
        out[k][...] = arrays[k]
        at += arrays[k].size + gaps[k]
    return out
