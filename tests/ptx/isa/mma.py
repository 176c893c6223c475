"""mma.sync (PTX ISA 9.7.14.5): m16n8 with 16-bit, tf32 and 8-bit inputs.

Fragment layouts, with g = lane / 4 and t = lane % 4: a 32-bit register of an A or B fragment
holds, over the 32 lanes, 16 bytes of each of 8 rows: row g, word t. For B the rows are those of
the transpose (row = n). The registers of A run down the rows first, then along k. Accumulators
hold (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).

Arithmetic: products and sums in float32 (products of 16-bit inputs are exact there; the order of
the k-sum is the matrix product's), then one addition to the accumulator. 8-bit integer sums are
exact. tf32 operands are truncated to 10 mantissa bits.

How groups of instructions run as one product, see `mma_plan`.
"""

from __future__ import annotations

import numpy as np

from .. import numerics as nm
from ..lanes import LaneSet
from ..mma_plan import quad
from ..program import op, unsupported
from .matrices import aligned
from .memory import items

F32, I32, U32 = np.float32, np.int32, np.uint32
PIECE = np.dtype(np.complex128)  # 16 bytes that are only copied
TO_F32 = {
    "f16": nm.half_to_f32,
    "bf16": lambda words: nm.bf16_to_f32(words.view(np.uint16)),
    "tf32": lambda words: (words & U32(0xFFFFE000)).view(F32),
    "s8": lambda words: words.view(np.int8).astype(F32),
    "u8": lambda words: words.view(np.uint8).astype(F32),
}
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8}
SHAPES = {
    16: ("m16n8k8", "m16n8k16"),
    32: ("m16n8k4", "m16n8k8"),
    8: ("m16n8k16", "m16n8k32"),
}


