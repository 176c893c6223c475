"""Sectors and bank wavefronts of warp-wide accesses, each access pattern computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .lanes import LaneSet

SECTOR = 32
BANK_ROW = 128
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
        self.compute, self.known = compute, {}

    def total(self, rows: np.ndarray) -> int:
        """Sum of compute(row) over the rows of an int64 matrix."""
        keys = rows @ _HASH[rows.shape[1]]
        order = np.argsort(keys)
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        counts = np.diff(starts, append=len(keys)).tolist()
        unique = keys[starts].tolist()
        new = [i for i, key in enumerate(unique) if key not in self.known]
        if new:
            values = self.compute(rows[order[starts[new]]])
            self.known.update(zip([unique[i] for i in new], values.tolist(), strict=True))
        return sum(self.known[key] * n for key, n in zip(unique, counts, strict=True))


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
    if sel.full:
        return addresses.astype(np.int64).reshape(-1, 32), None
    lanes = sel.idx()
    warp = lanes >> 5
    row = np.cumsum(np.concatenate(([False], warp[1:] != warp[:-1])))
    out = np.zeros((row[-1] + 1, 32), np.int64)
    active = np.zeros(out.shape, bool)
    out[row, lanes & 31] = addresses
    active[row, lanes & 31] = True
    return out, active


def relative(rows: np.ndarray, active: np.ndarray | None, align: int) -> np.ndarray:
    """Rows of addresses -> offsets from the aligned address of each row's first active lane."""
    if active is None:
        return rows - (rows[:, :1] & -align)
    first = np.take_along_axis(rows, active.argmax(axis=1)[:, None], 1)
    return np.where(active, rows - (first & -align), IDLE)


def count_sectors(sel: LaneSet, addresses: np.ndarray) -> int:
    """Sectors of one warp-wide global access."""
    rows, active = warp_rows(addresses, sel)
    return SECTORS.total(relative(rows, active, SECTOR))


def count_phases(
    rows: np.ndarray, active: np.ndarray | None, size: int, lanes: int
) -> tuple[int, int]:
    """(Passes without conflicts, wavefronts) of accesses that run `lanes` lanes at a time."""
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


class Site:
    """Counts one memory instruction, and recognises its repetitions.

    Where the same lanes come back with addresses that have all moved by one multiple of `period`
    (another turn of a loop), the count is the same.
    """

    def __init__(self, count: Callable, period: int):
        self.count, self.period = count, period
        self.sel = self.addresses = self.result = None

    def __call__(self, sel: LaneSet, addresses: np.ndarray):
        """Result of `count` for these lanes and their addresses."""
        if sel is self.sel:
            moved = addresses - self.addresses
            if int(moved[0]) % self.period == 0 and (moved == moved[0]).all():
                return self.result
        self.sel, self.addresses = sel, addresses
        self.result = self.count(sel, addresses)
        return self.result
