"""Borders of nuclei: their perimeters and exact outlines.

Pixels are looked up on a canvas, an id for each pixel. What is traced may be larger than a canvas:
then canvases show one stretch of rows after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dssnet_fast.runs import Runs, expand

# A pixel's place on its nucleus's border is told by its neighbours, and what it adds to the
# perimeter by those neighbours' places.
_MARGIN = 2

# Steps along pixel edges, clockwise on the screen: right, down, left, up. A nucleus lies to the
# right of its edges.

# How much a border pixel adds to the perimeter, by its number of direct and of diagonal
# neighbours that are border pixels as well (skimage.measure.perimeter with neighborhood=4, after
# Benkrid and Crookes: "Design and FPGA implementation of a perimeter estimator", 2000).
_PERIMETER_WEIGHTS = np.zeros((5, 5))
_PERIMETER_WEIGHTS[[2, 2, 2, 3, 3, 3], [0, 1, 2, 0, 1, 2]] = 1
_PERIMETER_WEIGHTS[[0, 1], [2, 3]] = np.sqrt(2)
_PERIMETER_WEIGHTS[[1, 1], [1, 2]] = (1 + np.sqrt(2)) / 2


@dataclass(frozen=True)
class Outlines:
    """Outlines of N nuclei, along the edges of their pixels.

    Rings are closed and have no points on straight lines. A nucleus's exterior comes first, then
    its holes; exteriors have positive area by the shoelace formula, holes negative (the
    orientation that RFC 7946 asks for). Each nucleus is one valid polygon: no ring touches itself,
    and rings meet at single points at most.

    Attributes:
        points: int32 [P, 2] of (x, y), px.
        rings: int64 [R + 1], where in `points` each ring begins; the last is P.
        nuclei: int64 [N + 1], where in `rings` each nucleus begins; the last is R.
    """

    points: np.ndarray
    rings: np.ndarray
    nuclei: np.ndarray

    def __len__(self) -> int:
        return len(self.nuclei) - 1

    def __getitem__(self, which: np.ndarray) -> Outlines:
        """Those of some nuclei, int64 [M] or bool [N], in that order."""
        which = np.arange(len(self))[which]
        count = self.nuclei[which + 1] - self.nuclei[which]
        _, rings = expand(self.nuclei[which], count)
        length = self.rings[rings + 1] - self.rings[rings]
        _, points = expand(self.rings[rings], length)
        return Outlines(self.points[points], _offsets(length), _offsets(count))

    def to_lists(self) -> list[list[np.ndarray]]:
        """For each nucleus its rings, int32 [points, 2] each."""
        rings = np.split(self.points, self.rings[1:-1]) if len(self.rings) > 1 else []
        return [rings[begin:end] for begin, end in itertools.pairwise(self.nuclei.tolist())]


def join_outlines(parts: Sequence[Outlines]) -> Outlines:
    """The outlines of several groups of nuclei as one."""
    if not parts:
        return Outlines(np.zeros((0, 2), np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64))
    return Outlines(
        np.concatenate([part.points for part in parts]),
        _offsets(np.concatenate([np.diff(part.rings) for part in parts])),
        _offsets(np.concatenate([np.diff(part.nuclei) for part in parts])),
    )


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


class Canvas:
    """Ids of the pixels in some rows of an image, with a margin of background around.

    Args:
        top: The first row.
        bottom: The row after the last.
        left: The first column.
        right: The column after the last.
    """

    def __init__(self, top: int, bottom: int, left: int, right: int) -> None:
        self.top, self.left = top, left
        self.height, self.width = bottom - top, right - left
        self.stride = self.width + 2 * _MARGIN
        # Zeros that nobody touches take no memory.
        self.ids = np.zeros((self.height + 2 * _MARGIN) * self.stride, np.int32)

    def paint(self, runs: Runs, ids: np.ndarray) -> np.ndarray:
        """Give the pixels of runs their ids, int [R], 0 for none.

        Returns:
            int64 [P], the places of the pixels with an id, in the order of the runs.
        """
        kept = ids > 0
        first = (runs.row - self.top + _MARGIN) * self.stride + runs.start - self.left + _MARGIN
        run, place = expand(first[kept], runs.length[kept])
        self.ids[place] = ids[kept][run]
        return place

    def dense(self) -> np.ndarray:
        """int32 [H, W], the ids."""
        return self.ids.reshape(-1, self.stride)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].copy()

    def places(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Where pixels of the image lie in `ids`."""
        return (rows - self.top + _MARGIN) * self.stride + columns - self.left + _MARGIN

    def rows_of(self, places: np.ndarray) -> np.ndarray:
        """Rows of the image that places lie in."""
        return places // self.stride + self.top - _MARGIN


def border(canvas: Canvas, places: np.ndarray) -> np.ndarray:
    """Those of the places that have a side to another id."""
    own = canvas.ids[places]
    differs = np.zeros(len(places), bool)
    for step in (-canvas.stride, -1, 1, canvas.stride):
        differs |= canvas.ids[places + step] != own
    return places[differs]


def perimeters(
    canvas: Canvas, on_border: np.ndarray, count: int, counted: np.ndarray | None = None
) -> np.ndarray:
    """Perimeters as `skimage.measure.perimeter` estimates them.

    Args:
        canvas: The nuclei.
        on_border: What `border` found.
        count: The largest id.
        counted: Places that add to the sums, all by default; their neighbours must be among
            `on_border` where they are on the border.

    Returns:
        float64 [count], px.
    """
    counted = on_border if counted is None else counted
    marks = np.zeros(len(canvas.ids), np.int32)
    marks[on_border] = canvas.ids[on_border]
    own = marks[counted]
    stride = canvas.stride

    def neighbours(*steps: int) -> np.ndarray:
        return sum((marks[counted + step] == own).astype(np.intp) for step in steps)

    direct = neighbours(-stride, -1, 1, stride)
    diagonal = neighbours(-stride - 1, -stride + 1, stride - 1, stride + 1)
    return np.bincount(own - 1, weights=_PERIMETER_WEIGHTS[direct, diagonal], minlength=count)


