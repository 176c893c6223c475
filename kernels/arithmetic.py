"""Device functions that kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

# Triton decides at import whether kernels are compiled or interpreted, and so does this.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def multiply(a, b, sums, PRECISION: tl.constexpr):
    """`sums + a @ b`, summed in float32.

    Triton's interpreter keeps bfloat16 as bit patterns and would multiply those.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Float32 to the nearest number of a type, ties to even.

    Triton's interpreter cuts bits off to make a bfloat16.
    """
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def prelu(x, slope):
    """A PReLU with one slope."""
    return tl.where(x > 0, x, x * slope)
