"""Branches, exit, barriers, fences, and calls of the device runtime (PTX ISA 9.7.12-13)."""

from __future__ import annotations

import numpy as np

from ..errors import Trap
from ..lanes import LaneSet
from ..program import BRANCH, CONTROL, WARP_SYNC, Op, op, unsupported
from ..syntax import Sym


@op("bra")
def bra(p, ins):
    return Op(ins, BRANCH, target=p.target(ins.operands[0].name))


@op("brx")
def brx(p, ins):
    """brx.idx: indexed branch through a .branchtargets table."""
    index = p.src(ins.operands[0], "u32")
    table = np.array([p.target(t) for t in p.function.tables[ins.operands[1].name]])
    core = p.core

    def step(pc, sel):
        lanes = sel.lanes()
        where = table[np.broadcast_to(sel.take(index), len(lanes))]
        for t in np.unique(where):
            core.push(int(t), LaneSet(core, lanes[where == t]))
        return False

    return Op(ins, CONTROL, step)


@op("exit", "ret")
def leave(p, ins):
    core = p.core

    def step(pc, sel):
        core.exit_lanes(sel)
        return False

    return Op(ins, CONTROL, step)


@op("call")
def call(p, ins):
    """Calls of the device runtime: printing is ignored, a failed assertion is a fault."""
    core = p.core
    names = [o.name for o in ins.operands if isinstance(o, Sym)]
    f = core.module.functions.get(names[0]) if names else None
    if f is None or f.defined or f.name not in ("vprintf", "__assertfail"):
        raise unsupported(ins)
    if f.name == "vprintf":
        return lambda sel: None
    return lambda sel: core.fault(Trap, "device assertion failed", ins, sel.lane(0))


@op("trap")
def trap(p, ins):
    core = p.core
    return lambda sel: core.fault(Trap, "trap executed", ins, sel.lane(0))


@op("membar", "fence", "nanosleep", "prefetch", "prefetchu", "discard", "applypriority", "pmevent")
def no_effect(p, ins):
    """Fences order nothing here: lanes execute in one global order already."""
    return lambda sel: None


VOTES = {
    "popc": lambda votes, threads: votes,
    "and": lambda votes, threads: votes == threads,
    "or": lambda votes, threads: votes > 0,
}


@op("bar", "barrier")
def bar(p, ins):
    """bar/barrier {.cta}.sync/.arrive/.red, bar.warp.sync (PTX ISA 9.7.13.1-2)."""
    core = p.core
    if ins.has("warp"):
        return warp_barrier(p, ins)
    if ins.has("cluster"):
        raise unsupported(ins)
    operands = list(ins.operands)
    dst, predicate = (operands.pop(0), operands.pop()) if ins.has("red") else (None, None)
    ident = p.src(operands.pop(0), "u32") if operands else np.zeros(1, np.uint32)
    count = p.src(operands.pop(0), "u32") if operands else None
    wait = not ins.has("arrive")
    aligned = ins.name == "bar" or ins.has("aligned")
    vote = finish = None
    if predicate is not None:
        vote = p.src(predicate, "pred")
        out = p.dst(dst, "u32" if ins.has("popc") else "pred")
        combine = next(VOTES[m] for m in ins.op if m in VOTES)
        finish = lambda sel, votes, threads: p.write(out, sel, combine(votes, threads))  # noqa: E731

    def step(pc, sel):
        go = converge(core, pc, sel, ins) if aligned else sel
        if go is None:
            return False
        votes = None
        if vote is not None:
            votes = np.broadcast_to(go.take(vote), go.n) ^ predicate.negate
        counts = None if count is None else go.take(count)
        through = core.barriers.arrive(pc, go, go.take(ident), counts, wait, aligned, votes)
        if through and go is not sel:
            core.push(pc + 1, go)
            return False
        return through

    return Op(ins, CONTROL, step, finish=finish)


def converge(core, pc, sel, ins):
    """Lanes whose whole warps are at an aligned barrier, or None; the others wait."""
    waiting = core.blocked.pop(pc, None)
    if waiting is not None:
        sel = core.merge(sel, waiting)
        core.executed[pc] += waiting.n
    go, stay = core.converge_aligned(sel, ins, need_all=False)
    if stay is not None:
        core.blocked[pc] = stay
        core.issued[pc] -= stay.nwarps
        core.executed[pc] -= stay.n
    return go


def warp_barrier(p, ins):
    """bar.warp.sync membermask."""
    core = p.core
    mask = p.src(ins.operands[0], "u32")

    def step(sel):
        if core.race:
            core.race.warp_barrier(sel)

    return Op(ins, WARP_SYNC, step, converged=lambda sel: core.converge_masked(sel, mask, ins))
