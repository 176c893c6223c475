"""Lanes, scheduler and convergence.

A *chunk* of thread blocks runs at once. Each thread is a lane; a block occupies a whole number of
32-lane warps. Every PTX register is one NumPy array over all lanes of the chunk, and every
instruction is decoded once into a closure `step(lanes)` that executes it for a set of lanes.

Divergence: lanes are kept in groups of equal PC. The group with the lowest PC runs until it
reaches the PC of another group (they merge), branches apart, waits or ends. Instructions that
need a whole warp wait at their PC for the missing lanes, as Volta-and-later hardware does (PTX
ISA 9.7.13 `.sync`).
"""

from __future__ import annotations

import numpy as np

from . import isa  # noqa: F401  the decoders register themselves
from .barriers import Barriers
from .errors import BarrierError, WarpSyncError
from .lanes import LaneSet
from .layout import granule, lay_out
from .numerics import one_thread
from .patterns import sites
from .program import BRANCH, PLAIN, WARP_SYNC, Program
from .racecheck import RaceChecker
from .shared_memory import AsyncCopies, LocalMemory, SharedMemory
from .syntax import Function, Instruction, Module

NO_LIMIT = 1 << 60
WHOLE_WARP = np.uint32(0xFFFFFFFF)


class Core:
    """State of one chunk, and the decoded program for one kernel and block shape.

    Attributes:
        lanes, warps: of the whole chunk.
        threads, padded: of one block; `padded` is a multiple of 32.
        block_of: block of each lane, counted within the chunk.
        regs: register arrays by name.
        special: special registers that differ between lanes; constants: those that do not.
        live, live_in_block: lanes that have not returned.
        everyone: the lanes that exist.
        ready, blocked: groups by PC: free to run; waiting for lanes of their warps.
        fragments: decoded operands of mma, by register names, with the lanes they are of.
        uniform: registers with the lanes where they hold the same values in all blocks.
        issued, executed: per instruction, warps and lanes.
    """

    def __init__(self, module: Module, function: Function, block, nblocks: int, dynamic_smem: int):
        self.module, self.function = module, function
        self.block, self.nblocks = block, nblocks
        self.threads = block[0] * block[1] * block[2]
        self.padded = (self.threads + 31) // 32 * 32
        self.lanes = nblocks * self.padded
        self.warps = self.lanes // 32
        self.lane_numbers = np.arange(self.lanes)
        self.block_of = (self.lane_numbers // self.padded).astype(np.int32)
        self.layout = lay_out(module, function, dynamic_smem)
        self.special_registers()
        shared_granule = granule(function, "shared", ("ld", "st", "atom", "red", "cp"))
        self.shared = SharedMemory(nblocks, self.layout.shared_size, shared_granule)
        self.shared_base = (self.block_of * self.shared.stride).astype(np.uint32)
        self.local = LocalMemory(self.lanes, self.layout.local_size)
        self.async_copies = AsyncCopies(self.lanes)
        self.regs = {}
        self.race = None
        self.sites = sites()
        self.fragments = {}
        self.uniform = {}
        self.program = Program(self)

    def special_registers(self) -> None:
        """Special registers (PTX ISA 10) but for the grid's, which the launch decides."""
        t = self.lane_numbers % self.padded
        self.exists = t < self.threads
        x, y, z = self.block
        lane = (t % 32).astype(np.uint32)
        bit, above = np.uint32(1) << lane, np.uint32(2) << lane
        self.special = {
            "%tid.x": t % x,
            "%tid.y": t // x % y,
            "%tid.z": t // (x * y),
            "%laneid": lane,
            "%warpid": t // 32,
            "%lanemask_eq": bit,
            "%lanemask_lt": bit - np.uint32(1),
            "%lanemask_le": above - np.uint32(1),
            "%lanemask_gt": ~(above - np.uint32(1)),
            "%lanemask_ge": ~(bit - np.uint32(1)),
            "%ctaid.x": t,
            "%ctaid.y": t,
            "%ctaid.z": t,
        }
        self.special = {name: a.astype(np.uint32) for name, a in self.special.items()}
        self.constants = {
            "%ntid.x": x,
            "%ntid.y": y,
            "%ntid.z": z,
            "%warpsize": 32,
            "%nwarpid": self.padded // 32,
            "%dynamic_smem_size": self.layout.shared_size - self.layout.dynamic_at,
            "%total_smem_size": self.layout.shared_size,
        }
        timers = ("%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo")
        self.constants.update(dict.fromkeys(timers, 0))

    # ---- launch -------------------------------------------------------------------------------
    def start_launch(self, launch) -> None:
        """Prepares for the chunks of one launch."""
        self.launch = launch
        self.memory = launch.memory
        self.counters = launch.counters
        self.count = launch.count
        self.race = None
        if launch.racecheck:
            self.race = RaceChecker(self, granule(self.function, "global", ("st",)))
        self.program.bind(launch)
        n = len(self.program.code)
        self.issued, self.executed = [0] * n, [0] * n

    def run_chunk(self, first_block: int, grid: tuple[int, int, int]) -> None:
        """Runs blocks first_block ... first_block + nblocks - 1, x fastest."""
        number = first_block + self.block_of.astype(np.int64)
        self.first_block = first_block
        self.special["%ctaid.x"][:] = number % grid[0]
        self.special["%ctaid.y"][:] = number // grid[0] % grid[1]
        self.special["%ctaid.z"][:] = number // (grid[0] * grid[1])
        self.shared.reset()
        self.async_copies.reset()
        self.fragments.clear()
        self.uniform.clear()
        if self.race:
            self.race.reset()
        self.alive = self.exists.copy()
        self.live = int(self.alive.sum())
        self.live_in_block = np.full(self.nblocks, self.threads)
        self.ready, self.blocked = {}, {}
        self.barriers = Barriers(self)
        whole = self.padded == self.threads
        self.everyone = LaneSet(self, mask=None if whole else self.alive.copy(), n=self.live)
        self.ready[0] = self.everyone
        with np.errstate(all="ignore"), one_thread():
            while self.ready:
                pc = min(self.ready)
                sel = self.ready.pop(pc)
                self.execute(pc, sel, min(self.ready, default=NO_LIMIT))
        if self.blocked or self.barriers.waiting:
            self.deadlock()

    def push(self, pc: int, sel: LaneSet) -> None:
        """Makes `sel` ready at `pc`, merging it with a group that is there."""
        other = self.ready.pop(pc, None)
        self.ready[pc] = sel if other is None else self.merge(sel, other)

    def merge(self, a: LaneSet, b: LaneSet) -> LaneSet:
        """Union of two groups."""
        if a.n + b.n == self.everyone.n:
            return self.everyone
        return LaneSet(self, mask=a.mask | b.mask, n=a.n + b.n)

    # ---- interpreter loop ---------------------------------------------------------------------
    def execute(self, pc: int, sel: LaneSet, limit: int) -> None:
        """Runs group `sel` from `pc` until it merges, splits, waits or ends."""
        code, issued, executed = self.program.code, self.issued, self.executed
        launch = self.launch
        steps = 0
        while pc < limit:
            op = code[pc]
            issued[pc] += sel.nwarps
            kind = op.kind
            active = sel if op.guard is None else sel.where(op.guard, op.guard_negate)
            steps += 1
            if kind == PLAIN:
                if active is not None:
                    executed[pc] += active.n
                    op.step(active)
                pc += 1
            elif kind == BRANCH:
                if active is None:
                    pc += 1
                    continue
                executed[pc] += active.n
                launch.spend(steps)
                if active is not sel:
                    self.push(op.target, active)
                    self.push(pc + 1, sel.minus(active))
                    return
                steps, pc = 0, op.target
            elif kind == WARP_SYNC:
                if active is None:
                    pc += 1
                    continue
                if active is not sel:
                    self.push(pc + 1, sel.minus(active))
                waiting = self.blocked.pop(pc, None)
                if waiting is not None:
                    active = self.merge(active, waiting)
                go, stay = op.converged(active)
                if stay is not None:
                    issued[pc] -= stay.nwarps
                    self.blocked[pc] = stay
                if go is not None:
                    executed[pc] += go.n
                    op.step(go)
                if go is sel:
                    pc += 1
                    continue
                if go is not None:
                    self.push(pc + 1, go)
                return
            else:  # CONTROL: the step moves the lanes itself
                launch.spend(steps)
                steps = 0
                if active is None:
                    pc += 1
                    continue
                executed[pc] += active.n
                if active is not sel:
                    self.push(pc + 1, sel.minus(active))
                if op.step(pc, active) and active is sel:
                    pc += 1
                    continue
                return
        launch.spend(steps)
        self.push(pc, sel)

    def exit_lanes(self, sel: LaneSet) -> None:
        """The kernel has returned for these lanes."""
        if sel.full:
            self.alive[:] = False
            self.live_in_block[:] = 0
        else:
            i = sel.idx()
            self.alive[i] = False
            self.live_in_block -= np.bincount(self.block_of[i], minlength=self.nblocks)
        self.live -= sel.n
        if self.barriers.waiting:
            self.barriers.release()
        if self.blocked:  # lanes that have exited no longer have to be waited for
            for pc in list(self.blocked):
                self.push(pc, self.blocked.pop(pc))

    # ---- convergence --------------------------------------------------------------------------
    @staticmethod
    def warp_bits(mask: np.ndarray) -> np.ndarray:
        """Boolean per lane -> uint32 per warp."""
        return np.packbits(mask.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0]

    def present(self, sel: LaneSet) -> np.ndarray:
        """Bit mask per warp (uint32) of the lanes in `sel`."""
        return self.warp_bits(sel.mask)

    def converge_aligned(self, sel: LaneSet, ins: Instruction, need_all: bool = True):
        """Splits `sel` into (lanes of complete warps, lanes still waiting).

        need_all: the instruction is undefined unless all 32 lanes exist and take part (mma,
        ldmatrix); otherwise lanes that have returned do not count.
        """
        if sel.whole_warps():
            return sel, None
        here = self.present(sel)
        live = self.warp_bits(self.alive)
        if need_all:
            broken = (here != 0) & (here == live) & (live != WHOLE_WARP)
            if broken.any():
                w = int(broken.argmax())
                lane = w * 32 + int(sel.mask[w * 32 : w * 32 + 32].argmax())
                message = (
                    f"{ins.opcode} executed by {int(here[w]).bit_count()} of 32 lanes "
                    "(the others have exited or do not exist)"
                )
                self.fault(WarpSyncError, message, ins, lane)
        return self.split(sel, np.repeat(here == live, 32))

    def converge_masked(self, sel: LaneSet, membermask: np.ndarray, ins: Instruction):
        """As converge_aligned for instructions with a membermask operand."""
        if sel.whole_warps() and len(membermask) == 1 and membermask[0] == WHOLE_WARP:
            return sel, None
        here = self.present(sel)
        live = self.warp_bits(self.alive)
        lanes = sel.lanes()
        want = sel.take(membermask)
        w = lanes >> 5
        inside = (want >> (lanes & 31).astype(np.uint32)) & np.uint32(1)
        if not inside.all():
            lane = sel.lane(int((inside == 0).argmax()))
            message = f"{ins.opcode}: executing lane is not in its membermask"
            self.fault(WarpSyncError, message, ins, lane)
        ok = (want & live[w] & ~here[w]) == 0
        if ok.all():
            return sel, None
        complete = np.zeros(self.lanes, bool)
        complete[lanes] = ok
        return self.split(sel, complete)

    def split(self, sel: LaneSet, complete: np.ndarray):
        """(Lanes of `sel` in the mask, the others); either may be None."""
        go = sel.mask & complete
        n = int(np.count_nonzero(go))
        if n == sel.n:
            return sel, None
        if n == 0:
            return None, sel
        go = LaneSet(self, mask=go, n=n)
        return go, sel.minus(go)

    def deadlock(self) -> None:
        """No lane can run: reports why."""
        if self.blocked:
            pc, sel = next(iter(self.blocked.items()))
            ins = self.program.code[pc].ins
            here, lane = int(self.present(sel)[sel.lane(0) >> 5]), sel.lane(0)
            error = BarrierError if ins.name in ("bar", "barrier") else WarpSyncError
            message = (
                f"{ins.opcode} waits for lanes that never arrive (lanes present: {here:#010x}; "
                f"{self.barriers.describe()})"
            )
            self.fault(error, message, ins, lane)
        self.barriers.deadlock()

    # ---- blocks -------------------------------------------------------------------------------
    def same_in_all_blocks(self, a: np.ndarray) -> bool:
        """Whether values, as many of each block, repeat the first block's in every block."""
        m = a.reshape(self.nblocks, -1)
        return bool(m[0, 0] == m[-1, 0] and m[0, -1] == m[-1, -1] and (m == m[0]).all())

    def where(self, lane: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(block, thread) coordinates of a lane."""
        block, thread = (
            tuple(int(self.special[f"%{name}.{c}"][lane]) for c in "xyz")
            for name in ("ctaid", "tid")
        )
        return block, thread

    def fault(self, error: type, message: str, ins: Instruction | None, lane: int) -> None:
        """Raises a DeviceFault for a lane."""
        block, thread = self.where(lane)
        raise error(message, ins, block, thread)
