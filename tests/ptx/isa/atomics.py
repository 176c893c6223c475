"""atom and red (PTX ISA 9.7.13.12-13) on global, shared and generic addresses.

Scopes and memory order are ignored: lanes execute in one global order already.
"""

from __future__ import annotations

import numpy as np

from ..lanes import LaneSet
from ..layout import space_of
from ..program import DTYPE, op, unsupported
from ..syntax import WIDTH, Reg, Vec
from .memory import Space

COMBINE = {
    "add": lambda a, b, c: a + b,
    "min": lambda a, b, c: np.minimum(a, b),
    "max": lambda a, b, c: np.maximum(a, b),
    "and": lambda a, b, c: a & b,
    "or": lambda a, b, c: a | b,
    "xor": lambda a, b, c: a ^ b,
    "exch": lambda a, b, c: b,
    "cas": lambda a, b, c: np.where(a == b, c, a),
    "inc": lambda a, b, c: np.where(a >= b, a.dtype.type(0), a + a.dtype.type(1)),
    "dec": lambda a, b, c: np.where((a == 0) | (a > b), b, a - a.dtype.type(1)),
}


def read_modify_write(cells, index, name, b, c):
    """Applies atomics to cells[index] in the order of the lanes; returns the old values.

    Lanes that hit one address are served in as many rounds as the most contended address has
    lanes; an integer add takes one segmented prefix sum instead.
    """
    f = COMBINE[name]
    b = np.broadcast_to(b, len(index))
    c = b if c is None else np.broadcast_to(c, len(index))
    order = np.argsort(index, kind="stable")
    s = index[order]
    first = np.concatenate(([True], s[1:] != s[:-1]))
    if first.all():
        old = cells[index]
        cells[index] = f(old, b, c)
        return old
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=len(s))
    old = np.empty(len(index), cells.dtype)
    if name == "add" and cells.dtype.kind in "iu":
        v = b[order]
        run = np.cumsum(v, dtype=v.dtype)
        before = run - v
        before -= np.repeat(before[starts], lengths)
        old[order] = cells[s] + before
        last = starts + lengths - 1
        cells[s[last]] = cells[s[last]] + before[last] + v[last]
        return old
    rank = np.arange(len(s)) - np.repeat(starts, lengths)
    by_rank = np.argsort(rank, kind="stable")
    begin = 0
    for end in np.cumsum(np.bincount(rank)):
        lanes = order[by_rank[begin:end]]
        was = cells[index[lanes]]
        old[lanes] = was
        cells[index[lanes]] = f(was, b[lanes], c[lanes])
        begin = end
    return old


class Atomic:
    """One atomic instruction."""

    def __init__(self, p, ins, name, t):
        self.core, self.ins, self.name = p.core, ins, name
        self.size, self.dtype = WIDTH[t] // 8, DTYPE[t]
        self.space = Space(p, ins, "generic")

    def on_global(self, sel, addr, b, c):
        """Atomics on global addresses; returns the old values."""
        core, size, memory = self.core, self.size, self.core.memory
        old = np.empty(sel.n, self.dtype)
        for buffer, index, at in memory.resolve(core, self.ins, sel, addr, size, True):
            memory.check_init(core, self.ins, sel, buffer, index, at, size)
            part = slice(None) if at is None else at
            cells = buffer.data.view[size].view(self.dtype)
            vb, vc = pick(b, part), pick(c, part)
            old[part] = read_modify_write(cells, index, self.name, vb, vc)
            buffer.mark_written(index, size)
            if core.count:
                buffer.mark_read(index, size)
                memory.count(core, "atomic", buffer, sel, addr, at, size, core.sites["global"])
        return old

    def on_shared(self, sel, addr, b, c):
        """Atomics on shared addresses; returns the old values."""
        core, size, shared = self.core, self.size, self.core.shared
        index = shared.resolve(core, self.ins, sel, addr, size, True)
        shared.check_readable(core, self.ins, sel, index, size, "atomic")
        if core.race:
            core.race.shared_atomic(self.ins, sel, index, size)
        self.space.count_shared(core.counters.shared_atomic, sel, addr, size)
        return read_modify_write(shared.data.view[size].view(self.dtype), index, self.name, b, c)

    def on_generic(self, sel, addr, b, c):
        """Atomics on addresses of either kind; returns the old values."""
        old = np.empty(sel.n, self.dtype)
        for where, base, at in self.space.windows(sel, addr):
            apply = getattr(self, "on_" + where)
            if at is None:
                return apply(sel, addr - base, b, c)
            lanes = LaneSet(self.core, sel.lanes()[at])
            old[at] = apply(lanes, addr[at] - base, pick(b, at), pick(c, at))
        return old


def pick(values, at):
    """Values of some positions; None and single values pass."""
    return values if values is None or len(values) == 1 else values[at]


@op("atom", "red")
def atomic(p, ins):
    space, t = space_of(ins), ins.op[-1]
    operands = list(ins.operands)
    dst = operands.pop(0) if ins.name == "atom" else None
    name = next((m for m in ins.op if m in COMBINE), None)
    t = "u" + t[1:] if t[0] == "b" else t
    if name is None or isinstance(operands[1], Vec) or WIDTH.get(t, 0) < 32 or "x2" in t:
        raise unsupported(ins)
    address, apply = p.address(operands[0]), getattr(Atomic(p, ins, name, t), "on_" + space)
    b = p.src(operands[1], t)
    c = p.src(operands[2], t) if name == "cas" else None
    out = p.dst(dst, t) if isinstance(dst, Reg) and dst.name in p.sources else None

    def step(sel):
        old = apply(sel, address(sel), sel.take(b), None if c is None else sel.take(c))
        p.write(out, sel, old)

    return step
