"""Loads and stores (PTX ISA 9.7.9.8-12)."""

from __future__ import annotations

import numpy as np

from ..lanes import LaneSet
from ..layout import VECTORS, space_of
from ..program import DTYPE, op, unsupported
from ..storage import GLOBAL_WINDOW, LOCAL_WINDOW, SHARED_WINDOW, UNSIGNED
from ..syntax import WIDTH, Sym, Vec, written

# Ranges of generic addresses; what lies below all windows is reported as a global address.
WINDOWS = (
    ("global", 0, GLOBAL_WINDOW, 1 << 62),
    ("shared", SHARED_WINDOW, SHARED_WINDOW, LOCAL_WINDOW),
    ("local", LOCAL_WINDOW, LOCAL_WINDOW, GLOBAL_WINDOW),
    ("global", 0, -1 << 63, SHARED_WINDOW),
)


class Space:
    """Loads and stores of one instruction in one state space, counted."""

    def __init__(self, p, ins, space):
        self.core, self.ins = p.core, ins
        space = "global" if space in ("const", "param") else space
        self.load = getattr(self, "load_" + space)
        self.store = getattr(self, "store_" + space, None)

    def load_by_block(self, sel, addr, size):
        """As load_global; where all blocks read the same addresses, the first one's values."""
        core, times = self.core, 1
        first = sel.first_block()
        if first is not None and core.same_in_all_blocks(addr):
            sel, addr, times = first, addr[: first.n], core.nblocks
        return core.memory.load(core, self.ins, sel, addr, size, times)

    def load_global(self, sel, addr, size):
        return self.core.memory.load(self.core, self.ins, sel, addr, size)

    def store_global(self, sel, addr, size, values):
        core = self.core
        core.memory.store(core, self.ins, sel, addr, size, values)

    def load_shared(self, sel, addr, size):
        core = self.core
        out = core.shared.load(core, self.ins, sel, addr, size)
        self.count_shared(core.counters.shared_load, sel, addr, size)
        return out

    def store_shared(self, sel, addr, size, values):
        core = self.core
        core.shared.store(core, self.ins, sel, addr, size, values)
        self.count_shared(core.counters.shared_store, sel, addr, size)

    def count_shared(self, traffic, sel, addr, size):
        """Accounts one warp-wide shared access."""
        if not self.core.count:
            return
        ideal, passes = self.core.sites[size](sel, addr)
        traffic.requests += sel.nwarps
        traffic.bytes += sel.n * size
        traffic.ideal += ideal
        traffic.wavefronts += passes

    def load_local(self, sel, addr, size):
        core = self.core
        self.count_local(core.counters.local_load, sel, size)
        return core.local.load(core, self.ins, sel, addr, size)

    def store_local(self, sel, addr, size, values):
        core = self.core
        self.count_local(core.counters.local_store, sel, size)
        core.local.store(core, self.ins, sel, addr, size, values)

    @staticmethod
    def count_local(traffic, sel, size):
        traffic.requests += sel.nwarps
        traffic.bytes += sel.n * size

    @staticmethod
    def windows(sel, addr):
        """Splits generic addresses by state space: (name, offset of its window, positions)."""
        low, high = int(addr.min()), int(addr.max())
        for name, base, start, end in WINDOWS:
            if low >= start and high < end:
                yield name, base, None
                return
            at = np.flatnonzero((addr >= start) & (addr < end))
            if len(at):
                yield name, base, at

    def load_generic(self, sel, addr, size):
        out = np.empty(sel.n, UNSIGNED[size])
        for name, base, at in self.windows(sel, addr):
            load = getattr(self, "load_" + name)
            if at is None:
                return load(sel, addr - base, size)
            out[at] = load(LaneSet(self.core, sel.lanes()[at]), addr[at] - base, size)
        return out

    def store_generic(self, sel, addr, size, values):
        for name, base, at in self.windows(sel, addr):
            store = getattr(self, "store_" + name)
            if at is None:
                store(sel, addr - base, size, values)
                return
            part = values if len(values) == 1 else values[at]
            store(LaneSet(self.core, sel.lanes()[at]), addr[at] - base, size, part)


def element(ins):
    """(Type, with floats as plain bits; vector length)."""
    t = ins.op[-1]
    n = next((VECTORS[m] for m in ins.op if m in VECTORS), 1)
    if t not in DTYPE or WIDTH[t] * n > 128:
        raise unsupported(ins)
    return (t if t[0] in "us" else f"b{WIDTH[t]}"), n


def items(operand):
    """Elements of a vector operand; a scalar is a vector of one."""
    return operand.items if isinstance(operand, Vec) else (operand,)


def frame_address(p, ins, addr):
    """Function giving the address of a .param variable of a call in the local frame, or None."""
    if space_of(ins) == "param" and isinstance(addr.base, Sym):
        kind, at = p.address_of(addr.base.name)
        if kind == "local":
            return lambda sel: np.full(sel.n, at + addr.offset, np.int64)
    return None


@op("ld", "ldu")
def ld(p, ins):
    """ld{.weak|.volatile|.relaxed...}{.space}{.cache hints}{.vec}.type; hints are ignored."""
    t, n = element(ins)
    d, a = ins.operands[:2]
    outs = [p.dst(o, t) for o in items(d)]
    size, dtype = WIDTH[t] // 8 * n, DTYPE[t]
    space, address = space_of(ins), frame_address(p, ins, a)
    if address is not None:
        load = Space(p, ins, "local").load
    elif space == "param" and isinstance(a.base, Sym):
        return load_parameter(p, outs, p.address_of(a.base.name)[1] + a.offset, dtype)
    else:
        memory, address = Space(p, ins, space), p.address(a)
        load = memory.load if space in ("shared", "local", "generic") else memory.load_by_block
    names, uniform = p.loaded.intersection(written(ins)), p.core.uniform

    def step(sel):
        v = load(sel, address(sel), size).view(dtype).reshape(-1, n)
        for k, o in enumerate(outs):
            p.write(o, sel, v[:, k])
        same = sel if len(v) < sel.n else None
        for name in names:
            uniform[name] = same

    return step


def load_parameter(p, outs, at, dtype):
    """Load of kernel parameters at a constant offset."""

    def step(sel):
        v = np.frombuffer(p.core.launch.param_bytes, dtype, len(outs), at)
        for o, x in zip(outs, v, strict=True):
            if o is not None:
                o[sel.key] = x

    return step


@op("st")
def st(p, ins):
    t, n = element(ins)
    a, v = ins.operands[:2]
    srcs = [p.src(o, t) for o in items(v)]
    size, dtype = WIDTH[t] // 8 * n, DTYPE[t]
    address = frame_address(p, ins, a)
    if address is None:
        store, address = Space(p, ins, space_of(ins)).store, p.address(a)
    else:
        store = Space(p, ins, "local").store

    def step(sel):
        if n == 1:
            values = np.ascontiguousarray(sel.take(srcs[0])).view(UNSIGNED[size])
        else:
            m = np.empty((sel.n, n), dtype)
            for k, s in enumerate(srcs):
                m[:, k] = sel.take(s)
            values = m.view(UNSIGNED[size])[:, 0]
        store(sel, address(sel), size, values)

    return step
