"""Bytes that can be read and written at every access size, and maps that say what they hold."""

from __future__ import annotations

import numpy as np

# Unsigned element of each access size; 16 bytes travel as complex numbers, which are only copied.
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
# Positions of the state spaces in the generic address space (PTX ISA 5.1, 6.4).
SHARED_WINDOW = 1 << 32
LOCAL_WINDOW = 1 << 34
GLOBAL_WINDOW = 1 << 40


class ByteMap:
    """Byte array, padded to 16, that is also viewed as elements of 1, 2, 4, 8 and 16 bytes."""

    def __init__(self, size: int):
        self.bytes = np.zeros((size + 15) // 16 * 16, np.uint8)
        self.view = {n: self.bytes.view(t) for n, t in UNSIGNED.items()}

    def take(self, index: np.ndarray, size: int) -> np.ndarray:
        """Elements of `size` bytes; the indices have been checked."""
        return self.view[size].take(index, mode="clip")


class Marks(ByteMap):
    """A number from 0 to 255 for each byte."""

    def set(self, index: np.ndarray, size: int, mark: int) -> None:
        """Mark all bytes of the elements."""
        self.view[size][index] = MARKED[mark, size]

    def unlike(self, index: np.ndarray, size: int, mark: int) -> int | None:
        """Position in `index` of an element not wholly marked so, or None."""
        got = self.take(index, size)
        if size == 16:  # complex numbers compare slowly
            bad = got.view(np.uint64) != MARKED[mark, 8]
            return int(bad.argmax()) // 2 if bad.any() else None
        bad = got != MARKED[mark, size]
        return int(bad.argmax()) if bad.any() else None

    def touching(self, index: np.ndarray, size: int, bit: int) -> int | None:
        """Position in `index` of an element with any byte whose mark has that bit, or None."""
        got = self.take(index, size)
        if size == 16:
            got = got.view(np.uint64)
        bad = got & MARKED[bit, min(size, 8)] != 0
        return int(bad.argmax()) * min(size, 8) // size if bad.any() else None


MARKED = {
    (mark, size): np.full(size, mark, np.uint8).view(UNSIGNED[size])[0]
    for mark in range(3)
    for size in UNSIGNED
}


def misaligned(addresses: np.ndarray, size: int) -> int | None:
    """Position of an address that is no multiple of `size`, or None."""
    if size == 1 or not int(np.bitwise_or.reduce(addresses)) & (size - 1):
        return None
    return int(np.flatnonzero(addresses & addresses.dtype.type(size - 1))[0])
