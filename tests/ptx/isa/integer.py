"""Integer arithmetic (PTX ISA 9.7.1); the decoders of shared opcodes hand floats on."""

from __future__ import annotations

import numpy as np

from ..program import DTYPE, op, unsupported
from ..syntax import WIDTH
from . import floating

WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def wide(a: np.ndarray, typ: str) -> np.ndarray:
    """Widens to twice the width, keeping signedness."""
    return a.astype(DTYPE[WIDE[typ]])


def mul_hi(a: np.ndarray, b: np.ndarray, typ: str) -> np.ndarray:
    """High half of the product."""
    if typ not in ("u64", "s64"):
        bits = WIDTH[typ]
        return (wide(a, typ) * wide(b, typ) >> DTYPE[WIDE[typ]](bits)).astype(DTYPE[typ])
    ua, ub = a.view(np.uint64), b.view(np.uint64)
    m, s = np.uint64(0xFFFFFFFF), np.uint64(32)
    al, ah, bl, bh = ua & m, ua >> s, ub & m, ub >> s
    mid = al * bh + (al * bl >> s)
    mid2 = ah * bl + (mid & m)
    high = ah * bh + (mid >> s) + (mid2 >> s)
    if typ == "s64":
        high = high - np.where(a.view(np.int64) < 0, ub, np.uint64(0))
        high = high - np.where(b.view(np.int64) < 0, ua, np.uint64(0))
    return high.view(DTYPE[typ])


@op("add", "sub")
def add_sub(p, ins):
    t = ins.op[-1]
    if t in floating.TYPES:
        return floating.arithmetic(p, ins)
    if ins.has("cc") or t not in DTYPE:
        raise unsupported(ins)
    d, a, b = ins.operands
    f = np.add if ins.name == "add" else np.subtract
    if ins.has("sat"):

        def saturating(a, b):
            return np.clip(f(a.astype(np.int64), b), -(2**31), 2**31 - 1).astype(np.int32)

        return p.emit(p.dst(d, t), saturating, p.src(a, t), p.src(b, t))
    return p.emit(p.dst(d, t), f, p.src(a, t), p.src(b, t))


@op("mul")
def mul(p, ins):
    t = ins.op[-1]
    if t in floating.TYPES:
        return floating.arithmetic(p, ins)
    d, a, b = ins.operands
    a, b = p.src(a, t), p.src(b, t)
    if ins.has("wide"):
        return p.emit(p.dst(d, WIDE[t]), lambda a, b: wide(a, t) * wide(b, t), a, b)
    if ins.has("hi"):
        return p.emit(p.dst(d, t), lambda a, b: mul_hi(a, b, t), a, b)
    return p.emit(p.dst(d, t), np.multiply, a, b)


@op("mad")
def mad(p, ins):
    t = ins.op[-1]
    if t in floating.TYPES:
        return floating.fma(p, ins)
    if ins.has("cc", "sat"):
        raise unsupported(ins)
    d, a, b, c = ins.operands
    a, b = p.src(a, t), p.src(b, t)
    if ins.has("wide"):
        w = WIDE[t]
        f = lambda a, b, c: wide(a, t) * wide(b, t) + c  # noqa: E731
        return p.emit(p.dst(d, w), f, a, b, p.src(c, w))
    if ins.has("hi"):
        return p.emit(p.dst(d, t), lambda a, b, c: mul_hi(a, b, t) + c, a, b, p.src(c, t))
    return p.emit(p.dst(d, t), lambda a, b, c: a * b + c, a, b, p.src(c, t))


@op("div", "rem")
def div_rem(p, ins):
    """Truncating division; x/0 gives all ones and x%0 gives x, as NVIDIA GPUs do."""
    t = ins.op[-1]
    if t in floating.TYPES:
        return floating.divide(p, ins)
    d, a, b = ins.operands

    def f(a, b):
        zero = b == 0
        safe = np.where(zero, b.dtype.type(1), b)
        q = truncated(a, safe) if t[0] == "s" else a // safe
        if ins.name == "div":
            return np.where(zero, b.dtype.type(-1) if t[0] == "s" else np.iinfo(b.dtype).max, q)
        return np.where(zero, a, a - q * safe)

    return p.emit(p.dst(d, t), f, p.src(a, t), p.src(b, t))


def truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Signed quotient towards zero; the lowest integer over -1 wraps to itself."""
    q = a // b
    return q + ((q < 0) & (q * b != a)).astype(a.dtype)


@op("min", "max")
def min_max(p, ins):
    t = ins.op[-1]
    if t in floating.TYPES:
        return floating.min_max(p, ins)
    if t not in DTYPE or ins.has("relu"):
        raise unsupported(ins)
    d, a, b = ins.operands
    f = np.minimum if ins.name == "min" else np.maximum
    return p.emit(p.dst(d, t), f, p.src(a, t), p.src(b, t))


@op("abs", "neg")
def abs_neg(p, ins):
    t = ins.op[-1]
    if t in floating.TYPES:
        return floating.abs_neg(p, ins)
    d, a = ins.operands
    return p.emit(p.dst(d, t), np.abs if ins.name == "abs" else np.negative, p.src(a, t))


@op("dp4a")
def dp4a(p, ins):
    """Dot product of four bytes with 32-bit accumulation (PTX ISA 9.7.1.23)."""
    ta, tb = ins.op[-2:]
    d, a, b, c = ins.operands
    byte = {"s32": np.int8, "u32": np.uint8}

    def f(a, b, c):
        x = np.ascontiguousarray(a).view(byte[ta]).reshape(-1, 4).astype(np.int64)
        y = np.ascontiguousarray(b).view(byte[tb]).reshape(-1, 4)
        return ((x * y).sum(axis=1) + c).astype(np.uint32)

    acc = p.src(c, "s32" if "s32" in (ta, tb) else "u32")
    return p.emit(p.dst(d, "u32"), f, p.src(a, "b32"), p.src(b, "b32"), acc)
