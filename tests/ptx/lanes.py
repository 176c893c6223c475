"""Sets of lanes."""

from __future__ import annotations

import numpy as np


class LaneSet:
    """The lanes that execute one instruction; never changed once made.

    A set that is `full` holds every lane of the chunk. Otherwise it is held as a boolean mask, as
    a sorted index array, or both (each made from the other on demand).

    Attributes:
        core: the chunk, with `lanes` and `lane_numbers`.
        full: every lane of the chunk is in the set.
        n: number of lanes.
        dense: computing all lanes and merging is cheaper than gathering these.
    """

    __slots__ = ("_first", "_idx", "_mask", "_warps", "_whole", "core", "dense", "full", "n")

    def __init__(self, core, idx=None, mask=None, n=None):
        self.core, self._idx, self._mask = core, idx, mask
        self._warps = self._whole = self._first = None
        self.full = idx is None and mask is None
        self.n = core.lanes if self.full else len(idx) if n is None else n
        self.dense = self.full or 4 * self.n > core.lanes

    def idx(self) -> np.ndarray:
        """Lane numbers of a set that is not full."""
        if self._idx is None:
            self._idx = np.flatnonzero(self._mask)
        return self._idx

    @property
    def mask(self) -> np.ndarray:
        """Boolean mask over all lanes."""
        if self._mask is None:
            self._mask = np.full(self.core.lanes, self.full)
            if not self.full:
                self._mask[self._idx] = True
        return self._mask

    @property
    def key(self) -> slice | np.ndarray:
        """Index that selects these lanes of a per-lane array."""
        return slice(None) if self.full else self.idx()

    def lanes(self) -> np.ndarray:
        """Lane numbers."""
        return self.core.lane_numbers if self.full else self.idx()

    def lane(self, k: int) -> int:
        """Lane number of position k."""
        return int(k) if self.full else int(self.idx()[k])

    def take(self, a: np.ndarray) -> np.ndarray:
        """These lanes' values of a register; arrays of length 1 pass as they are."""
        return a if self.full or len(a) == 1 else a[self.idx()]

    @property
    def nwarps(self) -> int:
        """Number of warps with a lane in the set."""
        if self._warps is None:
            if self.full:
                self._warps = self.core.lanes >> 5
            elif self._mask is not None:
                self._warps = int(self._mask.reshape(-1, 32).any(axis=1).sum())
            else:
                w = self._idx >> 5
                self._warps = int((w[1:] != w[:-1]).sum()) + 1
        return self._warps

    def whole_warps(self) -> bool:
        """Whether the set has all 32 lanes of each of its warps."""
        if self._whole is None:
            self._whole = self.full or self.n == 32 * self.nwarps
        return self._whole

    def first_block(self) -> LaneSet | None:
        """The set's lanes in the first block, if they are the same in all blocks, else None."""
        if self._first is None:
            core, self._first = self.core, False
            lanes = self.lanes()
            count = self.n // core.nblocks
            if core.nblocks > 1 and count * core.nblocks == self.n:
                m = lanes.reshape(core.nblocks, count)
                if (m - m[0] == np.arange(core.nblocks)[:, None] * core.padded).all():
                    self._first = LaneSet(core, m[0].copy())
        return self._first or None

    def where(self, p: np.ndarray, negate: bool = False) -> LaneSet | None:
        """Subset where the predicate holds, or None when it is empty."""
        if self.full or (self._mask is not None and self.dense):
            count = int(np.count_nonzero(p))
            if self.full and count in (0, len(p)):
                return self if (count == 0) == negate else None
            m = ~p if negate else p.copy()
            if not self.full:
                m &= self._mask
            n = int(np.count_nonzero(m))
            return None if n == 0 else self if n == self.n else LaneSet(self.core, mask=m, n=n)
        i = self.idx()
        i = i[~p[i] if negate else p[i]]
        return None if not len(i) else self if len(i) == self.n else LaneSet(self.core, i)

    def minus(self, other: LaneSet) -> LaneSet:
        """Lanes of self that are not in other, a proper subset."""
        m = ~other.mask if self.full else self.mask & ~other.mask
        return LaneSet(self.core, mask=m, n=self.n - other.n)
