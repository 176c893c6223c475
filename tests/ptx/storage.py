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


class Marks:
    """A small number for each granule of some memory; accesses are whole granules.

    Attributes:
        granule: bytes, at most 8.
        marks: uint8, one for each granule.
    """

    def __init__(self, size: int, granule: int = 1):
        self.granule = granule
        self.map = ByteMap((size + granule - 1) // granule)
        self.marks = self.map.bytes

    def set(self, index: np.ndarray, size: int, mark: int) -> None:
        """Marks elements of `size` bytes."""
        width = size // self.granule
        self.map.view[width][index] = MARKED[mark, width]

    def take(self, index: np.ndarray, size: int) -> np.ndarray:
        """Marks of elements of `size` bytes, as unsigned integers of at most 8 bytes."""
        width = size // self.granule
        got = self.map.take(index, width)
        return got.view(np.uint64) if width == 16 else got

    def position(self, bad: np.ndarray, size: int) -> int | None:
        """Position of the first element with a bad integer from `take`, or None."""
        if not bad.any():
            return None
        return int(bad.argmax()) // (2 if size // self.granule == 16 else 1)

    def unlike(self, index: np.ndarray, size: int, mark: int) -> int | None:
        """Position in `index` of an element not wholly marked so, or None."""
        got = self.take(index, size)
        return self.position(got != MARKED[mark, got.itemsize], size)

    def touching(self, index: np.ndarray, size: int, bit: int) -> int | None:
        """Position in `index` of an element with any mark that has this bit, or None."""
        got = self.take(index, size)
        return self.position(got & MARKED[bit, got.itemsize] != 0, size)


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
