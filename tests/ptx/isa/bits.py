"""Logic, shifts, bit fields and byte permutation (PTX ISA 9.7.1, 9.7.8)."""

from __future__ import annotations

import numpy as np

from ..program import DTYPE, op, unsupported
from ..syntax import WIDTH, Pair, Reg, Sym

U32, U64 = np.uint32, np.uint64
LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@op("and", "or", "xor", "not")
def logic(p, ins):
    t = ins.op[-1]
    dst = p.dst(ins.operands[0], t)
    srcs = [p.src(o, t) for o in ins.operands[1:]]
    if ins.name == "not":
        return p.emit(dst, np.logical_not if t == "pred" else np.invert, *srcs)
    f = LOGIC[ins.name]
    negate = [getattr(o, "negate", False) for o in ins.operands[1:]]
    if any(negate):
        return p.emit(dst, lambda a, b: f(a ^ negate[0], b ^ negate[1]), *srcs)
    return p.emit(dst, f, *srcs)


COMMON = {
    0x96: lambda a, b, c: a ^ b ^ c,
    0xC0: lambda a, b, c: a & b,
    0xFC: lambda a, b, c: a | b,
    0x3C: lambda a, b, c: a ^ b,
    0x80: lambda a, b, c: a & b & c,
    0xFE: lambda a, b, c: a | b | c,
    0xEA: lambda a, b, c: (a & b) | c,
    0xF8: lambda a, b, c: a | (b & c),
    0xCA: lambda a, b, c: (a & b) | (~a & c),
}


@op("lop3")
def lop3(p, ins):
    """Arbitrary three-input logic by truth table (PTX ISA 9.7.8.6)."""
    d, a, b, c, table = ins.operands[:5]
    if isinstance(d, Pair):
        raise unsupported(ins)

    def by_minterms(a, b, c):
        r = U32(0) & a & b & c
        for k in range(8):
            if table.value >> k & 1:
                r |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        return r

    f = COMMON.get(table.value, by_minterms)
    return p.emit(p.dst(d, "b32"), f, *[p.src(x, "b32") for x in (a, b, c)])


@op("shl", "shr")
def shift(p, ins):
    """Shift amounts above the width clamp (PTX ISA 9.7.8.8-9)."""
    t = ins.op[-1]
    t = "u" + t[1:] if t[0] == "b" else t
    d, a, n = ins.operands
    bits, dtype = WIDTH[t], DTYPE[t]
    dst, a, amount = p.dst(d, t), p.src(a, t), p.src(n, "u32")
    f = np.left_shift if ins.name == "shl" else np.right_shift
    if len(amount) == 1 and amount[0] < bits and not isinstance(n, Sym):
        return p.emit(dst, f, a, amount.astype(dtype))

    def clamped(a, n):
        return f(a, np.minimum(n, U32(bits - 1)).astype(dtype))

    if ins.name == "shr" and t[0] == "s":
        return p.emit(dst, clamped, a, amount)
    return p.emit(dst, lambda a, n: np.where(n < bits, clamped(a, n), dtype(0)), a, amount)


@op("shf")
def shf(p, ins):
    """Funnel shift of {b:a} (PTX ISA 9.7.8.7)."""
    d, a, b, n = ins.operands
    wrap, left = ins.has("wrap"), ins.has("l")

    def f(a, b, n):
        n = (n & U32(31) if wrap else np.minimum(n, U32(32))).astype(U64)
        v = b.astype(U64) << U64(32) | a
        return (v << n >> U64(32) if left else v >> n).astype(U32)

    return p.emit(p.dst(d, "b32"), f, p.src(a, "b32"), p.src(b, "b32"), p.src(n, "u32"))


@op("bfe")
def bfe(p, ins):
    """Bit field extract (PTX ISA 9.7.1.19): bits past the top repeat the sign."""
    t = ins.op[-1]
    bits = WIDTH[t]
    d, a, pos, n = ins.operands

    def signed(a, pos, n):
        pos = np.minimum(pos & U32(255), U32(bits)).astype(np.int64)
        n = np.minimum(n & U32(255), U32(bits)).astype(np.int64)
        v = a.astype(np.int64)
        up = 64 - np.minimum(pos + n, bits)
        r = (v << np.minimum(up, 63)) >> np.minimum(up + pos, 63)
        r = np.where(pos + n > bits, v >> np.minimum(pos, 63), r)
        return np.where(n == 0, 0, r).astype(a.dtype)

    def unsigned(a, pos, n):
        pos, n = (pos & U32(255)).astype(U64), (n & U32(255)).astype(U64)
        v = np.where(pos > 63, U64(0), a.astype(U64) >> np.minimum(pos, U64(63)))
        return (v & low_mask(n)).astype(a.dtype)

    f = signed if t[0] == "s" else unsigned
    return p.emit(p.dst(d, t), f, p.src(a, t), p.src(pos, "u32"), p.src(n, "u32"))


