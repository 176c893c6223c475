"""Decoding: instructions -> closures over register arrays.

`OPS` maps an opcode's first word to a decoder `f(program, ins)` that returns a `step(lanes)`
closure or an `Op`. The modules of `isa` fill it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arguments import parameter_offsets
from .errors import PtxError, UnsupportedInstruction
from .flow import share_registers
from .lanes import LaneSet
from .mma_plan import accumulator_tiles, find_groups
from .syntax import WIDTH, Addr, Imm, Instruction, Operand, Reg, Sym, read, written

PLAIN, BRANCH, WARP_SYNC, CONTROL = range(4)
OPS: dict[str, Callable] = {}
DTYPE = {
    "pred": np.bool_,
    "b8": np.uint8,
    "u8": np.uint8,
    "s8": np.int8,
    "b16": np.uint16,
    "u16": np.uint16,
    "s16": np.int16,
    "f16": np.float16,
    "bf16": np.uint16,
    "b32": np.uint32,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
    "tf32": np.uint32,
    "b64": np.uint64,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
}
REGISTER = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def op(*names: str):
    """Registers a decoder for opcodes that start with any of `names`."""

    def add(f):
        OPS.update(dict.fromkeys(names, f))
        return f

    return add


def unsupported(ins: Instruction, why: str = "") -> UnsupportedInstruction:
    """The error for an instruction that is not implemented."""
    return UnsupportedInstruction(
        f"PTX line {ins.line}: `{ins.text}`" + (f" ({why})" if why else "")
    )


@dataclass
class Op:
    """Decoded instruction; `Core.execute` says how each kind runs.

    Attributes:
        ins: the instruction; None for the implicit return at the end.
        kind: PLAIN, BRANCH, WARP_SYNC or CONTROL.
        step: step(lanes) executes it; CONTROL: step(pc, lanes), True for falling through.
        guard, guard_negate: predicate register array, or None.
        target: of a branch.
        converged: converged(lanes) -> (ready lanes, waiting lanes), either may be None.
        finish: finish(lanes, votes, threads) runs when a barrier releases lanes.
        macs: multiply-accumulates per warp.
    """

    ins: Instruction | None
    kind: int = PLAIN
    step: Callable | None = None
    guard: np.ndarray | None = None
    guard_negate: bool = False
    target: int | None = None
    converged: Callable | None = None
    finish: Callable | None = None
    macs: int = 0


def pick(a: np.ndarray, i: np.ndarray) -> np.ndarray:
    """Elements i of a register array; immediates (length 1) pass."""
    return a if len(a) == 1 else a[i]


def narrow(a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Low part of each element, as a strided view."""
    return a[:, None].view(dtype)[:, 0]


