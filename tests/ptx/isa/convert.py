"""Moves, address conversion, and conversion between types (PTX ISA 9.7.9)."""

from __future__ import annotations

import numpy as np

from .. import numerics as nm
from ..program import DTYPE, op, unsupported
from ..storage import LOCAL_WINDOW, SHARED_WINDOW
from ..syntax import WIDTH, Vec
from .floating import LIFT, PACKED, modifier

F16, F32, F64 = np.float16, np.float32, np.float64
U16, U32 = np.uint16, np.uint32
FLOATS = {"f16", "bf16", "f32", "f64"}
INT_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
# Types of the registers that hold a converted value.
STORED = {"f16": "b16", "bf16": "b16", "tf32": "b32"}


@op("mov")
def mov(p, ins):
    """Register copy, immediate, special register, address, and vector pack and unpack."""
    t = ins.op[-1]
    d, a = ins.operands
    if isinstance(d, Vec) or isinstance(a, Vec):
        return pack_unpack(p, ins, d, a)
    if getattr(a, "negate", False):
        return p.emit(p.dst(d, t), np.logical_not, p.src(a, t))
    return copy(p.dst(d, t), p.src(a, t))


def copy(dst, src):
    """Closure for dst = src."""

    def step(sel):
        if dst is None:
            return
        if len(src) == 1:
            dst[sel.key] = src[0]
        elif sel.full:
            dst[:] = src
        elif sel.dense:
            np.putmask(dst, sel.mask, src)
        else:
            i = sel.idx()
            dst[i] = src[i]

    return step


def pack_unpack(p, ins, d, a):
    """`mov.b32 {lo, hi}, r` and `mov.b64 r, {lo, hi}` in all widths."""
    width = WIDTH[ins.op[-1]]
    if isinstance(d, Vec) and isinstance(a, Vec):
        raise unsupported(ins)
    parts = (d if isinstance(d, Vec) else a).items
    t = f"b{width // len(parts)}"
    if isinstance(d, Vec):
        src = p.src(a, f"b{width}")
        outs = [(k, p.dst(o, t)) for k, o in enumerate(parts)]

        def unpack(sel):
            v = np.array(sel.take(src)).view(DTYPE[t]).reshape(-1, len(parts))
            for k, o in outs:
                if o is not None:
                    o[sel.key] = v[:, k]

        return unpack
    dst = p.dst(d, f"b{width}")
    srcs = [p.src(o, t) for o in parts]

    def pack(sel):
        v = np.empty((sel.n, len(parts)), DTYPE[t])
        for k, s in enumerate(srcs):
            v[:, k] = sel.take(s)
        dst[sel.key] = v.view(dst.dtype)[:, 0]

    return pack


@op("cvta")
def cvta(p, ins):
    """Generic <-> state space addresses: the windows lie at fixed offsets."""
    t = ins.op[-1]
    d, a = ins.operands
    dst, src = p.dst(d, t), p.src(a, t)
    spaces = [m.split("::")[0] for m in ins.op]
    window = SHARED_WINDOW if "shared" in spaces else LOCAL_WINDOW if "local" in spaces else 0
    if not window:
        return copy(dst, src)
    w = DTYPE[t](window)
    return p.emit(dst, (lambda a: a - w) if ins.has("to") else (lambda a: a + w), src)


def float_to_int(x, dtype):
    """Saturating conversion of rounded floats; NaN gives 0 (PTX ISA 9.7.9.22)."""
    info = np.iinfo(dtype)
    x = x.astype(F64)
    if info.bits < 64:
        return (
            np.where(np.isnan(x), 0, np.clip(x, info.min, info.max)).astype(np.int64).astype(dtype)
        )
    top = F64(2.0) ** (64 if info.min == 0 else 63)
    inside = (x < top) & (x >= info.min)
    v = np.where(inside, x, 0.0)
    if info.min == 0:
        big = v >= 2.0**63
        r = np.where(big, v - 2.0**63, v).astype(np.int64).view(np.uint64)
        r = r + big * np.uint64(1 << 63)
    else:
        r = v.astype(np.int64)
    r = np.where(x >= top, dtype(info.max), np.where(x < info.min, dtype(info.min), r))
    return np.where(np.isnan(x), dtype(0), r).astype(dtype)


def int_to_float(x, t):
    """Integer -> float type with one rounding."""
    if t == "f64" or (t == "f32" and x.dtype.itemsize == 8):
        return x.astype(DTYPE[t])
    if x.dtype.itemsize == 8:
        raise TypeError(f"64-bit integer to {t}")
    return float_to_float(x.astype(F64), t, "rn")  # exact so far


