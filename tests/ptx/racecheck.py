"""Hazard detection (racecheck=True): which accesses no barrier orders.

Shared memory. Time is a count of synchronisations in the chunk. Every warp w of a block knows,
for every warp v, up to which time the accesses of v are ordered before its own next access:
known[b, w, v]. A barrier brings its warps up to the present about each other and shares what
each knew of the rest; a warp barrier brings one warp up to the present about itself. Accesses
of one thread are always ordered. Two unordered accesses to a byte, at least one of them a write,
are a hazard, except writes of the value that is already there.

The last write and the last two reads of every granule are remembered, a granule being as large
as the smallest shared access of the kernel, at most 8 bytes. What is not later than `floor`, the
oldest of all `known`, is ordered for everyone; hence one comparison settles nearly every access.

Warp barriers on part of a warp are treated as covering the whole warp. Shared atomics are
checked against earlier plain accesses but not remembered.

Global memory: two blocks that write different values to one byte in one launch, atomics
excepted.
"""

from __future__ import annotations

import numpy as np

from .errors import GlobalRace, SharedRace
from .storage import UNSIGNED

THREAD_BITS = 10
LATEST = 1 << 20
NOBODY = -1


class Slots:
    """An int32 for each granule: time << THREAD_BITS | thread, or NOBODY."""

    def __init__(self, size: int, granule: int):
        self.granule = granule
        self.data = np.full((size + 15) // 16 * 16 // granule, NOBODY, np.int32)
        self.view = {}
        for access in UNSIGNED:
            if access >= granule:
                width = 4 * access // granule
                self.view[access] = self.data.view(UNSIGNED.get(width, np.dtype((np.void, width))))

    def get(self, index: np.ndarray, size: int) -> np.ndarray:
        """Slots of the elements of `size` bytes: int32 [elements, granules]."""
        got = self.view[size].take(index, mode="clip")
        return got.view(np.int32).reshape(len(index), -1)

    def set(self, index: np.ndarray, size: int, values: np.ndarray) -> None:
        """Assigns int32 [elements, granules]."""
        view = self.view[size]
        view[index] = np.ascontiguousarray(values).view(view.dtype).reshape(-1)


class RaceChecker:
    """What racecheck knows about one chunk of blocks.

    Args:
        core: the chunk.
        global_granule: bytes, at most 8; divides the size of every global store of the kernel.
    """

    def __init__(self, core, global_granule: int):
        self.core, self.global_granule = core, global_granule
        granule = core.shared.state.granule
        size = len(core.shared.data.bytes)
        self.write, self.read, self.read2 = (Slots(size, granule) for _ in range(3))
        self.warps = core.padded // 32
        self.known = np.empty((core.nblocks, self.warps, self.warps), np.int32)
        self.thread = (core.lane_numbers % core.padded).astype(np.int32)
        self.reset()

    def reset(self) -> None:
        """New blocks."""
        for slots in (self.write, self.read, self.read2):
            slots.data[:] = NOBODY
        self.known[:] = NOBODY
        self.now, self.floor = 0, NOBODY

    # ---- ordering -----------------------------------------------------------------------------
    def barrier_all(self) -> None:
        """Barrier of all warps of all blocks."""
        if self.now >= LATEST:
            self.reset()
            return
        self.known[:] = self.floor = self.now
        self.now += 1

    def barrier_some(self, warps_in: np.ndarray, done: np.ndarray) -> None:
        """Barrier of the marked warps (flat over the chunk) in the marked blocks."""
        member = warps_in.reshape(self.core.nblocks, self.warps) & done[:, None]
        shared = np.where(member[:, :, None], self.known, NOBODY).max(axis=1)
        shared = np.where(member, self.now, shared)
        self.known = np.where(member[:, :, None], shared[:, None, :], self.known)
        self.floor = int(self.known.min())
        self.now += 1

    def warp_barrier(self, sel) -> None:
        """Barrier within each warp that has lanes in `sel`."""
        w = np.unique(sel.lanes() >> 5)
        b, w = w // self.warps, w % self.warps
        self.known[b, w, w] = self.now
        self.floor = int(self.known.min())
        self.now += 1

    def late(self, access: np.ndarray) -> np.ndarray:
        """Mask of accesses that are not ordered for everyone."""
        return access >= (self.floor + 1) << THREAD_BITS

    def unordered(self, slots: Slots, index, size, lanes) -> tuple[np.ndarray, np.ndarray]:
        """Elements and granules of accesses by `lanes` not ordered after those in `slots`."""
        access = slots.get(index, size)
        late = self.late(access)
        if late.any():
            late &= access & (1 << THREAD_BITS) - 1 != self.thread[lanes][:, None]
        if not late.any():
            nothing = np.empty(0, np.int64)
            return nothing, nothing
        k, j = np.nonzero(late)
        access, lane = access[k, j], lanes[k]
        other = (access & (1 << THREAD_BITS) - 1) >> 5
        known = self.known[self.core.block_of[lane], self.thread[lane] >> 5, other]
        bad = access >> THREAD_BITS > known
        return k[bad], j[bad]

    def stamp(self, lanes: np.ndarray) -> np.ndarray:
        """What the slots remember of an access by each lane now."""
        return self.thread[lanes] | np.int32(self.now << THREAD_BITS)

    def report(self, kind, ins, slots, index, size, lanes, k, j):
        core, (x, y, _) = self.core, self.core.block
        t = int(slots.get(index[k : k + 1], size)[0, j]) & (1 << THREAD_BITS) - 1
        offset = (int(index[k]) * size + j * slots.granule) % core.shared.stride
        thread = (t % x, t // x % y, t // (x * y))
        message = (
            f"{kind} hazard on shared offset {offset}: "
            f"no barrier since the access by thread {thread}"
        )
        core.fault(SharedRace, message, ins, int(lanes[k]))

    # ---- shared accesses ----------------------------------------------------------------------
    def shared_read(self, ins, sel, index, size):
        """Checks a read of the chunk's elements of `size` bytes, and remembers it."""
        lanes = sel.lanes()
        k, j = self.unordered(self.write, index, size, lanes)
        if len(k):
            self.report("read-after-write", ins, self.write, index, size, lanes, k[0], j[0])
        stamp = np.repeat(self.stamp(lanes)[:, None], size // self.read.granule, axis=1)
        before = self.read.get(index, size)
        keep = self.late(before) & (before != stamp)
        if keep.any():
            keep &= (before ^ stamp) & (1 << THREAD_BITS) - 1 != 0
            self.remember_second(index, size, before, keep)
        self.read.set(index, size, stamp)
        lost = self.read.get(index, size) != stamp  # several lanes read it in this instruction
        if lost.any():
            self.remember_second(index, size, stamp, lost)

    def remember_second(self, index, size, stamp, which):
        """Enters the marked granules' accesses as the reads before the last."""
        stamp = np.where(which, stamp, self.read2.get(index, size))
        self.read2.set(index, size, stamp)

    def shared_write(self, ins, sel, index, size, values):
        """Checks a write, and remembers it; values: None when not known yet (cp.async)."""
        lanes = sel.lanes()
        data = None
        if values is not None:
            data = self.granules(np.broadcast_to(values, len(index)), self.write.granule)
        for kind, slots in (
            ("write-after-write", self.write),
            ("write-after-read", self.read),
            ("write-after-read", self.read2),
        ):
            k, j = self.unordered(slots, index, size, lanes)
            if len(k) and data is not None:
                old = self.granules(self.core.shared.data.take(index[k], size), slots.granule)
                changed = old[np.arange(len(k)), j] != data[k, j]
                k, j = k[changed], j[changed]
            if len(k):
                self.report(kind, ins, slots, index, size, lanes, k[0], j[0])
        stamp = np.repeat(self.stamp(lanes)[:, None], size // self.write.granule, axis=1)
        self.write.set(index, size, stamp)
        if data is None:
            return
        lost = self.write.get(index, size) != stamp
        if lost.any():
            clash = self.clash(index, size, data, lanes, self.write.granule)
            if clash is not None:
                k, at = clash
                message = (
                    "two threads write different values to shared offset "
                    f"{at % self.core.shared.stride} in one instruction"
                )
                self.core.fault(SharedRace, message, ins, int(lanes[k]))

    @staticmethod
    def granules(values: np.ndarray, granule: int) -> np.ndarray:
        """Elements -> their granules [elements, granules], as unsigned integers."""
        values = np.ascontiguousarray(values)
        return values.view(UNSIGNED[granule]).reshape(len(values), -1)

    @staticmethod
    def clash(index, size, data, owner, granule) -> tuple[int, int] | None:
        """(Element, byte address) where two owners write different values to one granule."""
        per = size // granule
        at = (index[:, None] * per + np.arange(per)).reshape(-1)
        order = np.argsort(at, kind="stable")
        at, data, owner = at[order], data.reshape(-1)[order], np.repeat(owner, per)[order]
        bad = (at[1:] == at[:-1]) & (data[1:] != data[:-1]) & (owner[1:] != owner[:-1])
        if not bad.any():
            return None
        k = int(bad.argmax()) + 1
        return int(order[k]) // per, int(at[k]) * granule

    def shared_atomic(self, ins, sel, index, size):
        """Checks an atomic against plain accesses."""
        lanes = sel.lanes()
        for slots in (self.write, self.read, self.read2):
            k, j = self.unordered(slots, index, size, lanes)
            if len(k):
                kind = "atomic-after-access"
                self.report(kind, ins, slots, index, size, lanes, k[0], j[0])

    def async_landing(self, lanes, index, size):
        """A waited-for cp.async counts as a write by its thread at the wait."""
        stamp = np.repeat(self.stamp(lanes)[:, None], size // self.write.granule, axis=1)
        self.write.set(index, size, stamp)

    # ---- global writes ------------------------------------------------------------------------
    def global_write(self, ins, sel, b, index, at, size, values):
        """Checks a store to elements of buffer `b`, and remembers the block."""
        granule = self.global_granule
        if b.writer is None:
            b.writer = Slots(b.size, granule)
        lanes = sel.lanes() if at is None else sel.lanes()[at]
        block = (self.core.first_block + self.core.block_of[lanes]).astype(np.int32)
        mine = np.repeat(block[:, None], size // granule, axis=1)
        before = b.writer.get(index, size)
        other = (before != NOBODY) & (before != mine)
        b.writer.set(index, size, mine)
        lost = b.writer.get(index, size) != mine  # several blocks in this one instruction
        if not other.any() and not lost.any():
            return
        data = self.granules(np.broadcast_to(values, len(index)), granule)
        other &= self.granules(b.data.take(index, size), granule) != data
        if other.any():
            k, j = (int(x[0]) for x in np.nonzero(other))
            message = (
                f"{b.name}{int(index[k]) * size + j * granule:+d} bytes was already written "
                f"with another value by block number {int(before[k, j])}"
            )
            self.core.fault(GlobalRace, message, ins, int(lanes[k]))
        clash = self.clash(index, size, data, block, granule) if lost.any() else None
        if clash is not None:
            k, where = clash
            message = f"two blocks write different values to {b.name}{where:+d} bytes"
            self.core.fault(GlobalRace, message, ins, int(lanes[k]))
