"""Floating-point arithmetic: f16, bf16, their packed forms, f32, f64 (PTX ISA 9.7.3-9.7.5).

Every operation rounds once, as hardware does: 16-bit add, sub and mul run in float32, which has
more than 2p + 2 bits, so the second rounding cannot change the result; for fma see `numerics`.
`.approx` functions are computed accurately; hardware differs by the error bound that the PTX ISA
gives for each.
"""

from __future__ import annotations

import numpy as np

from .. import numerics as nm
from ..program import op, unsupported
from ..syntax import WIDTH

F32, F64 = np.float32, np.float64
U16, U32 = np.uint16, np.uint32
PACKED = {"f16x2": "f16", "bf16x2": "bf16"}
TYPES = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f64"}
LIFT = {"f16": nm.half_to_f32, "bf16": nm.bf16_to_f32}
NARROW = {"f16": nm.to_half, "bf16": nm.to_bf16}


def lift(t, ftz=False):
    """Function from stored values of type t to something comparable, or None."""
    if t in LIFT:
        return LIFT[t]
    return nm.flush if ftz and t == "f32" else None


def modifier(ins):
    """What .sat or .relu does to a wide result, or None."""
    return nm.saturate if ins.has("sat") else nm.relu if ins.has("relu") else None


def emit_small(p, ins, f):
    """16-bit and packed instruction: widen to float32, compute `f`, modify, round once."""
    t = ins.op[-1]
    d, *srcs = ins.operands
    modify = modifier(ins)
    element = PACKED.get(t, t)
    to_f32, round_ = LIFT[element], NARROW[element]

    def run(*args):
        r = f(*map(to_f32, args))
        return round_(modify(r) if modify else r)

    if t not in PACKED:
        return p.emit(p.dst(d, "b16"), run, *[p.src(s, "b16") for s in srcs])

    def packed(*args):
        return run(*[np.ascontiguousarray(a).view(U16).reshape(-1, 2) for a in args]).view(U32)[
            :, 0
        ]

    return p.emit(p.dst(d, t), packed, *[p.src(s, t) for s in srcs])


def emit_wide(p, ins, f):
    """f32 or f64 instruction, with .ftz and .sat around `f`."""
    t = ins.op[-1]
    d, *srcs = ins.operands
    ftz, modify = ins.has("ftz") and t == "f32", modifier(ins)
    g = f
    if ftz or modify:

        def g(*args):
            r = f(*[nm.flush(a) for a in args]) if ftz else f(*args)
            r = modify(r) if modify else r
            return nm.flush(r) if ftz else r

    return p.emit(p.dst(d, t), g, *[p.src(s, t) for s in srcs])


def emit(p, ins, f):
    """Instruction of any float type whose result `f` is rounded by its own dtype."""
    if rounding(ins):
        raise unsupported(ins)
    return emit_wide(p, ins, f) if ins.op[-1] in ("f32", "f64") else emit_small(p, ins, f)


def rounding(ins):
    """Directed rounding mode in the opcode, or None."""
    return next((m for m in ("rz", "rm", "rp") if m in ins.op), None)


def arithmetic(p, ins):
    """add, sub, mul."""
    f = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[ins.name]
    mode = rounding(ins)
    if not mode or ins.op[-1] != "f32":
        return emit(p, ins, f)

    def directed(a, b):
        a, b = a.astype(F64), b.astype(F64)
        s = f(a, b)
        lost = np.zeros(1)
        if ins.name != "mul":
            lost = nm.two_sum_error(a, b if ins.name == "add" else -b, s)
        return nm.directed(s, lost, mode)

    return emit_wide(p, ins, directed)


def divide(p, ins):
    """div.rn; .approx and .full are computed as exact division."""
    return emit(p, ins, np.divide)


@op("fma")
def fma(p, ins):
    t, mode = ins.op[-1], rounding(ins)
    if t == "f64" or (mode and t != "f32"):
        raise unsupported(ins)
    if t != "f32":
        half = t in ("f16", "f16x2")
        return emit_small(p, ins, lambda a, b, c: nm.fma_small(a, b, c, half))
    if not mode:
        return emit_wide(p, ins, nm.fma_f32)

    def directed(a, b, c):
        m, c = a.astype(F64) * b, c.astype(F64)
        s = m + c
        return nm.directed(s, nm.two_sum_error(m, c, s), mode)

    return emit_wide(p, ins, directed)


def min_max(p, ins):
    """min and max of two or three: a NaN operand loses, or wins with .NaN; -0 < +0."""
    if ins.has("xorsign"):
        raise unsupported(ins)
    low, keep_nan = ins.name == "min", ins.has("NaN")
    choose = np.fmin if low else np.fmax

    def f(a, b, *c):
        r = choose(a, b)
        zero = r == 0
        if zero.any():
            z = np.signbit(a) | np.signbit(b) if low else np.signbit(a) & np.signbit(b)
            both = zero & (a == 0) & (b == 0)
            r = np.where(both, np.where(z, r.dtype.type(-0.0), r.dtype.type(0)), r)
        if keep_nan:
            r = np.where(np.isnan(a) | np.isnan(b), r.dtype.type(np.nan), r)
        return f(r, *c) if c else r

    return emit(p, ins, f)


def abs_neg(p, ins):
    """Sign-bit operations, exact for every input."""
    t = ins.op[-1]
    if ins.has("ftz") and t == "f32":
        return emit_wide(p, ins, np.abs if ins.name == "abs" else np.negative)
    width = WIDTH[t]
    b = f"b{width}"
    d, a = ins.operands
    dtype = {16: U16, 32: U32, 64: np.uint64}[width]
    sign = dtype(0x80008000 if t in PACKED else 1 << width - 1)
    if ins.name == "abs":
        return p.emit(p.dst(d, b), lambda a: a & ~sign, p.src(a, b))
    return p.emit(p.dst(d, b), lambda a: a ^ sign, p.src(a, b))


@op("copysign")
def copysign(p, ins):
    """copysign d, a, b: magnitude of b, sign of a."""
    d, a, b = ins.operands
    t = ins.op[-1]
    return p.emit(p.dst(d, t), lambda a, b: np.copysign(b, a), p.src(a, t), p.src(b, t))


def through_f64(f):
    """Function computed in float64 and rounded."""
    return lambda x: f(x.astype(F64)).astype(x.dtype)


FUNCTIONS = {
    "rcp": lambda x: x.dtype.type(1) / x,
    "sqrt": np.sqrt,
    "rsqrt": through_f64(lambda x: 1 / np.sqrt(x)),
    "ex2": through_f64(np.exp2),
    "lg2": through_f64(np.log2),
    "sin": through_f64(np.sin),
    "cos": through_f64(np.cos),
    "tanh": through_f64(np.tanh),
}


@op(*FUNCTIONS)
def function(p, ins):
    """rcp, sqrt, rsqrt, ex2, lg2, sin, cos, tanh."""
    return emit(p, ins, FUNCTIONS[ins.name])
