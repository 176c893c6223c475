"""Block-wide barriers (PTX ISA 9.7.13.1): 16 for each block, with thread counts."""

from __future__ import annotations

import numpy as np

from .errors import BarrierError
from .lanes import LaneSet

BARRIERS = 16


class Barriers:
    """Who has arrived at which barrier, for all blocks of a chunk.

    Attributes:
        waiting: number of lanes that wait at a barrier.
    """

    def __init__(self, core):
        self.core = core
        n = core.nblocks
        self.arrived = np.zeros((BARRIERS, n), np.int64)  # threads
        self.counted = np.zeros((BARRIERS, n), np.int64)  # the same, whole warps if aligned
        self.expected = np.zeros((BARRIERS, n), np.int64)  # 0: all live threads
        self.votes = np.zeros((BARRIERS, n), np.int64)
        self.pc = np.full(core.lanes, -1, np.int32)
        self.id = np.full(core.lanes, -1, np.int8)
        self.warps_in = np.zeros((BARRIERS, core.warps), bool)  # for racecheck
        self.waiting = 0

    def arrive(self, pc, sel, ident, count, wait, aligned, vote=None) -> bool:
        """Lanes of `sel` arrive at barrier `ident`; the arrays hold one value, or one a lane.

        An aligned barrier counts 32 threads for each warp when it has a thread count.

        Returns:
            Whether the whole set may continue at once.
        """
        core = self.core
        ins = core.program.code[pc].ins
        everyone = (
            len(ident) == 1
            and wait
            and vote is None
            and not self.waiting
            and sel.n == core.live
            and (
                count is None
                or (
                    len(count) == 1
                    and int(count[0]) == core.padded
                    and core.live == core.everyone.n
                )
            )
        )
        numbers = np.unique(ident)
        for b in numbers:
            if not 0 <= b < BARRIERS:
                message = f"barrier number {b} is not in 0..{BARRIERS - 1}"
                core.fault(BarrierError, message, ins, sel.lane(0))
        if everyone and not self.arrived[int(numbers[0])].any():
            present = core.live_in_block > 0
            core.counters.block_barriers += int(present.sum())
            self.note_exited(present)
            if core.race:
                core.race.barrier_all()
            return True
        lanes = sel.lanes()
        ident = np.broadcast_to(ident, len(lanes))
        blocks = core.block_of[lanes]
        for b in numbers:
            mine = ident == b
            arrivals = np.bincount(blocks[mine], minlength=core.nblocks)
            self.arrived[b] += arrivals
            if aligned:
                warps = np.unique(lanes[mine] >> 5) // (core.padded >> 5)
                arrivals = 32 * np.bincount(warps, minlength=core.nblocks)
            self.counted[b] += arrivals
            if count is not None:
                self.expected[b][blocks[mine]] = np.broadcast_to(count, len(lanes))[mine]
            if vote is not None:
                yes = np.bincount(blocks[mine], weights=vote[mine], minlength=core.nblocks)
                self.votes[b] += yes.astype(np.int64)
            self.warps_in[b][lanes[mine] >> 5] = True
        if wait:
            self.pc[lanes] = pc
            self.id[lanes] = ident
            self.waiting += len(lanes)
        self.release()
        return not wait

    def note_exited(self, blocks: np.ndarray) -> None:
        """Counts barriers that some threads of the block will never reach."""
        n = int((blocks & (self.core.live_in_block < self.core.threads)).sum())
        self.core.counters.barriers_with_exited_threads += n

    def release(self) -> None:
        """Frees the waiting lanes of every complete barrier."""
        core = self.core
        for b in np.flatnonzero(self.arrived.any(axis=1)):
            complete = np.where(
                self.expected[b] > 0,
                self.counted[b] >= self.expected[b],
                self.arrived[b] >= core.live_in_block,
            )
            done = (self.arrived[b] > 0) & complete
            if not done.any():
                continue
            lanes = np.flatnonzero((self.id == b) & done[core.block_of])
            pcs = self.pc[lanes]
            self.check_divergence(b, lanes, pcs, done)
            core.counters.block_barriers += int(done.sum())
            self.note_exited(done & (self.expected[b] == 0))
            if core.race:
                core.race.barrier_some(self.warps_in[b], done)
            votes = self.votes[b][core.block_of[lanes]]
            size = self.arrived[b][core.block_of[lanes]]
            self.warps_in[b][np.repeat(done, core.padded // 32)] = False
            for a in (self.arrived, self.counted, self.expected, self.votes):
                a[b][done] = 0
            self.id[lanes] = -1
            self.waiting -= len(lanes)
            for pc in np.unique(pcs):
                at = pcs == pc
                sel = LaneSet(core, lanes[at])
                if sel.n == core.everyone.n:
                    sel = core.everyone
                finish = core.program.code[pc].finish
                if finish is not None:
                    finish(sel, votes[at], size[at])
                core.push(int(pc) + 1, sel)

    def check_divergence(self, b, lanes, pcs, done) -> None:
        """`bar.sync` of all threads must be one and the same instruction."""
        core = self.core
        if not len(lanes) or (pcs == pcs[0]).all():
            return
        blocks = core.block_of[lanes]
        for k in np.flatnonzero(done & (self.expected[b] == 0)):
            mine = pcs[blocks == k]
            if len(mine) and (mine != mine[0]).any():
                lane = int(lanes[blocks == k][(mine != mine[0]).argmax()])
                other = core.program.code[int(mine[0])].ins
                message = (
                    f"threads of one block met at different barriers (other: PTX line {other.line})"
                )
                core.fault(BarrierError, message, core.program.code[int(self.pc[lane])].ins, lane)

    def describe(self) -> str:
        """State of the barriers, for messages."""
        return f"{self.waiting} threads at block barriers, {self.core.live} alive"

    def deadlock(self) -> None:
        """Reports lanes that wait for ever."""
        core = self.core
        lane = int((self.id >= 0).argmax())
        b, k = int(self.id[lane]), int(core.block_of[lane])
        need = int(self.expected[b][k]) or int(core.live_in_block[k])
        message = (
            f"deadlock: barrier {b} has {int(self.arrived[b][k])} of {need} threads and "
            "no other thread can run"
        )
        core.fault(BarrierError, message, core.program.code[int(self.pc[lane])].ins, lane)
