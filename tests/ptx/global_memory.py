"""The global state space: buffers with red zones between them.

Addresses are 64-bit. Each buffer has its own range, 64 GiB from the next, so that any stray
address falls into a red zone. The shared and local windows of the generic space lie below.
"""

from __future__ import annotations

import numpy as np

from .counters import BufferTraffic, GlobalTraffic
from .errors import Misaligned, OutOfBounds, ReadOnlyWrite, UninitialisedRead
from .lanes import LaneSet
from .storage import GLOBAL_WINDOW, MARKED, UNSIGNED, ByteMap, Marks, misaligned

SPACING = 1 << 36
WRITTEN = 1


class DeviceBuffer:
    """One device allocation.

    Attributes:
        name: what errors and counters call it.
        base, size, end: address, bytes, address past the last byte.
        host: the caller's array, updated after each launch that wrote here, or None.
        readonly: the device may not write.
        counted: accesses are traffic; those to constants and parameters are not.
        init: which bytes earlier launches have written, or None if all count as written.
        read, written: which bytes this launch has touched, or None.
        writer: which block last wrote each granule in this launch, or None without racecheck.
        traffic: this launch's traffic.
    """

    def __init__(
        self,
        name: str,
        base: int,
        host: np.ndarray | None,
        size: int,
        uninit: bool,
        readonly: bool,
        counted: bool,
    ):
        self.name, self.base, self.host, self.size = name, base, host, size
        self.end = base + size
        self.readonly, self.counted = readonly, counted
        self.data = ByteMap(size)
        self.init = Marks(size) if uninit else None
        if host is not None:
            self.contents[:] = host.reshape(-1).view(np.uint8)
        self.start_launch()

    @property
    def contents(self) -> np.ndarray:
        """The bytes on the device, uint8 [size]; writing to it writes to the device."""
        return self.data.bytes[: self.size]

    def start_launch(self) -> None:
        """Forgets what the last launch did."""
        self.read = self.written = self.writer = None
        self.traffic = BufferTraffic()

    def finish_launch(self) -> None:
        """Keeps what the launch wrote: in the host array, and as initialised."""
        if self.written is None:
            return
        if self.host is not None:
            self.host.reshape(-1).view(np.uint8)[:] = self.contents
        if self.init is not None:
            self.init.marks |= self.written.marks

    def mark_read(self, index: np.ndarray, size: int) -> None:
        """Notes a read of elements of `size` bytes."""
        if self.read is None:
            self.read = Marks(self.size)
        self.read.set(index, size, WRITTEN)

    def mark_written(self, index: np.ndarray, size: int) -> None:
        """Notes a write of elements of `size` bytes."""
        if self.written is None:
            self.written = Marks(self.size)
        self.written.set(index, size, WRITTEN)

    def uninitialised(self, index: np.ndarray, size: int) -> int | None:
        """Position in `index` of an element with a byte that was never written, or None."""
        if self.init is None:
            return None
        k = self.init.unlike(index, size, WRITTEN)
        if k is None or self.written is None:
            return k
        got = self.init.take(index, size) | self.written.take(index, size)
        return self.init.position(got != MARKED[WRITTEN, got.itemsize], size)

    def finish_counting(self) -> None:
        """Enters the distinct bytes and sectors into the traffic."""
        for traffic, touched in (
            (self.traffic.load, self.read),
            (self.traffic.store, self.written),
        ):
            if touched is not None:
                padded = np.zeros((len(touched.marks) + 31) // 32 * 32, np.uint8)
                padded[: len(touched.marks)] = touched.marks
                traffic.unique_bytes = int(np.count_nonzero(padded))
                words = padded.view(np.uint64).reshape(-1, 4)
                words = words[:, 0] | words[:, 1] | words[:, 2] | words[:, 3]
                traffic.unique_sectors = int(np.count_nonzero(words))


class DeviceMemory:
    """The buffers of one or more launches, by name and address."""

    def __init__(self):
        self.buffers: list[DeviceBuffer] = []
        self._by_host, self._by_name = {}, {}

    def add(
        self,
        array: np.ndarray | None = None,
        nbytes: int | None = None,
        name: str | None = None,
        uninit: bool = False,
        readonly: bool = False,
        counted: bool = True,
    ) -> int:
        """Adds a buffer.

        Args:
            array: C-contiguous contents, copied now; launches that write copy the buffer back
                into it. An array that is here already keeps its address.
            nbytes: size of a buffer without an array, initially zeros.
            name: what errors and counters call it; `buffer<number>` if None.
            uninit: its contents are garbage until the device writes them.
            readonly: the device must not write.
            counted: accesses are traffic.

        Returns:
            The address, a multiple of 64 GiB.

        Raises:
            ValueError: array not C-contiguous, neither array nor nbytes, or name taken.
        """
        key = None
        if array is not None:
            key = (array.__array_interface__["data"][0], array.nbytes)
            if array.nbytes and key in self._by_host:
                return self._by_host[key].base
            if not array.flags.c_contiguous:
                raise ValueError("device buffers must be C-contiguous")
            nbytes = array.nbytes
        elif nbytes is None:
            raise ValueError("a buffer needs an array or a size in bytes")
        name = name or f"buffer{len(self.buffers)}"
        if name in self._by_name:
            raise ValueError(f"there is a buffer {name} already")
        base = GLOBAL_WINDOW + len(self.buffers) * SPACING
        buffer = DeviceBuffer(name, base, array, nbytes, uninit, readonly, counted)
        self.buffers.append(buffer)
        self._by_name[name] = buffer
        if key is not None:
            self._by_host[key] = buffer
        return base

    def __getitem__(self, name: str) -> DeviceBuffer:
        """The buffer of that name."""
        return self._by_name[name]

    def truncate(self, count: int) -> None:
        """Drops the buffers added after the first `count`."""
        del self.buffers[count:]
        kept = {id(b) for b in self.buffers}
        self._by_host = {k: b for k, b in self._by_host.items() if id(b) in kept}
        self._by_name = {b.name: b for b in self.buffers}

    def at(self, address: int) -> DeviceBuffer | None:
        """Buffer that holds the address, or None."""
        k = (address - GLOBAL_WINDOW) // SPACING
        if 0 <= k < len(self.buffers) and address < self.buffers[k].end:
            return self.buffers[k]
        return None

    def describe(self, address: int) -> str:
        """Names an address outside all buffers relative to the nearest."""
        if not self.buffers or address < GLOBAL_WINDOW - SPACING // 2:
            return f"address {address:#x}, in no buffer"
        k = (address - GLOBAL_WINDOW + SPACING // 2) // SPACING
        b = self.buffers[min(max(k, 0), len(self.buffers) - 1)]
        return (
            f"address {address:#x} = {b.name}{address - b.base:+d} bytes; "
            f"{b.name} has {b.size} bytes"
        )

    # ---- accesses by the device ---------------------------------------------------------------
    def resolve(
        self, core, ins, sel: LaneSet, addr: np.ndarray, size: int, write: bool
    ) -> list[tuple[DeviceBuffer, np.ndarray, np.ndarray | None]]:
        """Checks int64 addresses of the lanes of `sel`.

        Returns:
            Per buffer hit: the buffer, the indices of its elements of `size` bytes, and the
            positions in `addr` of the lanes concerned (None: all).
        """
        k = misaligned(addr, size)
        if k is not None:
            message = f"{size}-byte global access at address {int(addr[k]):#x}"
            core.fault(Misaligned, message, ins, sel.lane(k))
        shift = size.bit_length() - 1
        b = self.at(int(addr.min()))
        if b is not None and int(addr.max()) + size <= b.end:
            parts = [(b, (addr - b.base) >> shift, None)]
        else:
            parts = self.resolve_each(core, ins, sel, addr, size, write)
        if write:
            for b, _, at in parts:
                if b.readonly:
                    lane = sel.lane(0 if at is None else int(at[0]))
                    core.fault(ReadOnlyWrite, f"write to read-only {b.name}", ins, lane)
        return parts

    def resolve_each(self, core, ins, sel, addr, size, write):
        """As `resolve`, for addresses that are not all in one buffer."""
        which = (addr - GLOBAL_WINDOW) // SPACING
        ends = np.array([b.end for b in self.buffers] + [0])
        bad = (which < 0) | (which >= len(self.buffers))
        bad |= addr + size > ends[np.where(bad, -1, which)]
        if bad.any():
            k = int(bad.argmax())
            kind = "write" if write else "read"
            message = f"{size}-byte global {kind} at {self.describe(int(addr[k]))}"
            core.fault(OutOfBounds, message, ins, sel.lane(k))
        parts = []
        for k in np.unique(which):
            at = np.flatnonzero(which == k)
            b = self.buffers[k]
            parts.append((b, (addr[at] - b.base) >> (size.bit_length() - 1), at))
        return parts

    def check_init(self, core, ins, sel, b, index, at, size):
        """Faults if an element has a byte that was never written."""
        k = b.uninitialised(index, size)
        if k is not None:
            message = f"read of {b.name}{int(index[k]) * size:+d} bytes, never written"
            core.fault(UninitialisedRead, message, ins, sel.lane(k if at is None else int(at[k])))

    def load(self, core, ins, sel, addr, size, times=1) -> np.ndarray:
        """Gathers elements of `size` bytes.

        Args:
            times: how many sets of lanes make this access; `sel` is one of them.

        Returns:
            UNSIGNED[size], one for each lane of `sel`.
        """
        out = None
        for b, index, at in self.resolve(core, ins, sel, addr, size, False):
            self.check_init(core, ins, sel, b, index, at, size)
            if core.count and b.counted:
                b.mark_read(index, size)
                self.count(core, "load", b, sel, addr, at, size, core.sites["global"], times)
            v = b.data.take(index, size)
            if at is None:
                return v
            if out is None:
                out = np.empty(len(addr), UNSIGNED[size])
            out[at] = v
        return out

    def store(self, core, ins, sel, addr, size, values) -> None:
        """Scatters elements of `size` bytes: an array of UNSIGNED[size], or one for all."""
        for b, index, at in self.resolve(core, ins, sel, addr, size, True):
            v = values if at is None or len(values) == 1 else values[at]
            if core.race:
                core.race.global_write(ins, sel, b, index, at, size, v)
            b.data.view[size][index] = v
            b.mark_written(index, size)
            if core.count:
                self.count(core, "store", b, sel, addr, at, size, core.sites["global"])

    @staticmethod
    def count(core, direction, b, sel, addr, at, size, sectors, times=1):
        """Accounts one access, or its part in buffer `b`; sectors: the `Site` that counts them."""
        total: GlobalTraffic = getattr(core.counters, "global_" + direction)
        traffic: GlobalTraffic = getattr(b.traffic, direction)
        if at is None:
            total.requests += sel.nwarps * times
            found = sectors(sel, addr)
        else:
            if at[0] == 0:  # the part with the first lane enters the request into the total
                total.requests += sel.nwarps * times
            sel, addr = LaneSet(core, sel.lanes()[at]), addr[at]
            found = sectors.count(sel, addr)
        traffic.requests += sel.nwarps * times
        traffic.bytes += sel.n * size * times
        traffic.sectors += found * times
