"""Where a slide holds something other than empty glass, found cheaply, and its thumbnail.

The slide is looked at once at about 4 micrometres per px. A cell of the grid is kept if a few of
these pixels absorb more than the glass does, in any colour; then its neighbours are kept as well,
so that nothing that reaches over a border is cut.

How much more, was chosen by what is missed: synthetic slides (`tests/synthetic_slides.py`, 8,000 x
8,000 px at 0.5 micrometres, one nucleus in 10^6 px, 132 in JPEG of quality 88 and 88 in 30) with
cells that absorb less and less. Nuclei in skipped cells, and cells that are kept:

    optical density  threshold 0.015    0.02           0.03           0.045
    of a nucleus     Q 88    Q 30       Q 88    Q 30   Q 88    Q 30   Q 88    Q 30
    0.72 (usual)     0 %     0 %        0 %     0 %    0 %     0 %    0 %     0 %
    0.14             0 %     0 %        0 %     0 %    0 %     0 %    0 %     0 %
    0.07             0 %     0 %        0 %     0 %    0 %     1 %    1 %     3 %
    0.05             0 %     0 %        0 %     0 %    2 %     5 %    8 %    22 %
    0.036            1 %     0 %        1 %     3 %   10 %    17 %   37 %    52 %
    kept, usual     40 %    39 %       34 %    37 %   31 %    31 %   28 %    27 %
    kept, empty      0 %     0 %        0 %     0 %    0 %     0 %    0 %     0 %

So 0.02 keeps nearly all that is a twentieth as dark as usual, at little cost. Less is within reach
of uneven light: the synthetic slides' corners are 0.007 darker than their middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from dssnet_fast.slides.cells import dilated, grid
from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import UnreadableRegion, at_level_0
from dssnet_fast.tiling import Box

CELL = 256

_MPP = 4.0 * 1.05  # of what is looked at, at most; downsamples are seldom quite whole
_THRESHOLD = 0.02  # optical density above the glass
_PIXELS = 3  # that must have it
_THUMBNAIL = 1024
_BLOCK = 2**22  # px of the level that are read at once, about
_DARK = 96  # of 255: a slide of which more than half is darker has no bright background
_HIGHEST = 0.995  # of the pixels are not brighter than this glass
_NEAR = 0.95  # of that brightness; the glass lies between
_GRAY = 192  # in the thumbnail, for what cannot be read


@dataclass(frozen=True)
class Overview:
    """A slide at a glance.

    Attributes:
        thumbnail: uint8 [h, w, 3], at most 1,024 px a side.
        downsample: Level-0 px per px of the thumbnail.
        glass: Red, green and blue of the glass, 0 to 255: what optical densities count from.
        occupied: bool [rows, columns], the cells that hold something, and their neighbours.
        all_because: Why no cell was skipped, if there is a reason; otherwise None.
        unreadable: Level-0 boxes that cannot be read. Their cells count as occupied.
    """

    thumbnail: np.ndarray
    downsample: float
    glass: tuple[float, float, float]
    occupied: np.ndarray
    all_because: str | None = None
    unreadable: list[Box] = field(default_factory=list)


def overview(analysed: Resampled, cell: int = CELL) -> Overview:
    """Look at a slide once, with little memory whatever its size.

    Args:
        analysed: The slide at the model's resolution.
        cell: Side of the cells, px of the analysed image.
    """
    glance = _Glance(analysed, cell)
    glance.look()
    return glance.result()


class _Glance:
    def __init__(self, analysed: Resampled, cell: int):
        self._slide = analysed.slide
        mpp = analysed.mpp / analysed.scale
        levels = self._slide.levels
        self._level = max(
            (i for i, level in enumerate(levels) if i == 0 or level.downsample * mpp <= _MPP),
            key=lambda i: levels[i].downsample,
        )
        level = levels[self._level]
        # So many px of the level, squared, are averaged to one.
        self._reduce = max(int(_MPP / (level.downsample * mpp)), 1)
        self._width = -(-level.width // self._reduce)
        self._height = -(-level.height // self._reduce)
        self._side = cell * analysed.scale / (level.downsample * self._reduce)  # of a cell, px
        self._rows, self._columns = grid(analysed.width, analysed.height, cell)

        self._darkest = np.full((self._rows, self._columns, 3), 255, np.uint8)
        self._uniform = np.zeros((self._rows, self._columns), bool)
        self._lost = np.zeros((self._rows, self._columns), bool)
        self._unreadable: list[Box] = []
        self._histogram = np.zeros((3, 256), np.int64)
        self._shrink = -(-max(self._width, self._height) // _THUMBNAIL)
        small = (-(-self._height // self._shrink), -(-self._width // self._shrink))
        self._sums = np.zeros((*small, 3), np.float64)
        self._counts = np.zeros(small, np.int64)

    def look(self) -> None:
        # Long bands: a strip of a TIFF is decoded once, and neighbours of tiles are still cached.
        cells = max(int(_BLOCK / (self._side * self._reduce) ** 2), 1)
        wide = min(cells, self._columns)
        tall = max(cells // wide, 1)
        for row in range(0, self._rows, tall):
            for column in range(0, self._columns, wide):
                self._look_at(
                    row,
                    min(row + tall, self._rows),
                    column,
                    min(column + wide, self._columns),
                )

    def _look_at(self, top: int, bottom: int, left: int, right: int) -> None:
        """Look at some cells at once; if that fails, at each."""
        first_y, last_y, own_y = self._span(top, bottom, self._rows, self._height)
        first_x, last_x, own_x = self._span(left, right, self._columns, self._width)
        level = self._slide.levels[self._level]
        box = Box(
            first_y * self._reduce,
            first_x * self._reduce,
            min(last_y * self._reduce, level.height),
            min(last_x * self._reduce, level.width),
        )
        try:
            pixels = self._read(box)
        except UnreadableRegion:
            if (bottom - top, right - left) == (1, 1):
                self._lost[top, left] = True
                self._unreadable.append(at_level_0(self._slide.levels, self._level, box))
                return
            for row in range(top, bottom):
                for column in range(left, right):
                    self._look_at(row, row + 1, column, column + 1)
            return
        self._add_to_thumbnail(pixels[: own_y - first_y, : own_x - first_x], first_y, first_x)
        for row in range(top, bottom):
            start_y, end_y, _ = self._span(row, row + 1, self._rows, self._height)
            for column in range(left, right):
                start_x, end_x, _ = self._span(column, column + 1, self._columns, self._width)
                part = pixels[
                    start_y - first_y : end_y - first_y, start_x - first_x : end_x - first_x
                ]
                self._measure(row, column, part.reshape(-1, 3))

    def _span(self, first: int, last: int, cells: int, length: int) -> tuple[int, int, int]:
        """The px of cells `first` to `last`, and where the next cell's own px begin.

        The last cell goes to the end of the slide: the analysed image may end a little before.
        """
        start = min(int(first * self._side), length - 1)
        if last == cells:
            return start, length, length
        end = last * self._side
        return start, min(max(math.ceil(end), start + 1), length), min(int(end), length)

    def _read(self, box: Box) -> np.ndarray:
        from PIL import Image

        pixels = self._slide.read(self._level, box)
        if self._reduce == 1:
            return pixels
        return np.asarray(Image.fromarray(pixels).reduce(self._reduce))

    def _measure(self, row: int, column: int, pixels: np.ndarray) -> None:
        if (pixels == pixels[0]).all():
            # Scanners fill what they did not scan with one colour.
            self._uniform[row, column] = True
            return
        rank = min(_PIXELS, len(pixels)) - 1
        self._darkest[row, column] = np.partition(pixels, rank, axis=0)[rank]
        for channel in range(3):
            self._histogram[channel] += np.bincount(pixels[:, channel], minlength=256)

    def _add_to_thumbnail(self, pixels: np.ndarray, top: int, left: int) -> None:
        if not pixels.size:
            return
        height, width, _ = pixels.shape
        rows, first_rows = np.unique(np.arange(top, top + height) // self._shrink, True)
        columns, first_columns = np.unique(np.arange(left, left + width) // self._shrink, True)
        sums = np.add.reduceat(pixels.astype(np.float64), first_rows, axis=0)
        place = np.ix_(rows, columns)
        self._sums[place] += np.add.reduceat(sums, first_columns, axis=1)
        tall, wide = np.diff([*first_rows, height]), np.diff([*first_columns, width])
        self._counts[place] += tall[:, None] * wide

    def result(self) -> Overview:
        counts = self._counts[:, :, None]
        thumbnail = np.where(counts > 0, self._sums / np.maximum(counts, 1), _GRAY)
        glass = self._glass()
        because = self._why_all()
        if because is None:
            floor = glass * 10**-_THRESHOLD
            occupied = (self._darkest < floor).any(axis=2) & ~self._uniform
            occupied = dilated(occupied | self._lost)
        else:
            occupied = np.ones((self._rows, self._columns), bool)
        return Overview(
            thumbnail=np.round(thumbnail).astype(np.uint8),
            downsample=self._slide.levels[self._level].downsample * self._reduce * self._shrink,
            glass=tuple(float(value) for value in glass),
            occupied=occupied,
            all_because=because,
            unreadable=self._unreadable,
        )

    def _glass(self) -> np.ndarray:
        """float64 [3], the commonest value of each colour among nearly the brightest."""
        found = np.full(3, 255.0)
        for channel, counts in enumerate(self._histogram):
            if counts.any():
                highest = np.searchsorted(np.cumsum(counts), _HIGHEST * counts.sum())
                lowest = int(highest * _NEAR)
                found[channel] = lowest + np.argmax(counts[lowest : highest + 1])
        return np.maximum(found, 1)

    def _why_all(self) -> str | None:
        total = self._histogram.sum(axis=1)
        if total.all() and (np.cumsum(self._histogram, axis=1)[:, _DARK] > 0.5 * total).all():
            return "the background is dark, so empty parts cannot be told from full ones"
        return None
