"""Warp-level instructions: shfl, vote, redux, activemask (PTX ISA 9.7.9.6, 9.7.13)."""

from __future__ import annotations

import numpy as np

from ..program import WARP_SYNC, Op, op, unsupported
from ..syntax import Pair

U32 = np.uint32
UNDEFINED = U32(0xFFFFFFFF)  # shuffled out of an inactive lane
LANE = np.arange(32)


def warp_view(core, sel, *arrays):
    """Rows of the warps in `sel`: (warp numbers, active matrix or None, matrices)."""
    if sel.full:
        every = [np.broadcast_to(a, core.lanes).reshape(-1, 32) for a in arrays]
        return slice(None), None, every
    warps = np.unique(sel.idx() >> 5)
    active = sel.mask.reshape(-1, 32)[warps]
    return warps, active, [np.broadcast_to(a, core.lanes).reshape(-1, 32)[warps] for a in arrays]


def write_rows(out, warps, active, values):
    """Writes a [warps, 32] matrix back to a register, active lanes only."""
    if out is None:
        return
    m = out.reshape(-1, 32)
    m[warps] = values if active is None else np.where(active, values, m[warps])


def sync_op(p, ins, membermask, step):
    """Op that waits for the lanes of its membermask."""
    core = p.core
    return Op(
        ins, WARP_SYNC, step, converged=lambda sel: core.converge_masked(sel, membermask, ins)
    )


@op("shfl")
def shfl(p, ins):
    """shfl.sync.{up,down,bfly,idx}.b32 d|p, a, b, c, membermask (PTX ISA 9.7.9.6)."""
    mode = next(m for m in ins.op if m in ("up", "down", "bfly", "idx"))
    if not ins.has("sync"):
        raise unsupported(ins)
    d, a, b, c, member = ins.operands
    core = p.core
    first, second = (d.first, d.second) if isinstance(d, Pair) else (d, None)
    out = p.dst(first, "b32")
    pred = p.dst(second, "pred") if second is not None else None
    a, b, c = p.src(a, "b32"), p.src(b, "b32"), p.src(c, "b32")

    def step(sel):
        warps, active, (va, vb, vc) = warp_view(core, sel, a, b, c)
        if len(b) == len(c) == 1:  # the same lanes in every warp
            vb, vc = vb[:1], vc[:1]
        vb, vc = vb.astype(np.int64) & 31, vc.astype(np.int64)
        clamp, segment = vc & 31, vc >> 8 & 31
        last = (LANE & segment) | (clamp & ~segment)
        if mode == "up":
            j = LANE - vb
            valid = j >= last
        else:
            j = {"down": LANE + vb, "bfly": LANE ^ vb, "idx": LANE & segment | (vb & ~segment)}[
                mode
            ]
            valid = j <= last
        j = np.where(valid, j, LANE)
        if len(j) == 1:
            j, valid = j[0], np.broadcast_to(valid, va.shape)
            v, there = va[:, j], None if active is None else active[:, j]
        else:
            v = np.take_along_axis(va, j, 1)
            there = None if active is None else np.take_along_axis(active, j, 1)
        write_rows(out, warps, active, v if there is None else np.where(there, v, UNDEFINED))
        write_rows(pred, warps, active, valid)

    return sync_op(p, ins, p.src(member, "u32"), step)


@op("vote")
def vote(p, ins):
    """vote.sync.{all,any,uni,ballot} (PTX ISA 9.7.13.9)."""
    mode = next(m for m in ins.op if m in ("all", "any", "uni", "ballot"))
    if not ins.has("sync"):
        raise unsupported(ins)
    d, a, member = ins.operands
    core, member = p.core, p.src(member, "u32")
    out = p.dst(d, "b32" if mode == "ballot" else "pred")
    value, negate = p.src(a, "pred"), getattr(a, "negate", False)

    def step(sel):
        warps, active, (v, m) = warp_view(core, sel, value, member)
        here = np.ones(v.shape, bool) if active is None else active
        v = (v ^ negate) & here
        yes = np.packbits(v, axis=1, bitorder="little").view(U32) & m
        everyone = np.packbits(here, axis=1, bitorder="little").view(U32) & m
        if mode == "ballot":
            r = yes
        elif mode == "any":
            r = yes != 0
        else:
            r = yes == everyone
            r = r | (yes == 0) if mode == "uni" else r
        write_rows(out, warps, active, r)

    return sync_op(p, ins, member, step)


@op("redux")
def redux(p, ins):
    """redux.sync.{add,min,max,and,or,xor} (PTX ISA 9.7.13.11)."""
    t = ins.op[-1]
    if t == "f32":
        raise unsupported(ins)
    name = next(m for m in ins.op if m in ("add", "min", "max", "and", "or", "xor"))
    d, a, member = ins.operands
    core, member = p.core, p.src(member, "u32")
    out, a = p.dst(d, t), p.src(a, t)
    info = np.iinfo(out.dtype)
    f, neutral = {
        "add": (np.add, 0),
        "min": (np.minimum, info.max),
        "max": (np.maximum, info.min),
        "and": (np.bitwise_and, -1 if info.min else info.max),
        "or": (np.bitwise_or, 0),
        "xor": (np.bitwise_xor, 0),
    }[name]

    def step(sel):
        warps, active, (v, m) = warp_view(core, sel, a, member)
        # [warps, lane x, lane y]: x sees y
        sees = (m[:, :, None] >> LANE.astype(U32) & U32(1)).astype(bool)
        if active is not None:
            sees &= active[:, None, :]
        seen = np.where(sees, v[:, None, :], info.dtype.type(neutral))
        write_rows(out, warps, active, f.reduce(seen, axis=2, dtype=info.dtype))

    return sync_op(p, ins, member, step)


@op("activemask")
def activemask(p, ins):
    """Lanes of the warp in the current converged group."""
    core = p.core
    out = p.dst(ins.operands[0], "b32")

    def step(sel):
        out[sel.key] = np.repeat(core.present(sel), 32)[sel.key]

    return step