def low_mask(n: np.ndarray) -> np.ndarray:
    """The n lowest bits of 64."""
    return np.where(n > 63, ~U64(0), (U64(1) << np.minimum(n, U64(63))) - U64(1))


@op("bfi")
def bfi(p, ins):
    """Bit field insert of a into b (PTX ISA 9.7.1.20)."""
    bits = WIDTH[ins.op[-1]]
    t = f"b{bits}"
    d, a, b, pos, n = ins.operands

    def f(a, b, pos, n):
        pos = (pos & U32(255)).astype(U64)
        mask = low_mask(np.minimum(n & U32(255), U32(bits)).astype(U64))
        inside = pos < U64(bits)
        pos = np.where(inside, pos, U64(0))
        mask = np.where(inside, mask << pos, U64(0))
        return ((a.astype(U64) << pos & mask) | (b.astype(U64) & ~mask)).astype(b.dtype)

    return p.emit(p.dst(d, t), f, p.src(a, t), p.src(b, t), p.src(pos, "u32"), p.src(n, "u32"))


@op("prmt")
def prmt(p, ins):
    """Byte permutation (PTX ISA 9.7.8.5), default mode."""
    if ins.op != ("prmt", "b32"):
        raise unsupported(ins)
    d, a, b, c = ins.operands

    def f(a, b, c):
        v = b.astype(U64) << U64(32) | a
        r = U32(0)
        for k in range(4):
            s = c >> U32(4 * k)
            byte = (v >> ((s & U32(7)) * U32(8)).astype(U64)).astype(U32) & U32(255)
            r = r | np.where(s & U32(8), U32(255) * (byte >> U32(7)), byte) << U32(8 * k)
        return r

    def constant(a, b):
        r = U32(0) & a & b
        for k in range(4):
            s = c.value >> 4 * k & 15
            byte = (b if s & 4 else a) >> U32(8 * (s & 3)) & U32(255)
            r |= (U32(255) * (byte >> U32(7)) if s & 8 else byte) << U32(8 * k)
        return r

    dst, srcs = p.dst(d, "b32"), (p.src(a, "b32"), p.src(b, "b32"))
    if isinstance(c, Reg):
        return p.emit(dst, f, *srcs, p.src(c, "u32"))
    return p.emit(dst, constant, *srcs)


@op("popc", "clz", "brev", "bfind")
def scan(p, ins):
    t = ins.op[-1]
    width = WIDTH[t]
    d, a = ins.operands

    def octets(a):
        return np.ascontiguousarray(a).view(np.uint8).reshape(-1, width // 8)

    def popc(a):
        return np.unpackbits(octets(a), axis=1).sum(axis=1, dtype=U32)

    def brev(a):
        reverse = np.packbits(np.unpackbits(octets(a)[:, ::-1], axis=1, bitorder="little"), axis=1)
        return reverse.view(a.dtype).reshape(-1)

    def top_bit(a):
        """Index of the highest set bit, -1 for zero."""
        v = a.astype(U64)
        high = (v >> U64(32)).astype(np.float64)
        low = (v & U64(0xFFFFFFFF)).astype(np.float64)
        return np.where(high > 0, np.frexp(high)[1] + 31, np.frexp(low)[1] - 1)

    def bfind(a):
        k = top_bit(np.where(a < 0, ~a, a).view(f"u{width // 8}"))
        k = np.where(k < 0, -1, width - 1 - k) if ins.has("shiftamt") else k
        return k.astype(np.int32).view(U32)

    if ins.name == "brev":
        return p.emit(p.dst(d, t), brev, p.src(a, t))
    f = {"popc": popc, "clz": lambda a: (width - 1 - top_bit(a)).astype(U32), "bfind": bfind}
    return p.emit(p.dst(d, "u32"), f[ins.name], p.src(a, t))
