"""Floating-point formats and rounding on arrays.

All functions are elementwise and correctly rounded (round to nearest even). 16-bit floats are
held as uint16 patterns or as float16. Sources: IEEE 754-2019; PTX ISA 9.7.3-9.7.5 and `cvt`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

F16, F32, F64 = np.float16, np.float32, np.float64
U16, U32, U64 = np.uint16, np.uint32, np.uint64
TINY = {np.dtype(F32): F32(2.0**-126), np.dtype(F16): F32(2.0**-14)}
CANONICAL_NAN = U16(0x7FFF)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: its casts here are too short for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def half_to_f32(h: np.ndarray) -> np.ndarray:
    """Float16 patterns -> float32, exact; PyTorch's cast is ten times faster than NumPy's."""
    return torch.from_numpy(np.ascontiguousarray(h).view(F16)).float().numpy()


def bf16_to_f32(b: np.ndarray) -> np.ndarray:
    """Bfloat16 patterns -> float32, exact."""
    b = torch.from_numpy(np.ascontiguousarray(b).view(np.int16))
    return b.view(torch.bfloat16).float().numpy()


def to_half(x: np.ndarray) -> np.ndarray:
    """float32 or float64 -> float16 patterns; NaN -> 0x7FFF."""
    return canonical(torch.from_numpy(single(x)).half().view(torch.int16), x)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 or float64 -> bfloat16 patterns; NaN -> 0x7FFF."""
    return canonical(torch.from_numpy(single(x)).bfloat16().view(torch.int16), x)


def canonical(rounded: torch.Tensor, x: np.ndarray) -> np.ndarray:
    """Int16 patterns -> uint16, with the one NaN that conversions give."""
    out = rounded.numpy().view(U16)
    nan = np.isnan(x)
    return np.where(nan, CANONICAL_NAN, out) if nan.any() else out


def single(x: np.ndarray) -> np.ndarray:
    """float32 as it is; float64 -> float32 rounded to odd, so that a later rounding is exact."""
    x = np.ascontiguousarray(x)
    return x if x.dtype == F32 else odd(x.astype(F32), lambda f: x - f)


def odd(s: np.ndarray, error: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Values rounded to nearest, and what that has lost -> values rounded to odd."""
    e = error(s)
    lost = (e != 0) & np.isfinite(s)
    if lost.any():
        u = s.view(U32 if s.dtype == F32 else U64)
        u -= (lost & (np.signbit(e) != np.signbit(s))).astype(u.dtype)
        u |= lost
    return s


def two_sum_error(a: np.ndarray, b: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Rounding error of s = a + b (Knuth)."""
    t = s - a
    return (a - (s - t)) + (b - t)


def fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 fused multiply-add, correctly rounded.

    The product is exact in float64. The float64 sum is rounded a second time to float32; that
    can only go wrong when it sits exactly half-way between two float32 values, and those lanes
    are nudged by the sign of the sum's error. (float32-subnormal results keep the double
    rounding.)
    """
    p = a.astype(F64) * b
    s = p + c
    tie = (s.view(U64) & U64(0x1FFFFFFF)) == U64(0x10000000)
    if tie.any():
        p, s, c = np.broadcast_arrays(p, s, F64(c))
        s = s.copy()
        e = two_sum_error(p[tie], c[tie], s[tie])
        away = np.nextafter(s[tie], np.where(e > 0, np.inf, -np.inf))
        s[tie] = np.where(e == 0, s[tie], away)
    return s.astype(F32)


def directed(exact: np.ndarray, error: np.ndarray, mode: str) -> np.ndarray:
    """float64 -> float32 towards zero, minus or plus infinity (rz, rm, rp).

    Args:
        exact: the value, but for `error`.
        error: what rounding it to float64 has lost; only its sign counts.
    """
    f = exact.astype(F32)
    above = f.astype(F64) - exact
    above = np.where(above == 0, -error, above)
    if mode == "rz":
        mode = np.where(exact > 0, "rm", "rp")
    down = (above > 0) & (mode == "rm")
    up = (above < 0) & (mode == "rp")
    g = np.where(down, np.nextafter(f, F32(-np.inf)), f)
    g = np.where(up, np.nextafter(f, F32(np.inf)), g)
    return np.where(np.isfinite(exact), g, f)


def fma_small(a: np.ndarray, b: np.ndarray, c: np.ndarray, half: bool) -> np.ndarray:
    """Fused multiply-add of 16-bit floats given as float32 -> float32 that rounds to the result.

    float32 holds the product, as a rule; where rounding the sum to float32 could make the rounding
    to 16 bits go wrong (at ties and at either end of the range), the sum is taken in float64 and
    rounded to odd.

    Args:
        half: the format is float16, otherwise bfloat16.
    """
    s = a * b
    s += c
    ties, tie, smallest = (0x1FFF, 0x1000, 2.0**-14) if half else (0xFFFF, 0x8000, 2.0**-100)
    doubtful = (s.view(U32) & U32(ties)) == U32(tie)
    doubtful |= (np.abs(s) < F32(smallest)) & (s != 0)
    if not half:
        doubtful |= np.isinf(s)  # of the product only, perhaps
    k = np.flatnonzero(doubtful)
    if len(k):
        a, b, c = (np.broadcast_to(v, s.shape).reshape(-1)[k].astype(F64) for v in (a, b, c))
        p = a * b
        s.reshape(-1)[k] = single(odd(p + c, lambda total: two_sum_error(p, c, total)))
    return s


def flush(x: np.ndarray) -> np.ndarray:
    """`.ftz`: subnormals of float32/float16 to zero of the same sign."""
    small = np.abs(x) < TINY[x.dtype]
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if small.any() else x


def saturate(x: np.ndarray) -> np.ndarray:
    """`.sat`: clamp to [0, 1], NaN to 0."""
    t = x.dtype.type
    return np.where(x > t(0), np.minimum(x, t(1)), t(0))


def relu(x: np.ndarray) -> np.ndarray:
    """`.relu`: negatives to 0, NaN stays."""
    return np.where(x > 0, x, np.where(np.isnan(x), x, x.dtype.type(0)))
