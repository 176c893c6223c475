"""Block-wide barriers (PTX ISA 9.7.13.1): 16 for each block, with thread counts."""

from __future__ import annotations

import numpy as np

from .errors import BarrierError
from .lanes import LaneSet

BARRIERS = 16
NOWHERE = -1


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
        self.id = np.full(core.lanes, NOWHERE, np.int8)
        self.warps_in = np.zeros((BARRIERS, core.warps), bool)  # for racecheck
        self.waiting = 0

    def arrive(self, pc, sel, ident, count, wait, aligned, vote=None) -> bool:
        """Lanes of `sel` arrive at barrier `ident`; the arrays hold one value, or one a lane.

        An aligned barrier counts 32 threads for each warp when it has a thread count.

        Returns:
            Whether the whole set may continue at once.
        """
        core = self.core
        if int(ident.max()) >= BARRIERS:
            k = int((ident >= BARRIERS).argmax())
            message = f"barrier number {int(ident[k])} is not in 0..{BARRIERS - 1}"
            core.fault(BarrierError, message, core.program.code[pc].ins, sel.lane(k))
        if wait and vote is None and self.is_everyone(sel, ident, count):
            present = core.live_in_block > 0
            core.counters.block_barriers += int(present.sum())
            self.note_exited(present)
            if core.race:
                core.race.barrier_all()
            return True
        lanes = sel.lanes()
        ident = np.broadcast_to(ident, len(lanes)).astype(np.int64)
        where = ident * core.nblocks + core.block_of[lanes]  # barrier and block
        self.arrived += self.add_up(where)
        if aligned:
            first = np.concatenate(([True], lanes[1:] >> 5 != lanes[:-1] >> 5))
            self.counted += 32 * self.add_up(where[first])
        else:
            self.counted += self.add_up(where)
        if count is not None:
            self.expected.reshape(-1)[where] = count
        if vote is not None:
            self.votes += self.add_up(where[vote])
        self.warps_in[ident, lanes >> 5] = True
        if wait:
            self.pc[lanes] = pc
            self.id[lanes] = ident
            self.waiting += len(lanes)
        self.release()
        return not wait

    def is_everyone(self, sel, ident, count) -> bool:
        """Whether all live threads of all blocks are here at one empty barrier."""
        core = self.core
        if len(ident) != 1 or self.waiting or sel.n != core.live or self.arrived[ident[0]].any():
            return False
        if count is None:
            return True
        whole = core.live == core.everyone.n and len(count) == 1
        return whole and int(count[0]) == core.padded

    def add_up(self, where: np.ndarray) -> np.ndarray:
        """How often each barrier and block occurs, [BARRIERS, blocks]."""
        size = BARRIERS * self.core.nblocks
        return np.bincount(where, minlength=size).reshape(BARRIERS, -1)

    def note_exited(self, blocks: np.ndarray) -> None:
        """Counts barriers that some threads of the block will never reach."""
        n = int((blocks & (self.core.live_in_block < self.core.threads)).sum())
        self.core.counters.barriers_with_exited_threads += n

    def release(self) -> None:
        """Frees the waiting lanes of every complete barrier."""
        core = self.core
        complete = np.where(
            self.expected > 0, self.counted >= self.expected, self.arrived >= core.live_in_block
        )
        done = (self.arrived > 0) & complete
        if not done.any():
            return
        lanes = np.flatnonzero(self.id >= 0)
        here = self.id[lanes].astype(np.int64) * core.nblocks + core.block_of[lanes]
        freed = done.reshape(-1)[here]
        lanes, here = lanes[freed], here[freed]
        pcs = self.pc[lanes]
        self.check_divergence(lanes, here, pcs)
        core.counters.block_barriers += int(done.sum())
        for b in np.flatnonzero(done.any(axis=1)):
            self.note_exited(done[b] & (self.expected[b] == 0))
            if core.race:
                core.race.barrier_some(self.warps_in[b], done[b])
            self.warps_in[b][np.repeat(done[b], core.padded // 32)] = False
        votes, size = self.votes.reshape(-1)[here], self.arrived.reshape(-1)[here]
        for a in (self.arrived, self.counted, self.expected, self.votes):
            a[done] = 0
        self.id[lanes] = NOWHERE
        self.waiting -= len(lanes)
        while len(lanes):
            pc = int(pcs[0])
            at = pcs == pc
            sel = LaneSet(core, lanes[at])
            if sel.n == core.everyone.n:
                sel = core.everyone
            finish = core.program.code[pc].finish
            if finish is not None:
                finish(sel, votes[at], size[at])
            core.push(pc + 1, sel)
            lanes, pcs, votes, size = (a[~at] for a in (lanes, pcs, votes, size))

    def check_divergence(self, lanes, here, pcs) -> None:
        """`bar.sync` of all threads of a block must be one and the same instruction."""
        if not len(lanes) or (pcs == pcs[0]).all():
            return
        core = self.core
        first = np.zeros(BARRIERS * core.nblocks, np.int64)
        first[here[::-1]] = pcs[::-1]  # of the first lane at each barrier and block
        bad = (first[here] != pcs) & (self.expected.reshape(-1)[here] == 0)
        if bad.any():
            k = int(bad.argmax())
            other = core.program.code[int(first[here[k]])].ins
            message = (
                f"threads of one block met at different barriers (other: PTX line {other.line})"
            )
            core.fault(BarrierError, message, core.program.code[int(pcs[k])].ins, int(lanes[k]))

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
