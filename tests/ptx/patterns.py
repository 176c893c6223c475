"""Sectors and bank wavefronts of warp-wide accesses, each access pattern computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .lanes import LaneSet

SECTOR = 32
BANK_ROW = 128
RECENT = 4
IDLE = np.iinfo(np.int64).min
_RANDOM = np.random.default_rng(0x5EC7)
_HASH = {n: _RANDOM.integers(1, 2**62, n) * 2 + 1 for n in (8, 16, 32)}


class PatternCache:
    """Sums a property of access patterns.

    A pattern is one row of byte offsets relative to an aligned base, IDLE for lanes without an
    access. Rows are recognised by a 64-bit hash (fixed random odd multipliers), so a wrong count
    needs a 64-bit collision.
    """

    def __init__(self, compute: Callable[[np.ndarray], np.ndarray]):
        self.compute = compute
        self.keys = np.array([np.iinfo(np.int64).max])  # sorted
        self.values = np.zeros(1, np.int64)

    def total(self, rows: np.ndarray) -> int:
        """Sum of compute(row) over the rows of an int64 matrix."""
        keys = rows @ _HASH[rows.shape[1]]
        at = np.searchsorted(self.keys, keys)
        new = self.keys[at] != keys
        if new.any():
            added, first = np.unique(keys[new], return_index=True)
            values = np.concatenate((self.values, self.compute(rows[new][first])))
            known = np.concatenate((self.keys, added))
            order = np.argsort(known)
            self.keys, self.values = known[order], values[order]
            at = np.searchsorted(self.keys, keys)
        return int(self.values[at].sum())


def distinct(rows: np.ndarray) -> np.ndarray:
    """Mask of the first occurrence of each value that is not IDLE, in rows that are sorted."""
    new = np.empty(rows.shape, bool)
    new[:, 0] = True
    np.not_equal(rows[:, 1:], rows[:, :-1], out=new[:, 1:])
    return new & (rows != IDLE)


def sectors(rows: np.ndarray) -> np.ndarray:
    """Distinct sectors per row; aligned accesses of up to 16 bytes lie within one."""
    return distinct(np.sort(np.where(rows == IDLE, IDLE, rows // SECTOR), axis=1)).sum(axis=1)


def wavefronts(rows: np.ndarray, words: int) -> np.ndarray:
    """Passes per row: the most distinct 4-byte words that any of the 32 banks has to give."""
    first = np.where(rows == IDLE, IDLE, rows >> 2)[:, :, None]
    w = np.where(first == IDLE, IDLE, first + np.arange(words)).reshape(len(rows), -1)
    w.sort(axis=1)
    r, c = np.nonzero(distinct(w))
    banks = np.bincount(r * 32 + (w[r, c] & 31), minlength=len(rows) * 32)
    return banks.reshape(-1, 32).max(axis=1)


SECTORS = PatternCache(sectors)
WAVEFRONTS = {n: PatternCache(lambda rows, n=n: wavefronts(rows, n)) for n in (1, 2, 4)}


def warp_rows(addresses: np.ndarray, sel: LaneSet) -> tuple[np.ndarray, np.ndarray | None]:
    """Addresses of a set's lanes -> (int64 matrix [warps, 32], active mask or None for all)."""
    addresses = addresses.astype(np.int64, copy=False)
    if sel.full:
        return addresses.reshape(-1, 32), None
    rows = np.zeros(sel.core.lanes, np.int64)
    rows[sel.idx()] = addresses
    rows, active = rows.reshape(-1, 32), sel.mask.reshape(-1, 32)
    busy = active.any(axis=1)
    return (rows, active) if busy.all() else (rows[busy], active[busy])


def relative(rows: np.ndarray, active: np.ndarray | None, align: int) -> np.ndarray:
    """Rows of addresses -> offsets from the aligned address of each row's first active lane."""
    if active is None:
        return rows - (rows[:, :1] & -align)
    first = rows[np.arange(len(rows)), active.argmax(axis=1)][:, None]
    return np.where(active, rows - (first & -align), IDLE)


def count_sectors(sel: LaneSet, addresses: np.ndarray) -> int:
    """Sectors of one warp-wide global access."""
    rows, active = warp_rows(addresses, sel)
    return SECTORS.total(relative(rows, active, SECTOR))


def count_phases(
    rows: np.ndarray, active: np.ndarray | None, size: int, lanes: int
) -> tuple[int, int]:
    """(Wavefronts without conflicts, wavefronts), accesses running `lanes` lanes at a time."""
    rows = rows.reshape(-1, lanes)
    if active is not None:
        active = active.reshape(-1, lanes)
        busy = active.any(axis=1)
        rows, active = rows[busy], active[busy]
    known = WAVEFRONTS[max(size // 4, 1)]
    return len(rows), known.total(relative(rows, active, BANK_ROW))


def count_wavefronts(sel: LaneSet, addresses: np.ndarray, size: int) -> tuple[int, int]:
    """As `count_phases` for one warp-wide shared access.

    8-byte accesses run per half warp and 16-byte accesses per quarter warp.
    """
    rows, active = warp_rows(addresses, sel)
    return count_phases(rows, active, size, 32 if size <= 4 else 128 // size)


def count_matrices(sel: LaneSet, addresses: np.ndarray) -> tuple[int, int]:
    """As `count_phases` for ldmatrix: each 8x8 matrix is one pass of eight 16-byte rows."""
    return count_phases(addresses.astype(np.int64), None, 16, 8)


class Site:
    """Counts warp-wide accesses, and recognises the last few patterns.

    Where the same lanes come back with addresses that have all moved by one multiple of `period`
    (the next turn of a loop, the next instruction of an unrolled one), the count is the same.
    """

    def __init__(self, count: Callable, period: int):
        self.count, self.period = count, period
        self.recent = []

    def __call__(self, sel: LaneSet, addresses: np.ndarray):
        """Result of `count` for these lanes and their addresses, which must not change later."""
        for known, before, result in self.recent:
            if sel is known:
                first, last = (int(addresses[k]) - int(before[k]) for k in (0, -1))
                if first == last and first % self.period == 0:
                    moved = addresses - before
                    if (moved == moved[0]).all():
                        return result
        result = self.count(sel, addresses)
        self.recent = [(sel, addresses, result), *self.recent[: RECENT - 1]]
        return result


def sites() -> dict:
    """A `Site` for global accesses, one for ldmatrix, and one for each size of shared access."""
    found = {"global": Site(count_sectors, SECTOR), "ldmatrix": Site(count_matrices, 4)}
    for size in (1, 2, 4, 8, 16):
        found[size] = Site(lambda sel, addr, size=size: count_wavefronts(sel, addr, size), 4)
    return found
