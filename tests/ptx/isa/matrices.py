"""ldmatrix and stmatrix (PTX ISA 9.7.14.5.15-16)."""

from __future__ import annotations

import numpy as np

from ..lanes import LaneSet
from ..program import WARP_SYNC, Op, op, unsupported
from .memory import items

U16, U32 = np.uint16, np.uint32


class Matrices:
    """What ldmatrix and stmatrix share: addresses of rows, and their counting."""

    def __init__(self, p, ins):
        if "m8n8" not in ins.op or ins.op[-1] != "b16":
            raise unsupported(ins)
        self.core, self.ins = p.core, ins
        self.n = next(int(m[1]) for m in ins.op if m in ("x1", "x2", "x4"))
        self.transposed = ins.has("trans")
        self.sel = self.rows = None

    def row_lanes(self, sel):
        """The lanes whose address operand an .xN instruction uses."""
        if self.n == 4:
            return sel
        if sel is not self.sel:
            lanes = sel.lanes()
            self.sel, self.rows = sel, LaneSet(self.core, lanes[(lanes & 31) < 8 * self.n])
        return self.rows

    def count(self, traffic, sel, rows, addr):
        """Accounts one instruction of the warps in `sel`."""
        if not self.core.count:
            return
        ideal, passes = self.core.sites["ldmatrix"](rows, addr)
        traffic.requests += sel.nwarps
        traffic.bytes += len(addr) * 16
        traffic.ideal += ideal
        traffic.wavefronts += passes

    def transpose(self, v):
        """Swaps rows and columns of 8x8 matrices of 16-bit elements."""
        v = v.view(U16).reshape(-1, self.n, 8, 8)
        return np.ascontiguousarray(v.swapaxes(2, 3)) if self.transposed else v


def aligned(p, ins, step, macs=0):
    """Op that needs whole warps."""
    core = p.core
    return Op(
        ins, WARP_SYNC, step, converged=lambda sel: core.converge_aligned(sel, ins), macs=macs
    )


@op("ldmatrix")
def ldmatrix(p, ins):
    """ldmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16."""
    m = Matrices(p, ins)
    outs = [p.dst(o, "b32") for o in items(ins.operands[0])]
    address, core = p.address(ins.operands[1]), p.core

    def step(sel):
        rows = m.row_lanes(sel)
        addr = address(rows)
        v = core.shared.load(core, ins, rows, addr, 16, "ldmatrix")
        v = m.transpose(v).view(U32).reshape(-1, m.n, 32)
        for k, o in enumerate(outs):
            if o is None:
                continue
            if sel.full:
                o.reshape(-1, 32)[:] = v[:, k]
            else:
                o[sel.idx()] = v[:, k].reshape(-1)
        m.count(core.counters.ldmatrix, sel, rows, addr)

    return aligned(p, ins, step)


@op("stmatrix")
def stmatrix(p, ins):
    """stmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16."""
    m = Matrices(p, ins)
    address, core = p.address(ins.operands[0]), p.core
    srcs = [p.src(o, "b32") for o in items(ins.operands[1])]

    def step(sel):
        rows = m.row_lanes(sel)
        addr = address(rows)
        v = np.stack([np.broadcast_to(sel.take(s), sel.n).reshape(-1, 32) for s in srcs], axis=1)
        values = m.transpose(v).reshape(-1).view(np.complex128)
        core.shared.store(core, ins, rows, addr, 16, values)
        m.count(core.counters.stmatrix, sel, rows, addr)

    return aligned(p, ins, step)
