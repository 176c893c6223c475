"""Conversions and floating-point arithmetic, bit for bit where the operation is exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from ptx import numerics
from ptx.samples import execute, launch, needs_nvcc, output


def random() -> np.random.Generator:
    return np.random.default_rng(1)


def specials() -> np.ndarray:
    """float32 of all magnitudes, ties of narrower formats among them, no NaN."""
    bits = random().integers(0, 2**32, 3000, dtype=np.uint64).astype(np.uint32)
    tie = np.arange(0, 2**32, 2**20, dtype=np.uint64).astype(np.uint32) | np.uint32(0x1000)
    named = [0.0, -0.0, np.inf, -np.inf, 65519.9, 65520.0, 1e-8, 6e-8, 127.5, -128.5, 255.5, 0.5]
    usual = random().standard_normal(500) * 100
    x = np.concatenate([bits, tie]).view(np.float32)
    x = np.concatenate([x, np.array([*named, *usual], np.float32)])
    return x[~np.isnan(x)]


def patterns(t: torch.Tensor) -> np.ndarray:
    """Bits of 16-bit floats."""
    return t.view(torch.int16).numpy().view(np.uint16)


@needs_nvcc
@pytest.mark.parametrize("arch", [80, 90])
def test_conversions(arch):
    x = specials()
    n = len(x)
    types = [np.float16, np.uint16, np.int8, np.uint8, np.int32, np.float32]
    outs = [output(n, t) for t in types] + [output((n, 2), np.float16)]
    for k, o in enumerate(outs):
        o.name = f"out{k}"
    launch("floats.cu", "conversions", -(-n // 128), 128, [n, x, *outs], arch=arch)
    h, b, s8, u8, rz, back, packed = (o.array for o in outs)
    t = torch.from_numpy(x)
    assert np.array_equal(h.view(np.uint16), patterns(t.half()))
    assert np.array_equal(b, patterns(t.bfloat16()))
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        assert np.array_equal(s8, np.clip(np.rint(wide), -128, 127).astype(np.int8))
        assert np.array_equal(u8, np.clip(np.rint(wide), 0, 255).astype(np.uint8))
        assert np.array_equal(rz, np.clip(np.trunc(wide), -(2**31), 2**31 - 1).astype(np.int32))
    both = (t.half().float() + t.bfloat16().float()).numpy()
    assert np.array_equal(back, both, equal_nan=True)
    assert np.array_equal(packed.view(np.uint16), patterns(torch.stack([t, -t], 1).half()))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal patterns, but any NaN matches any NaN, and the zeros match each other."""
    either = np.isnan(a) & np.isnan(b) | (a == 0) & (b == 0)
    return bool(((a.view(np.uint16) == b.view(np.uint16)) | either).all())


