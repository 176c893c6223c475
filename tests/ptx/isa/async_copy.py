"""cp.async and its groups (PTX ISA 9.7.9.25.3)."""

from __future__ import annotations

import numpy as np

from ..lanes import LaneSet
from ..program import op, unsupported
from ..storage import UNSIGNED
from ..syntax import Reg
from .memory import Space


@op("cp")
def cp(p, ins):
    core = p.core
    if ins.op[1] != "async" or ins.has("bulk", "mbarrier", "reduce"):
        raise unsupported(ins)
    if ins.has("commit_group"):
        return lambda sel: core.async_copies.commit(sel)
    if ins.has("wait_all"):
        return lambda sel: core.async_copies.wait(core, sel, None)
    if ins.has("wait_group"):
        keep = ins.operands[0].value
        return lambda sel: core.async_copies.wait(core, sel, keep)
    size = ins.operands[2].value
    if size not in (4, 8, 16):
        raise unsupported(ins)
    to, source = p.address(ins.operands[0]), p.address(ins.operands[1])
    limit = source_size(p, ins, size)
    space = Space(p, ins, "global")

    def step(sel):
        addr, offset = source(sel), to(sel)
        take = None if limit is None else np.broadcast_to(limit(sel), sel.n)
        data = fetch(core, space, sel, addr, size, take)
        index = core.shared.resolve(core, ins, sel, offset, size, True)
        core.shared.check_writable(core, ins, sel, index, size)
        if core.race:
            core.race.shared_write(ins, sel, index, size, None)
        core.async_copies.issue(core, sel, index, size, data)
        space.count_shared(core.counters.cp_async, sel, offset, size)

    return step


def source_size(p, ins, size):
    """Function giving the bytes to read, the rest being zeros; None: always all.

    The fourth operand is that number, a predicate to read nothing, or a cache policy.
    """
    o = ins.operands[3] if len(ins.operands) > 3 else None
    if o is None or (isinstance(o, Reg) and p.register(o.name).dtype == np.uint64):
        return None
    if isinstance(o, Reg) and p.register(o.name).dtype == np.bool_:
        ignore = p.src(o, "pred")
        return lambda sel: np.where(sel.take(ignore) ^ o.negate, 0, size)
    number = p.src(o, "u32")
    return lambda sel: np.minimum(sel.take(number), np.uint32(size))


def fetch(core, space, sel, addr, size, take):
    """Source elements of the lanes, `take` bytes of each (None: all) and zeros."""
    if take is None or (take == size).all():
        return space.load_global(sel, addr, size)
    data = np.zeros(sel.n, UNSIGNED[size])
    at = np.flatnonzero(take == size)
    if len(at):
        data[at] = space.load_global(LaneSet(core, sel.lanes()[at]), addr[at], size)
    partial = (take > 0) & (take < size)
    if partial.any():  # byte by byte
        octets = data.view(np.uint8).reshape(-1, size)
        for k in range(size - 1):
            at = np.flatnonzero(partial & (take > k))
            if len(at):
                lanes = LaneSet(core, sel.lanes()[at])
                octets[at, k] = space.load_global(lanes, addr[at] + k, 1)
    return data


@op("createpolicy")
def createpolicy(p, ins):
    """Cache policies have no effect here; the register still gets a value."""
    dst = p.dst(ins.operands[0], "b64")

    def step(sel):
        dst[sel.key] = 0

    return step
