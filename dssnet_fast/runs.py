"""Pixels of nuclei as runs: horizontal stretches of one class. They are far fewer than pixels.

Sums over runs of whole numbers are exact, so what is measured of a nucleus does not depend on how
the image was cut when its runs were found.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Runs:
    """Runs in the order of rows, then columns. All arrays are int64 [R], `label` is uint8 [R].

    Attributes:
        row: Of the run's pixels.
        start: First column.
        end: Column after the last.
        label: The pixels' class, 1 or more.
    """

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, which: np.ndarray | slice) -> Runs:
        return Runs(*(getattr(self, field.name)[which] for field in fields(self)))

    @property
    def length(self) -> np.ndarray:
        """int64 [R], pixels."""
        return self.end - self.start

    def moved(self, down: int, right: int) -> Runs:
        """The same runs in an image whose first pixel lies elsewhere."""
        return Runs(self.row + down, self.start + right, self.end + right, self.label)


def find_runs(labels: np.ndarray, levels: np.ndarray | None = None) -> Runs:
    """The runs of a class map.

    Args:
        labels: uint8 [H, W], 0 for background.
        levels: uint8 [H, W], or None. All pixels of a run have one level.
    """
    width = labels.shape[1]
    if not labels.size:
        none = np.zeros(0, np.int64)
        return Runs(none, none, none, np.zeros(0, np.uint8))
    flat = np.ascontiguousarray(labels).ravel()
    begins = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    if levels is not None:
        flat_levels = np.ascontiguousarray(levels).ravel()
        begins[1:] |= flat_levels[1:] != flat_levels[:-1]
    begins[::width] = True
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], flat.size)
    kept = flat[starts] > 0
    starts, ends = starts[kept], ends[kept]
    row = starts // width
    return Runs(row, starts - row * width, ends - row * width, flat[starts])


def connect(runs: Runs, alike: np.ndarray | None = None) -> np.ndarray:
    """Which component each run belongs to: runs of one class that touch with sides of pixels.

    Args:
        runs: They may lie end to end in a row, as where an image was cut.
        alike: integer [R], or None. Runs of equal numbers belong together whatever lies between.

    Returns:
        int64 [R], from 0 on, in the order of the components' first runs.
    """
    one, other = touching(runs)
    if alike is not None:
        order = np.argsort(alike, kind="stable")
        equal = np.flatnonzero(alike[order][1:] == alike[order][:-1])
        one = np.concatenate([one, order[equal]])
        other = np.concatenate([other, order[equal + 1]])
    return components(len(runs), one, other)


def touching(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs of one class that touch with sides of pixels, each pair once.

    Returns:
        Two int64 [pairs]: the upper and the lower run of those in rows that follow each other, then
        the left and the right one of those that lie end to end in one row.
    """
    # As numbers that grow along rows and from row to row, with a gap after each row.
    stride = int(runs.end.max(initial=0)) + 1
    start, end = runs.row * stride + runs.start, runs.row * stride + runs.end
    # In the next row the runs that end after this one starts and start before it ends.
    first = np.searchsorted(end, start + stride, side="right")
    last = np.searchsorted(start, end + stride, side="left")
    upper, lower = expand(first, np.maximum(last - first, 0))
    left = np.flatnonzero(end[:-1] == start[1:])
    one, other = np.concatenate([upper, left]), np.concatenate([lower, left + 1])
    alike = runs.label[one] == runs.label[other]
    return one[alike], other[alike]


def components(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Connected components of a graph.

    Args:
        count: How many nodes there are.
        one: int64 [E], a node of each edge.
        other: int64 [E], the other one.

    Returns:
        int64 [count], from 0 on, in the order of the components' first nodes.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not count:
        return np.zeros(0, np.int64)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    return numbered(connected_components(graph, directed=False)[1])


def numbered(values: np.ndarray) -> np.ndarray:
    """Whole numbers, not many times more than their count, in the order of their first places.

    Args:
        values: integer [N], 0 or more.

    Returns:
        int64 [N], from 0 on without gaps, equal where the values are.
    """
    first = np.full(int(values.max(initial=-1)) + 1, len(values))
    # The first place of each is written last.
    first[values[::-1]] = np.arange(len(values))[::-1]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[values]


def join_abutting(runs: Runs, owner: np.ndarray) -> tuple[Runs, np.ndarray]:
    """Runs with those that lie end to end and have one owner made one.

    Args:
        runs: The runs; those of one owner are of one class.
        owner: integer [R].

    Returns:
        The runs, and their owners.
    """
    begins = np.ones(len(runs), bool)
    begins[1:] = (
        (runs.row[1:] != runs.row[:-1])
        | (runs.start[1:] != runs.end[:-1])
        | (owner[1:] != owner[:-1])
    )
    first = np.flatnonzero(begins)
    last = np.append(first, len(runs))[1:] - 1
    return Runs(runs.row[first], runs.start[first], runs.end[last], runs.label[first]), owner[first]


def expand(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of numbers, one after another.

    Args:
        first: int64 [N], the first number of each range.
        count: int64 [N], how many numbers each has.

    Returns:
        Which range each number comes from, and the numbers, int64 [sum of count].
    """
    owner = np.repeat(np.arange(len(count)), count)
    begin = np.cumsum(count) - count
    return owner, np.arange(len(owner)) + (first - begin)[owner]


def run_sums(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Sums over runs.

    Args:
        values: int64 [V], the values of each run, run by run, such as one for each of its pixels.
        count: int64 [R], how many values each run has, 1 or more.

    Returns:
        int64 [R].
    """
    if not len(count):
        return np.zeros(0, np.int64)
    return np.add.reduceat(values, np.cumsum(count) - count)
