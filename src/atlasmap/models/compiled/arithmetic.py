"""Scalar float32 functions for kernels. `exp` and `log` are polynomials, which the compiler can
vectorise. `exp` returns NaN for NaN; `log` does not, so kernels propagate NaN with `+ x * ZERO`.
"""

import math

import numpy as np

from atlasmap.models.compiled.cache import compiled, inlined

EPS = np.float32(1e-8)  # of the negative binomial; as `ops.EPS`
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


@inlined
def exp(x):
    """e^x, accurate to 1.2e-7 (Cephes' expf); e^−87, about 1e-38, for any x below −87."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.44269504) + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + ONE
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def log(x):
    """ln x for a positive finite x, accurate to 1.2e-7 (Cephes' logf)."""
    bits = np.float32(x).view(np.int32)
    # numba sums int32 values in int64; hence the casts.
    exponent = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
    f = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - ONE
    p = np.float32(7.0376836292e-2)
    p = p * f - np.float32(1.1514610310e-1)
    p = p * f + np.float32(1.1676998740e-1)
    p = p * f - np.float32(1.2420140846e-1)
    p = p * f + np.float32(1.4249322787e-1)
    p = p * f - np.float32(1.6668057665e-1)
    p = p * f + np.float32(2.0000714765e-1)
    p = p * f - np.float32(2.4999993993e-1)
    p = p * f + np.float32(3.3333331174e-1)
    n, square = np.float32(exponent), f * f
    return f + (f * square * p + LN2_LOW * n - HALF * square) + LN2_HIGH * n


@compiled
def rising_of_any(x, theta):
    """ln Γ(x + θ) − ln Γ(θ) − ln x! for any count x, integer or not."""
    return np.float32(math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1.0))


@compiled
def digamma(x):
    """ψ(x) for a positive x, in float64 (Abramowitz & Stegun 6.3.5 and 6.3.18)."""
    shift = 0.0
    while x < 10.0:
        shift += 1.0 / x
        x += 1.0
    square = 1.0 / (x * x)
    series = 1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132)))
    return math.log(x) - 0.5 / x - square * series - shift