def float_to_float(x, t, mode):
    """float32 or float64 values -> stored form of float type t."""
    if t in ("f32", "f64"):
        return x.astype(DTYPE[t], copy=False)
    if t == "f16":
        return nm.to_half(x)
    if t == "bf16":
        return nm.to_bf16(x)
    u = np.ascontiguousarray(x, F32).view(U32)
    if mode == "rna":
        u = u + U32(0x1000)
    elif mode == "rn":
        u = u + (U32(0xFFF) + ((u >> U32(13)) & U32(1)))
    return u & U32(0xFFFFE000)


@op("cvt")
def cvt(p, ins):
    """Scalar conversions, and packing of two sources."""
    if ins.has("pack"):
        return cvt_pack(p, ins)
    dt, st = ins.op[-2:]
    mode = next((m for m in ("rn", "rna", "rz", "rm", "rp") if m in ins.op), "rn")
    if st not in FLOATS and dt in FLOATS and modifier(ins):
        raise unsupported(ins)
    narrowing = dt in FLOATS | {"tf32"} | set(PACKED) and not (
        dt == "tf32" and mode in ("rna", "rz")
    )
    if narrowing and mode != "rn":
        raise unsupported(ins)
    if dt in PACKED:
        return cvt_packed(p, ins)
    if any(t not in DTYPE for t in (dt, st)):
        raise unsupported(ins)
    dst = p.dst(ins.operands[0], STORED.get(dt, dt))
    src = p.src(ins.operands[1], STORED.get(st, st))
    if st in FLOATS:
        f = from_float(ins, dt, st, mode)
    elif dt in FLOATS:
        f = lambda x: int_to_float(x, dt)  # noqa: E731
    else:
        f = from_int(dt, ins.has("sat"))
    return p.emit(dst, f, src)


def from_float(ins, dt, st, mode):
    """Function of a conversion from a float type."""
    ftz = ins.has("ftz")
    modify = modifier(ins)
    lift = LIFT.get(st) or (nm.flush if ftz and st == "f32" else lambda x: x)
    round_int = next((INT_ROUND[m] for m in ins.op if m in INT_ROUND), None)
    if dt not in FLOATS and dt != "tf32":
        round_int = round_int or np.trunc
        return lambda x: float_to_int(round_int(lift(x)), DTYPE[dt])

    def f(x):
        x = lift(x)
        x = round_int(x) if round_int else x
        r = float_to_float(modify(x) if modify else x, dt, mode)
        return nm.flush(r) if ftz and dt == "f32" else r

    return f


def from_int(dt, saturating):
    """Function of a conversion between integer types."""
    info = np.iinfo(DTYPE[dt])

    def clamp(x):
        if x.dtype == np.uint64:
            return np.minimum(x, np.uint64(info.max)).astype(info.dtype)
        if info.bits == 64 and info.min == 0:
            return np.maximum(x.astype(np.int64), 0).astype(info.dtype)
        return np.clip(x.astype(np.int64), info.min, info.max).astype(info.dtype)

    return clamp if saturating else lambda x: x.astype(info.dtype)


def cvt_packed(p, ins):
    """cvt.rn.{f16x2,bf16x2}.f32 d, a, b: a goes to the upper half."""
    dt, st = ins.op[-2:]
    if st != "f32" or len(ins.operands) != 3:
        raise unsupported(ins)
    modify, round_ = modifier(ins), nm.to_half if dt == "f16x2" else nm.to_bf16

    def packed(a, b):
        v = np.empty((max(len(a), len(b)), 2), F32)
        v[:, 0], v[:, 1] = b, a
        return round_(modify(v) if modify else v).view(U32)[:, 0]

    return p.emit(p.dst(ins.operands[0], dt), packed, *[p.src(o, "f32") for o in ins.operands[1:]])


def cvt_pack(p, ins):
    """cvt.pack.sat.{u8,s8,u16,s16}.s32{.b32} d, a, b{, c} (PTX ISA 9.7.9.23)."""
    dt = next(m for m in ins.op[2:] if m in ("u8", "s8", "u16", "s16"))
    info, bits = np.iinfo(DTYPE[dt]), WIDTH[dt]
    d, a, b, *c = ins.operands

    def clamp(x):
        return np.clip(x, info.min, info.max).view(U32) & U32((1 << bits) - 1)

    def f(a, b, *c):
        r = clamp(a) << U32(bits) | clamp(b)
        return r | c[0] << U32(2 * bits) if c else r

    srcs = [p.src(a, "s32"), p.src(b, "s32"), *[p.src(x, "b32") for x in c]]
    return p.emit(p.dst(d, "b32"), f, *srcs)