class Program:
    """Decoded kernel: a flat list of Op over the register arrays of a Core.

    Attributes:
        code: one Op for each instruction, and a final return.
        index: of the instruction that is being decoded.
        sources: names of registers that are read.
        loaded: names of registers that only loads write.
        group_of: group of each mma instruction, by index.
        tiles: arrays of accumulators by the quads of registers that they hold.
    """

    def __init__(self, core):
        self.core, self.function = core, core.function
        self.launch_values = {}  # key -> array of one element, filled by bind()
        self.sources = {name for ins in self.function.code for name in read(ins)}
        self.loaded = self.only_loaded()
        self.groups = {g.members[0]: g for g in find_groups(self.function)}
        self.group_of = {k: g for g in self.groups.values() for k in g.members}
        self.tiles = {}
        self.allocate_tiles()
        self.allocate_shared()
        self.code = []
        for index, ins in enumerate(self.function.code):
            self.index = index
            self.code.append(self.decode(ins))
        end = Instruction(("ret",), (), None, 0, "end of function")
        self.code.append(self.decode(end))
        self.code[-1].ins = None

    def only_loaded(self) -> set[str]:
        """Names of the registers that nothing but loads writes."""
        loaded, other = set(), set()
        for ins in self.function.code:
            (loaded if ins.name == "ld" else other).update(written(ins))
        return loaded - other

    def allocate_tiles(self) -> None:
        """Makes the registers of accumulators views of one array for each group."""
        for quads in accumulator_tiles(self.function, list(self.groups.values())):
            if any(WIDTH[self.function.regs[name]] != 32 for q in quads for name in q):
                continue
            tile = np.zeros((2, self.core.lanes, 2 * len(quads)), np.uint32)
            for j, names in enumerate(quads):
                for r, name in enumerate(names):
                    self.core.regs[name] = tile[r // 2, :, 2 * j + r % 2]
            self.tiles[tuple(quads)] = tile

    def allocate_shared(self) -> None:
        """Makes registers that are never live together share their arrays."""
        mma = [k for g in self.groups.values() for k in g.members]
        results = {name for k in mma for name in written(self.function.code[k])}
        arrays = {}
        for name, slot in share_registers(self.function, results | set(self.core.regs)).items():
            if slot[0] in REGISTER:
                if slot not in arrays:
                    arrays[slot] = np.zeros(self.core.lanes, REGISTER[slot[0]])
                self.core.regs[name] = arrays[slot]

    def decode(self, ins: Instruction) -> Op:
        """Decodes one instruction.

        Raises:
            UnsupportedInstruction: naming its line.
        """
        decoder = OPS.get(ins.name)
        if decoder is None:
            raise unsupported(ins)
        try:
            out = decoder(self, ins)
        except PtxError as e:
            if "PTX line" in str(e):
                raise
            raise unsupported(ins, str(e)) from e
        except (KeyError, IndexError, ValueError, AttributeError, TypeError, StopIteration) as e:
            raise unsupported(ins, f"{type(e).__name__}: {e}") from e
        if not isinstance(out, Op):
            out = Op(ins, PLAIN, out)
        if ins.guard is not None:
            out.guard = self.register(ins.guard.name)
            out.guard_negate = ins.guard.negate
        return out

    def bind(self, launch) -> None:
        """Fills in the values that depend on the launch: addresses, grid size."""
        fixed = dict(zip(("%nctaid.x", "%nctaid.y", "%nctaid.z"), launch.grid, strict=True))
        for key, value in self.launch_values.items():
            value[0] = fixed[key] if key in fixed else launch.symbols[key[0]] + key[1]

    def launch_value(self, key, dtype=np.uint64) -> np.ndarray:
        """Array of one element that `bind` fills."""
        return self.launch_values.setdefault(key, np.zeros(1, dtype))

    # ---- operands -----------------------------------------------------------------------------
    def register(self, name: str) -> np.ndarray:
        """Array of a register, one element for each lane."""
        regs = self.core.regs
        if name not in regs:
            width = WIDTH[self.function.regs[name]]
            if width == 128:
                raise UnsupportedInstruction(f".b128 register {name}")
            regs[name] = np.zeros(self.core.lanes, REGISTER[width])
        return regs[name]

    def dst(self, operand: Operand, typ: str) -> np.ndarray | None:
        """Writable view of a destination register as `typ`; None for the sink `_`.

        A register wider than the type is viewed at its own width with the type's signedness, so
        that assigning extends (PTX ISA 9.4.1).
        """
        if isinstance(operand, Sym) and operand.name == "_":
            return None
        r = self.register(operand.name)
        dtype = np.dtype(DTYPE[typ])
        if r.dtype.itemsize == dtype.itemsize:
            return r.view(dtype)
        if r.dtype.itemsize > dtype.itemsize and dtype.kind in "iu":
            return r.view(np.dtype(f"{dtype.kind}{r.dtype.itemsize}"))
        raise UnsupportedInstruction(f"destination {operand.name} is narrower than .{typ}")

    def src(self, operand: Operand, typ: str) -> np.ndarray:
        """Source operand as an array of `typ`: all lanes, or length 1 if uniform.

        A register wider than the type is read through a strided view (truncation).
        """
        dtype = np.dtype(DTYPE[typ])
        if isinstance(operand, Reg):
            r = self.register(operand.name)
            if r.dtype.itemsize == dtype.itemsize:
                return r.view(dtype)
            if r.dtype.itemsize > dtype.itemsize and r.dtype != np.bool_:
                return narrow(r, dtype)
            raise UnsupportedInstruction(f"register {operand.name} is narrower than .{typ}")
        if isinstance(operand, Imm):
            return self.immediate(operand, dtype)
        if isinstance(operand, Sym | Addr):
            return self.symbol(operand, dtype)
        raise UnsupportedInstruction(f"operand {operand}")

    @staticmethod
    def immediate(imm: Imm, dtype: np.dtype) -> np.ndarray:
        """Array of one element."""
        if dtype == np.bool_:
            return np.array([bool(imm.value)])
        if imm.bits == 32 and dtype == np.float64:
            return np.array([imm.value], np.uint32).view(np.float32).astype(np.float64)
        if imm.bits == 64 and dtype == np.float32:
            return np.array([imm.value], np.uint64).view(np.float64).astype(np.float32)
        if imm.bits == 0 and dtype.kind == "f" and dtype.itemsize > 2:
            return np.array([imm.value], dtype)
        bits = dtype.itemsize * 8
        return np.array([imm.value & (1 << bits) - 1], f"u{dtype.itemsize}").view(dtype)

    def symbol(self, operand: Sym | Addr, dtype: np.dtype) -> np.ndarray:
        """Special register, or the address of a variable in its own state space."""
        offset = 0
        if isinstance(operand, Addr):
            offset, operand = operand.offset, operand.base
        name = operand.name
        if name.startswith("%"):
            return self.special(name, dtype)
        if name == "WARP_SZ":
            return np.array([32], dtype)
        space, value = self.address_of(name)
        if space in ("shared", "local"):
            return np.array([value + offset], dtype)
        if space == "kernel parameter":
            name, offset = "kernel parameters", value + offset
        return self.launch_value((name, offset)).view(dtype)[:1]

    def address_of(self, name: str) -> tuple[str, int]:
        """State space of a variable, and its offset there (0 where the launch decides)."""
        f, layout = self.function, self.core.layout
        if name in layout.shared:
            return "shared", layout.shared[name]
        if name in layout.local:
            return "local", layout.local[name]
        names = [v.name for v in f.params]
        if name in names:
            return "kernel parameter", parameter_offsets(f)[0][names.index(name)]
        v = f.vars.get(name) or self.core.module.vars.get(name)
        if v is not None and v.space in ("global", "const"):
            return "global", 0
        raise UnsupportedInstruction(f"unknown symbol {name}")

    def special(self, name: str, dtype: np.dtype) -> np.ndarray:
        """Special registers (PTX ISA 10)."""
        core = self.core
        if name in core.special:
            a = core.special[name]
        elif name.startswith("%nctaid."):
            a = self.launch_value(name, np.uint32)
        elif name in core.constants:
            return np.array([core.constants[name]], np.uint64).astype(dtype)
        else:
            raise UnsupportedInstruction(f"special register {name}")
        if dtype.itemsize == 4:
            return a.view(dtype)
        if dtype.itemsize == 2:
            return narrow(a, dtype)
        raise UnsupportedInstruction(f"special register {name} as {dtype}")

    # ---- emitting -----------------------------------------------------------------------------
    def emit(self, dst: np.ndarray | None, fn: Callable, *srcs: np.ndarray) -> Callable:
        """Closure for dst = fn(*srcs), elementwise over lanes.

        Full sets write in place; dense ones compute every lane and merge by mask (inactive lanes
        hold garbage, which is harmless for pure functions); sparse ones gather, compute and
        scatter.
        """
        if dst is None:
            return lambda sel: None
        direct = (
            isinstance(fn, np.ufunc)
            and all(s.dtype == srcs[0].dtype for s in srcs)
            and (dst.dtype == srcs[0].dtype or (dst.dtype == np.bool_ and fn in COMPARISONS))
        )
        if direct:

            def full():
                fn(*srcs, out=dst)
        else:

            def full():
                dst[:] = fn(*srcs)

        def step(sel):
            if sel.full:
                full()
            elif sel.dense:
                np.putmask(dst, sel.mask, fn(*srcs))
            else:
                i = sel.idx()
                dst[i] = fn(*[pick(s, i) for s in srcs])

        return step

    @staticmethod
    def write(dst: np.ndarray | None, sel: LaneSet, values: np.ndarray) -> None:
        """Stores values, one for each lane of `sel`, into a register view.

        With fewer values, those of the first block, all blocks get the same.
        """
        if dst is None:
            return
        if len(values) < sel.n and sel.full:
            dst.reshape(-1, len(values))[:] = np.ascontiguousarray(values)
        elif len(values) < sel.n:
            dst[sel.idx()] = np.tile(values, sel.n // len(values))
        else:
            dst[sel.key] = values

    def address(self, operand: Addr) -> Callable[[LaneSet], np.ndarray]:
        """f(lanes) giving their addresses in a new array: int64, or uint32 from 32-bit registers.

        32-bit addresses wrap.
        """
        base, offset = operand.base, operand.offset
        if isinstance(base, Reg):
            r = self.register(base.name)
            wide = r.dtype.itemsize == 8
            r = r.view(np.int64) if wide else r
            o = np.int64(offset) if wide else np.uint32(offset & 0xFFFFFFFF)
            return lambda sel: sel.take(r) + o
        if base is None:
            a = np.array([offset], np.int64)
        else:
            a = self.symbol(Addr(base, offset), np.dtype(np.uint64)).view(np.int64)
        return lambda sel: np.full(sel.n, a[0], np.int64)

    def target(self, name: str) -> int:
        """Index in `code` of a label."""
        return self.function.labels[name]


COMPARISONS = (
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    np.equal,
    np.not_equal,
    np.logical_and,
    np.logical_or,
    np.logical_xor,
    np.logical_not,
)
