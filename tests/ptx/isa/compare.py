"""Comparison and selection (PTX ISA 9.7.6-7)."""

from __future__ import annotations

import numpy as np

from ..program import op, unsupported
from ..syntax import WIDTH, Pair, Reg
from . import floating

ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(ins, t):
    """Function that compares as the opcode says."""
    name = next(m for m in ins.op[1:] if m in ORDERED or m in UNORDERED or m in ("num", "nan"))
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name in UNORDERED:
        g = ORDERED[UNORDERED[name]]
        return lambda a, b: g(a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne" and t in floating.TYPES:  # ordered: false for NaN
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    return ORDERED[name]


@op("setp")
def setp(p, ins):
    """setp, optionally combined with a predicate, and with a second result `p|q`."""
    t = ins.op[-1]
    if t in floating.PACKED:
        raise unsupported(ins)
    d, a, b = ins.operands[:3]
    compare = comparison(ins, t)
    lift = floating.lift(t, ins.has("ftz")) if t in floating.TYPES else None
    if lift:
        plain = compare
        compare = lambda a, b: plain(lift(a), lift(b))  # noqa: E731
    combine = next((COMBINE[m] for m in ins.op if m in COMBINE), None)
    srcs = [p.src(a, t), p.src(b, t)]
    first, second = (d.first, d.second) if isinstance(d, Pair) else (d, None)
    if combine is None:
        steps = [p.emit(p.dst(first, "pred"), compare, *srcs)]
        if second is not None:
            opposite = lambda a, b: ~compare(a, b)  # noqa: E731
            steps.append(p.emit(p.dst(second, "pred"), opposite, *srcs))
    else:
        c, negate = p.src(ins.operands[3], "pred"), ins.operands[3].negate
        joined = lambda a, b, c: combine(compare(a, b), c ^ negate)  # noqa: E731
        steps = [p.emit(p.dst(first, "pred"), joined, *srcs, c)]
        if second is not None:
            opposite = lambda a, b, c: combine(~compare(a, b), c ^ negate)  # noqa: E731
            steps.append(p.emit(p.dst(second, "pred"), opposite, *srcs, c))
    if second is None:
        return steps[0]
    targets = [o.name for o in (first, second) if isinstance(o, Reg)]
    if any(isinstance(o, Reg) and o.name in targets for o in ins.operands[1:]):
        raise unsupported(ins, "a source is also a destination")

    def both(sel):
        for step in steps:
            step(sel)

    return both


@op("selp")
def selp(p, ins):
    t = f"b{WIDTH[ins.op[-1]]}"
    d, a, b, c = ins.operands
    dst, a, b, condition = p.dst(d, t), p.src(a, t), p.src(b, t), p.src(c, "pred")
    if c.negate:
        a, b = b, a
    return p.emit(dst, choose, condition, a, b)


def choose(condition, a, b):
    """np.where without branches, which random conditions would make slow."""
    out = condition.astype(a.dtype)
    out *= a ^ b
    out ^= b
    return out
