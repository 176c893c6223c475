"""Shared memory, asynchronous copies into it, and local memory."""

from __future__ import annotations

import numpy as np

from .errors import AsyncCopyHazard, Misaligned, OutOfBounds, UninitialisedRead
from .lanes import LaneSet
from .storage import ByteMap, Marks, misaligned

NEVER, WRITTEN, IN_FLIGHT = 0, 1, 2


class SharedMemory:
    """Shared memory of all blocks of a chunk: `blocks` slices of `stride` bytes.

    Args:
        granule: bytes, at most 8; divides the size of every access.
    """

    def __init__(self, blocks: int, size: int, granule: int):
        self.size = size
        self.stride = (size + 15) // 16 * 16
        self.data = ByteMap(blocks * self.stride)
        self.state = Marks(blocks * self.stride, granule)

    def reset(self) -> None:
        """New blocks: contents undefined."""
        self.state.marks[:] = NEVER

    def resolve(self, core, ins, sel: LaneSet, addr: np.ndarray, size: int, write: bool):
        """Checks addresses within the block.

        Returns:
            Indices in the chunk's elements of `size` bytes, int64.
        """
        k = misaligned(addr, size)
        if k is not None:
            message = f"{size}-byte shared access at offset {int(addr[k]):#x}"
            core.fault(Misaligned, message, ins, sel.lane(k))
        if int(addr.max()) + size > self.size or int(addr.min()) < 0:
            addr = addr.astype(np.int64)
            k = int(((addr < 0) | (addr + size > self.size)).argmax())
            message = (
                f"{size}-byte shared {'write' if write else 'read'} at offset {int(addr[k])}; "
                f"the block has {self.size} bytes"
            )
            core.fault(OutOfBounds, message, ins, sel.lane(k))
        flat = addr.astype(np.uint32, copy=False) + sel.take(core.shared_base)
        flat >>= np.uint32(size.bit_length() - 1)
        return flat.astype(np.intp)  # other indices are slow

    def check_readable(self, core, ins, sel, index, size, what="read"):
        """All bytes written and none in flight; `index` in elements of `size` bytes."""
        k = self.state.unlike(index, size, WRITTEN)
        if k is None:
            return
        offset, lane = int(index[k]) * size % self.stride, sel.lane(k)
        if self.state.touching(index[k : k + 1], size, IN_FLIGHT) is not None:
            message = (
                f"{what} of shared offset {offset} while a cp.async into it is in flight "
                "(missing cp.async.wait_group)"
            )
            core.fault(AsyncCopyHazard, message, ins, lane)
        message = f"{what} of shared offset {offset}, never written"
        core.fault(UninitialisedRead, message, ins, lane)

    def check_writable(self, core, ins, sel, index, size):
        """No byte may be the target of a cp.async in flight."""
        if not core.async_copies.pending:
            return
        k = self.state.touching(index, size, IN_FLIGHT)
        if k is not None:
            offset = int(index[k]) * size % self.stride
            message = f"write to shared offset {offset} while a cp.async into it is in flight"
            core.fault(AsyncCopyHazard, message, ins, sel.lane(k))

    def load(self, core, ins, sel, addr, size, what="read") -> np.ndarray:
        """Gathers elements of `size` bytes: UNSIGNED[size], one for each lane."""
        index = self.resolve(core, ins, sel, addr, size, False)
        self.check_readable(core, ins, sel, index, size, what)
        if core.race:
            core.race.shared_read(ins, sel, index, size)
        return self.data.take(index, size)

    def store(self, core, ins, sel, addr, size, values) -> None:
        """Scatters elements of `size` bytes."""
        index = self.resolve(core, ins, sel, addr, size, True)
        self.check_writable(core, ins, sel, index, size)
        if core.race:
            core.race.shared_write(ins, sel, index, size, values)
        self.data.view[size][index] = values
        self.state.set(index, size, WRITTEN)


class AsyncCopies:
    """Deferred cp.async (PTX ISA 9.7.9.25.3): bytes land at the wait that covers them.

    Every lane numbers its commit groups; a pending copy remembers the group of each of its lanes
    and is applied for the lanes whose wait has covered that group.
    """

    def __init__(self, lanes: int):
        self.committed = np.zeros(lanes, np.int32)  # groups closed so far, per lane
        self.complete = np.zeros(lanes, np.int32)  # groups known complete, per lane
        self.pending = []

    def reset(self) -> None:
        """New blocks."""
        self.committed[:] = 0
        self.complete[:] = 0
        self.pending.clear()

    def issue(self, core, sel, index, size, data) -> None:
        """Queues `data` for elements of shared memory; marks them in flight."""
        lanes = sel.lanes()
        core.shared.state.set(index, size, IN_FLIGHT)
        self.pending.append((lanes, index, size, data, self.committed[lanes]))

    def commit(self, sel: LaneSet) -> None:
        """Closes the current group of each lane."""
        self.committed[sel.key] += 1

    def wait(self, core, sel: LaneSet, keep: int | None) -> None:
        """Completes all but the newest `keep` groups; None: everything, committed or not."""
        key = sel.key
        limit = self.committed[key] + (1 if keep is None else -keep)
        self.complete[key] = np.maximum(self.complete[key], limit)
        left = []
        for item in self.pending:
            lanes, index, size, data, group = item
            done = group < self.complete[lanes]
            if done.all():
                self.land(core, lanes, index, size, data)
            elif done.any():
                self.land(core, lanes[done], index[done], size, data[done])
                rest = ~done
                left.append((lanes[rest], index[rest], size, data[rest], group[rest]))
            else:
                left.append(item)
        self.pending = left
        if keep is None:
            self.complete[key] = self.committed[key]

    @staticmethod
    def land(core, lanes, index, size, data) -> None:
        """The bytes arrive."""
        if core.race:
            core.race.async_landing(lanes, index, size)
        core.shared.data.view[size][index] = data
        core.shared.state.set(index, size, WRITTEN)


class LocalMemory:
    """Each lane's own memory: .local variables, and the .param space of calls."""

    def __init__(self, lanes: int, size: int):
        self.size = size
        self.stride = max((size + 15) // 16 * 16, 16)
        self.data = ByteMap(lanes * self.stride)
        self.base = np.arange(lanes, dtype=np.int64) * self.stride

    def index(self, core, ins, sel, addr, size) -> np.ndarray:
        """Checks addresses within the frame; returns indices of elements of `size` bytes."""
        k = misaligned(addr, size)
        if k is not None:
            message = f"{size}-byte local access at offset {int(addr[k]):#x}"
            core.fault(Misaligned, message, ins, sel.lane(k))
        if int(addr.min()) < 0 or int(addr.max()) + size > self.size:
            addr = addr.astype(np.int64)
            k = int(((addr < 0) | (addr + size > self.size)).argmax())
            message = (
                f"{size}-byte local access at offset {int(addr[k])}; "
                f"the frame has {self.size} bytes"
            )
            core.fault(OutOfBounds, message, ins, sel.lane(k))
        return (addr + sel.take(self.base)) >> (size.bit_length() - 1)

    def load(self, core, ins, sel, addr, size) -> np.ndarray:
        """Gathers elements of `size` bytes."""
        return self.data.take(self.index(core, ins, sel, addr, size), size)

    def store(self, core, ins, sel, addr, size, values) -> None:
        """Scatters elements of `size` bytes."""
        self.data.view[size][self.index(core, ins, sel, addr, size)] = values