class Tracer:
    """Collects edges of pixels, canvas by canvas, and links them to outlines.

    Canvases of one tracer have the same columns and show rows further and further down.
    """

    def __init__(self) -> None:
        self._edges: list[np.ndarray] = []
        self._following: list[np.ndarray] = []
        self._owners: list[np.ndarray] = []
        self._canvas: Canvas | None = None

    def add(self, canvas: Canvas, on_border: np.ndarray) -> None:
        """Add the edges of border pixels; their neighbours must be on the canvas."""
        self._canvas = canvas
        flat, stride = canvas.ids, canvas.stride
        # An edge is 4 * place + direction. Beyond the top edge of a pixel (direction 0) lies the
        # pixel above, beyond its right edge (1) the one to the right, and so on.
        beyond = np.array([-stride, 1, stride, -1])
        ahead = np.array([1, stride, -1, -stride])
        edges = np.concatenate(
            [
                4 * on_border[flat[on_border + beyond[direction]] != flat[on_border]] + direction
                for direction in range(4)
            ]
        )
        edges.sort()
        place, direction = edges >> 2, edges & 3
        # The next edge turns left onto the pixel diagonally ahead if that belongs to the nucleus,
        # goes straight on along the pixel ahead if that does, and otherwise turns right around its
        # own pixel. Looking diagonally first joins corners that touch: the background between them
        # is then two rings that meet at a point, not one ring that crosses itself.
        own = flat[place]
        straight = place + ahead[direction]
        diagonal = straight + beyond[direction]
        following = np.where(
            flat[diagonal] == own,
            4 * diagonal + ((direction - 1) & 3),
            np.where(
                flat[straight] == own, 4 * straight + direction, 4 * place + ((direction + 1) & 3)
            ),
        )
        # Numbered as on a canvas that shows all rows.
        shift = 4 * canvas.top * stride
        self._edges.append(edges + shift)
        self._following.append(following + shift)
        self._owners.append(own)

    def outlines(self, count: int) -> Outlines:
        """The outlines of the ids 1 to `count`, in px of the image."""
        if not sum(map(len, self._edges)):
            none = np.zeros(count + 1, np.int64)
            return Outlines(np.zeros((0, 2), np.int32), np.zeros(1, np.int64), none)
        edges = np.concatenate(self._edges)
        owner = np.concatenate(self._owners)
        following = np.searchsorted(edges, np.concatenate(self._following))
        order, starts = _cycles(following)

        edges, owner = edges[order], owner[order]
        place, direction = edges >> 2, edges & 3
        lengths = np.diff(np.append(starts, len(order)))
        ring = np.repeat(np.arange(len(starts)), lengths)
        before = np.arange(len(order)) - 1
        before[starts] = starts + lengths - 1
        corner = direction != direction[before]
        place, direction, ring, owner = (
            values[corner] for values in (place, direction, ring, owner)
        )
        # An edge begins, clockwise, at its pixel's top left, top right, bottom right or bottom
        # left.
        stride, left = self._canvas.stride, self._canvas.left
        x = place % stride - _MARGIN + left + ((direction == 1) | (direction == 2))
        y = place // stride - _MARGIN + (direction >= 2)
        points = np.stack([x, y], axis=1).astype(np.int32)

        # An exterior begins at the topmost leftmost pixel's top edge. It is found first, for edges
        # are sorted by place; what follows are holes.
        first = np.searchsorted(ring, np.arange(len(starts)))
        corners = np.diff(np.append(first, len(ring)))
        owner = owner[first]
        by_owner = np.argsort(owner, kind="stable")
        run, point = expand(first[by_owner], corners[by_owner] + 1)
        # Closed: after its last point a ring has its first one again.
        last = _offsets(corners[by_owner] + 1)[1:] - 1
        point[last] = first[by_owner][run[last]]
        return Outlines(
            points[point],
            _offsets(corners[by_owner] + 1),
            _offsets(np.bincount(owner - 1, minlength=count)),
        )


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a permutation into its cycles.

    Pointers are doubled: after k rounds each element has seen 2**k steps ahead, so a few rounds
    over arrays take the place of a step a time.

    Returns:
        order: int64 [E], all elements, each cycle from its smallest element on; cycles by that.
        starts: int64, where in `order` each cycle begins.
    """
    count = len(following)
    smallest, ahead = np.arange(count), following
    while True:
        seen = np.minimum(smallest, smallest[ahead])
        # Nothing new for anybody: every element has gone round its cycle.
        if np.array_equal(seen, smallest):
            break
        smallest, ahead = seen, ahead[ahead]
    is_start = smallest == np.arange(count)
    lengths = np.bincount(smallest, minlength=count)[is_start]
    starts = np.cumsum(lengths) - lengths

    # Steps to where the cycle begins again.
    ahead = np.where(is_start, np.arange(count), following)
    left = (~is_start).astype(np.int64)
    while (left[ahead] > 0).any():
        left, ahead = left + left[ahead], ahead[ahead]
    begin = np.zeros(count, np.int64)
    begin[is_start] = starts
    length = np.zeros(count, np.int64)
    length[is_start] = lengths
    place = np.where(is_start, 0, length[smallest] - left)
    order = np.empty(count, np.int64)
    order[begin[smallest] + place] = np.arange(count)
    return order, starts