@needs_nvcc
def test_half_arithmetic():
    n = 4000
    bits = random().integers(0, 2**16, (3, n, 2), dtype=np.uint32).astype(np.uint16)
    a, b, c = bits.view(np.float16)
    y = output((n, 8, 2), np.float16)
    launch("floats.cu", "half_math", -(-n // 128), 128, [n, a, b, c, y])
    with np.errstate(all="ignore"):
        exact = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
        fma = exact.astype(np.float64).astype(np.float16)  # both steps exact up to the last
        relu = np.where(np.isnan(fma), fma, np.maximum(fma, np.float16(0)))
        want = [a + b, a * b, fma, np.fmax(a, b), np.fmin(a, b), np.abs(a), relu, a - b]
    for k, w in enumerate(want):
        assert same_bits(y.array[:, k], w), k


@needs_nvcc
def test_bf16_arithmetic():
    n = 4000
    a, b, c = torch.from_numpy(random().standard_normal((3, n))).bfloat16()
    y = output((n, 4), np.uint16)
    args = [n, *(patterns(t) for t in (a, b, c)), y]
    launch("floats.cu", "bf16_math", -(-n // 128), 128, args)
    for k, w in ((0, a + b), (1, a * b), (3, torch.maximum(a, b))):
        assert np.array_equal(y.array[:, k], patterns(w)), k
    assert_rounds_once(y.array[:, 2], *(t.double().numpy() for t in (a, b, c)), patterns_of=bf16)


def bf16(values: np.ndarray) -> np.ndarray:
    return numerics.bf16_to_f32(values.astype(np.uint16)).astype(np.float64)


def half(values: np.ndarray) -> np.ndarray:
    return numerics.half_to_f32(values.astype(np.uint16)).astype(np.float64)


def assert_rounds_once(got, a, b, c, patterns_of):
    """No neighbour of a pattern is nearer to the exact a * b + c, nor as near and even."""
    for k in range(len(got)):
        exact = Fraction(a[k]) * Fraction(b[k]) + Fraction(c[k])
        near = patterns_of(np.array([int(got[k]), int(got[k]) - 1, int(got[k]) + 1]))
        error, below, above = (
            abs(Fraction(v) - exact) if np.isfinite(v) else np.inf for v in near.tolist()
        )
        assert error < min(below, above) or (error == min(below, above) and not got[k] & 1), k


@pytest.mark.parametrize(("instruction", "patterns_of"), [("f16x2", half), ("bf16x2", bf16)])
def test_packed_fma_rounds_once(instruction, patterns_of):
    """Ties that a product makes and the smallest of addends breaks, and ordinary numbers."""
    one = 0x3C00 if instruction == "f16x2" else 0x3F80
    n = 256
    sign = random().integers(0, 2, (3, n)) << 15
    words = one + random().integers(-900, 900, (3, n))
    ulps = 0x400 if instruction == "f16x2" else 0x80  # of the numbers from 1 to 2
    words[0, :20], words[1, :20] = one + 1 + 2 * np.arange(20), one + ulps // 2
    words[2, :20] = random().integers(1, 4, 20)
    words = (words | sign).astype(np.uint32)
    assert np.isfinite(patterns_of(words)).all()
    (r,) = execute(f"fma.rn.{instruction} %d0, %a0, %a1, %a2;", *(words | words << np.uint32(16)))
    assert np.array_equal(r & 0xFFFF, r >> 16)
    got = (r & 0xFFFF).astype(np.int64)
    assert_rounds_once(got, *patterns_of(words).tolist(), patterns_of)


@pytest.mark.parametrize("instruction", ["f16x2", "bf16x2"])
def test_packed_maximum_and_nan(instruction):
    t = torch.float16 if instruction == "f16x2" else torch.bfloat16
    x = torch.from_numpy(random().standard_normal((2, 64, 2)))
    x[0, :8] = torch.nan
    x[1, 4:12] = torch.nan
    a, b = x.to(t)
    words = [patterns(v).view(np.uint32).reshape(-1) for v in (a, b)]
    body = f"max.{instruction} %d0, %a0, %a1; max.NaN.{instruction} %d1, %a0, %a1;"
    body += f"min.NaN.{instruction} %d2, %a0, %a1;"
    loses, wins, lowest = execute(body, *words, results=3)
    wanted = torch.fmax(a, b), torch.maximum(a, b), torch.minimum(a, b)
    for got, want in zip((loses, wins, lowest), wanted, strict=True):
        want = np.where(torch.isnan(want), 0x7FFF, patterns(want)).astype(np.uint16)
        assert np.array_equal(got, want.view(np.uint32).reshape(-1))


@needs_nvcc
def test_fma_rounds_once():
    """fma.rn.f32 against exact rational arithmetic, double-rounding traps among them."""
    n = 3000
    random_ = random()
    a, b = random_.integers(2**23, 2**24, (2, n)).astype(np.float32)
    exponents = 2.0 ** random_.integers(-10, 60, n)
    c = (random_.integers(2**23, 2**24, n) * exponents).astype(np.float32)
    # c odd, a*b just below half an ulp of c: the float64 sum is a tie, the true sum is not
    a[:100], b[:100] = (1 + 2.0**-23) * 2.0**-12, (1 - 2.0**-23) * 2.0**-12
    c[:100] = 1 + (2 * np.arange(100) + 1) * 2.0**-23
    y = output((n, 8))
    launch("floats.cu", "float_math", -(-n // 128), 128, [n, a, b, c, y])
    for i in range(n):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert y.array[i, 0] == nearest(exact), i


def nearest(exact: Fraction) -> np.float32:
    """The float32 nearest to a number, even on ties."""
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(s)) for s in (-np.inf, np.inf)] + [guess]
    best = min(abs(Fraction(float(v)) - exact) for v in around)
    close = [v for v in around if abs(Fraction(float(v)) - exact) == best]
    return next(v for v in close if len(close) == 1 or not int(v.view(np.uint32)) & 1)


@needs_nvcc
def test_float_functions():
    n = 3000
    a, b, c = random().standard_normal((3, n)).astype(np.float32) * 4
    y = output((n, 8))
    launch("floats.cu", "float_math", -(-n // 128), 128, [n, a, b, c, y])
    y = y.array
    assert np.array_equal(y[:, 1], a / b)
    assert np.array_equal(y[:, 2], np.sqrt(np.abs(a)))
    d = a.astype(np.float64)
    for k, w in ((3, np.exp(d)), (4, np.sin(d)), (5, np.log(np.abs(d))), (6, np.tanh(d))):
        assert np.allclose(y[:, k], w, rtol=1e-6, atol=1e-7), k
    assert np.array_equal(y[:, 7], np.rint(a) + np.minimum(b, c))


def test_directed_rounding():
    x, y = (random().standard_normal((2, 512)) * 1e3).astype(np.float32)
    body = "add.rz.f32 %d0, %a0, %a1; mul.rp.f32 %d1, %a0, %a1; fma.rm.f32 %d2, %a0, %a1, %a0;"
    got = execute(body, x.view(np.uint32), y.view(np.uint32), results=3).view(np.float32)
    d, e = x.astype(np.float64), y.astype(np.float64)
    after = np.nextafter(got, np.array([[np.inf], [-np.inf], [np.inf]], np.float32))
    beyond = np.nextafter(got[0], np.copysign(np.inf, got[0]))
    assert (np.abs(got[0]) <= np.abs(d + e)).all()
    assert (np.abs(beyond) > np.abs(d + e)).all()
    assert (got[1] >= d * e).all()
    assert (after[1] < d * e).all()
    assert (got[2] <= d * e + d).all()
    assert (after[2] > d * e + d).all()


def test_approximate_functions():
    x = np.concatenate([random().standard_normal(200) * 20, [-200.0, 0.0, -0.0, 200.0]])
    x = x.astype(np.float32)
    body = "ex2.approx.ftz.f32 %d0, %a0; rcp.approx.ftz.f32 %d1, %a0; rsqrt.approx.f32 %d2, %a0;"
    body += "lg2.approx.f32 %d3, %a0; tanh.approx.f32 %d4, %a0; sqrt.rn.f32 %d5, %a0;"
    got = execute(body, x.view(np.uint32), results=6).view(np.float32)
    with np.errstate(all="ignore"):
        d = x.astype(np.float64)
        power = np.exp2(d)
        wanted = [
            np.where(power < 2.0**-126, 0, power),
            1 / d,
            1 / np.sqrt(d),
            np.log2(d),
            np.tanh(d),
            np.sqrt(d),
        ]
        for k, w in enumerate(wanted):
            w = w.astype(np.float32)
            assert np.allclose(got[k], w, rtol=2e-7, atol=0, equal_nan=True), k


def test_flush_and_saturate():
    small = np.float32(1e-40)
    x = np.array([small, -small, 2.0, -3.0, 0.25, np.nan], np.float32)
    body = "mul.ftz.f32 %d0, %a0, 0f3F800000; add.sat.f32 %d1, %a0, 0f00000000;"
    body += "cvt.sat.f32.f32 %d2, %a0; fma.rn.relu.f16 %h0, %h0, %h0, %h0; mov.b32 %d3, %a0;"
    flushed, saturated, converted, same = execute(body, x.view(np.uint32), results=4)
    assert flushed.view(np.float32)[:2].tolist() == [0, 0]
    assert np.signbit(flushed.view(np.float32)[:2]).tolist() == [False, True]
    want = np.array([small, 0, 1, 0, 0.25, 0], np.float32)
    assert np.array_equal(saturated.view(np.float32), want)
    assert np.array_equal(converted.view(np.float32), want)
    assert np.array_equal(same, x.view(np.uint32))