class Fragment:
    """The A fragment of a group, or its B fragments side by side, as float32 matrices.

    A becomes [2, warps, 8, k] and B [warps, k, 8 * n], where column t * 2n + 2j + e of the
    latter is column 2t + e of the group's j-th fragment. When all blocks hold the same values,
    only the first block's warps are decoded.
    """

    def __init__(self, p, operands, kind, down, reuse):
        self.core, self.kind, self.down, self.reuse = p.core, kind, down, reuse
        self.regs = [[p.src(o, "b32") for o in items(x)] for x in operands]
        self.names = tuple(o.name for x in operands for o in items(x))

    def decode(self, sel: LaneSet) -> np.ndarray:
        """Float32 matrices of the warps in `sel`, of the first block's only, or of both."""
        if self.reuse:
            owner, matrix = self.core.fragments.get((self.down, self.names), (None, None))
            if owner is sel:
                return matrix
        regs = [[np.ascontiguousarray(sel.take(r)) for r in x] for x in self.regs]
        first = sel.first_block()
        if first is not None and self.same_in_all_blocks(sel, regs):
            regs = [[r[: first.n] for r in x] for x in regs]
        warps = len(regs[0][0]) // 32
        pieces = len(regs[0]) // self.down
        if self.down == 2:  # A
            m = np.empty((2, warps, 8, pieces), PIECE)
            for i, r in enumerate(regs[0]):
                m[i % 2, :, :, i // 2] = r.view(PIECE).reshape(warps, 8)
        else:
            m = np.empty((warps, 4, len(regs), 2, pieces), PIECE)
            for j, x in enumerate(regs):
                for i, r in enumerate(x):
                    m[:, :, j, :, i] = r.view(PIECE).reshape(warps, 4, 2)
        words = m.reshape(*m.shape[:-1], -1).view(U32)
        matrix = TO_F32[self.kind](words)
        if self.down == 1:
            matrix = np.ascontiguousarray(matrix.reshape(warps, 8 * len(regs), -1).swapaxes(1, 2))
        self.core.fragments[self.down, self.names] = (sel, matrix)
        return matrix

    def same_in_all_blocks(self, sel: LaneSet, regs: list[list[np.ndarray]]) -> bool:
        """Whether every block holds the first one's values."""
        core = self.core
        every = zip(self.names, (r for x in regs for r in x), strict=True)
        return all(core.uniform.get(name) is sel or core.same_in_all_blocks(r) for name, r in every)


class Accumulators:
    """The accumulators of a group in one operand: registers, and their tile if they have one."""

    def __init__(self, p, members, k, dtype):
        quads = [quad(m, k) for m in members]
        tile = p.tiles.get(tuple(quads))
        if tile is not None:
            tile = tile.view(dtype).reshape(2, p.core.warps, 32, 2 * len(quads))
        self.tile = tile
        typ = "f32" if dtype == F32 else "s32"
        access = p.dst if k == 0 else p.src
        self.regs = [[access(o, typ) for o in items(m.operands[k])] for m in members]


class Product:
    """D = A B + C for a group of mma instructions."""

    def __init__(self, p, members, reuse_a, reuse_b):
        ins = members[0]
        at, bt = ins.op[-3:-1]
        self.core = p.core
        self.left = Fragment(p, [ins.operands[1]], at, 2, reuse_a)
        self.right = Fragment(p, [m.operands[2] for m in members], bt, 1, reuse_b)
        self.dtype = I32 if ins.op[-1] == "s32" else F32
        self.clamp = ins.has("satfinite")
        self.d = Accumulators(p, members, 0, self.dtype)
        self.c = Accumulators(p, members, 3, self.dtype)
        self.n = len(members)

    def run(self, sel):
        """Computes all members for the lanes of `sel`."""
        a, b = self.left.decode(sel), self.right.decode(sel)
        if a.shape[1] != len(b):  # one of them is the same in all blocks
            per_block = min(a.shape[1], len(b))
            a = a.reshape(2, -1, per_block, *a.shape[2:])
            b = b.reshape(-1, per_block, *b.shape[1:])
        r = np.matmul(a, b).reshape(2, -1, 32, 2 * self.n)
        if self.dtype == I32:
            r = r.astype(I32)
        warps = sel.n // 32
        if r.shape[1] < warps:
            r = np.tile(r, (1, warps // r.shape[1], 1, 1))
        d, c = self.d.tile, self.c.tile
        if d is not None and c is not None:
            if sel.full:
                self.add(c, r, d)
            else:
                at = sel.idx()[::32] >> 5
                d[:, at] = self.add(c[:, at], r)
            return
        r = r.reshape(2, sel.n, 2 * self.n)
        for j, (outs, olds) in enumerate(zip(self.d.regs, self.c.regs, strict=True)):
            new = [
                self.add(sel.take(old), r[i // 2, :, 2 * j + i % 2]) for i, old in enumerate(olds)
            ]
            for out, v in zip(outs, new, strict=True):
                if out is not None:
                    out[sel.key] = v

    def add(self, c, r, out=None):
        """c + r, clamped where the instruction says so."""
        if not self.clamp:
            return np.add(c, r, out=out)
        total = np.clip(c.astype(np.int64) + r, -(2**31), 2**31 - 1)
        if out is None:
            return total.astype(I32)
        out[...] = total
        return out


@op("mma")
def mma(p, ins):
    """mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype d, a, b, c."""
    shape = next(m for m in ins.op if m.startswith("m16n8k"))
    dt, at, bt, ct = ins.op[-4:]
    supported = (
        at in BITS
        and BITS[at] == BITS.get(bt)
        and shape in SHAPES[BITS[at]]
        and dt == ct == ("s32" if BITS[at] == 8 else "f32")
        and ins.has("row")
        and ins.has("col")
        and not ins.has("sp", "sp::ordered_metadata", "block_scale")
    )
    if not supported:
        raise unsupported(ins)
    macs = 16 * 8 * int(shape.removeprefix("m16n8k"))
    group = p.group_of[p.index]
    if p.index != group.members[0]:

        def follow(sel):
            # all lanes have come by way of the leader: it is in the same basic block, and mma
            # lets whole warps pass only, so that nothing has made them wait since
            assert group.done is sel

        return aligned(p, ins, follow, macs)
    members = [p.function.code[m] for m in group.members]
    together = Product(p, members, group.reuse_a, group.reuse_b)

    def lead(sel):
        group.done = sel
        together.run(sel)

    return aligned(p, ins, lead, macs)
