"""What a slide's nuclei amount to, gathered while they pass by, in memory of fixed size.

All of it is sums of whole numbers, so it does not depend on how the nuclei are divided into tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dssnet_fast.wsi.results import Frame, NucleusTable

GALLERY_SIZE = 24
# Cells of the density map along the longer side of the analysed image, at most, and how small they
# may be: some nuclei must fit into one for a density to mean something.
_DENSITY_CELLS = 256
_DENSITY_CELL_UM = 50
# Means are of values in steps of 2**-20.
_UNIT = 1 << 20


@dataclass(frozen=True)
class Standout:
    """A nucleus that stands out; lengths in px of the analysed image.

    Attributes:
        id: Of the nucleus.
        class_index: 1 or more.
        x: Of the centroid.
        y: Of the centroid.
        area: px.
        mean_od: Mean optical density.
        bounds: (left, top, right, bottom), right and bottom excluded.
        rings: int [corners + 1, 2] of (x, y) each, the exterior first.
    """

    id: int
    class_index: int
    x: float
    y: float
    area: int
    mean_od: float
    bounds: tuple[int, int, int, int]
    rings: tuple[np.ndarray, ...]


class Distribution:
    """How values of one kind are distributed, for each class.

    Attributes:
        step: Width of a bin; bin b holds values from `b * step` on, the last also all above.
        counts: int64 [classes, bins].
    """

    def __init__(self, classes: int, step: float, bins: int, whole: bool = False):
        """See the class.

        Args:
            classes: How many there are, background included.
            step: Width of a bin.
            bins: How many there are.
            whole: Values are whole multiples of `step`, not anything between.
        """
        self.step = step
        self.counts = np.zeros((classes, bins), np.int64)
        self._sums = [0] * classes
        self._unit = 1 if whole else _UNIT
        self._middle = 0.0 if whole else 0.5

    def add(self, class_index: np.ndarray, steps: np.ndarray) -> None:
        """Count values, given in `step`s."""
        classes, bins = self.counts.shape
        bin_index = np.clip(steps, 0, bins - 1).astype(np.int64)
        flat = np.bincount(class_index * bins + bin_index, minlength=classes * bins)
        self.counts += flat.reshape(classes, bins)
        # Sums of whole numbers, which floats hold exactly up to 2**53.
        sums = np.bincount(class_index, np.rint(steps * self._unit), minlength=classes)
        self._sums = [a + int(b) for a, b in zip(self._sums, sums, strict=True)]

    def mean(self, class_index: int | None = None) -> float | None:
        """Of one class or all; None where there is no value."""
        counts, sums = self.counts.sum(axis=1).tolist(), self._sums
        if class_index is not None:
            counts, sums = (
                counts[class_index : class_index + 1],
                sums[class_index : class_index + 1],
            )
        return sum(sums) / (self._unit * sum(counts)) * self.step if sum(counts) else None

    def quantile(self, share: float, class_index: int | None = None) -> float | None:
        """The value below which a share of all values lie, as exactly as the bins are narrow.

        Args:
            share: 0 to 1; 0.5 for the median.
            class_index: One class, or None for all.

        Returns:
            None where there is no value.
        """
        counts = self.counts.sum(axis=0) if class_index is None else self.counts[class_index]
        up_to = np.cumsum(counts)
        if not up_to[-1]:
            return None
        # As numpy.quantile, between the two values nearest to that rank.
        rank = share * (int(up_to[-1]) - 1)
        below, above = np.searchsorted(up_to, [np.floor(rank), np.ceil(rank)], side="right")
        steps = below + (above - below) * (rank - np.floor(rank)) + self._middle
        return float(steps * self.step)


class Totals:
    """Counts, distributions, density map and gallery of a slide's nuclei.

    Attributes:
        frame: The analysed image.
        class_names: Names of the classes, background first.
        per_class: int64 [classes], nuclei.
        area_um2: In bins of 1 px.
        mean_od: In bins of 0.001.
        eccentricity: In bins of 0.001.
        cell: Side of a cell of the density map, px of the analysed image.
        density: int64 [rows, columns], how many centroids lie in each cell.
        largest: At most `GALLERY_SIZE`, largest area first, then by id.
        darkest: At most `GALLERY_SIZE`, highest mean optical density first, then by id.
    """

    def __init__(self, frame: Frame, class_names: Sequence[str]):
        """Begin with no nuclei."""
        classes = len(class_names)
        self.frame = frame
        self.class_names = tuple(class_names)
        self.per_class = np.zeros(classes, np.int64)
        self.area_um2 = Distribution(classes, frame.mpp**2, 1 << 16, whole=True)
        self.mean_od = Distribution(classes, 0.001, 1 << 12)
        self.eccentricity = Distribution(classes, 0.001, 1001)
        self.cell = max(
            -(-max(frame.width, frame.height) // _DENSITY_CELLS),
            math.ceil(_DENSITY_CELL_UM / frame.mpp),
        )
        self.density = np.zeros((-(-frame.height // self.cell), -(-frame.width // self.cell)), int)
        self.largest: list[Standout] = []
        self.darkest: list[Standout] = []

    def __len__(self) -> int:
        return int(self.per_class.sum())

    def add(self, table: NucleusTable) -> None:
        """Take the next nuclei into account.

        Raises:
            InputError: A measurement is not finite.
        """
        table.require_finite()
        if not len(table):
            return
        kinds = table.class_index.astype(np.int64)
        self.per_class += np.bincount(kinds, minlength=len(self.class_names))
        self.area_um2.add(kinds, table.area)
        self.mean_od.add(kinds, table.mean_od / self.mean_od.step)
        self.eccentricity.add(kinds, table.eccentricity / self.eccentricity.step)
        rows, columns = self.density.shape
        row = np.clip(table.y // self.cell, 0, rows - 1).astype(np.int64)
        column = np.clip(table.x // self.cell, 0, columns - 1).astype(np.int64)
        counted = np.bincount(row * columns + column, minlength=rows * columns)
        self.density += counted.reshape(rows, columns)
        self.largest = _highest(self.largest, table, table.area, "area")
        self.darkest = _highest(self.darkest, table, table.mean_od, "mean_od")


def _highest(
    known: list[Standout], table: NucleusTable, values: np.ndarray, name: str
) -> list[Standout]:
    order = np.lexsort((table.id, -values))[:GALLERY_SIZE]
    if len(known) == GALLERY_SIZE:
        order = order[values[order] >= getattr(known[-1], name)]
    candidates = known + [_standout(table, index) for index in order.tolist()]
    return sorted(candidates, key=lambda one: (-getattr(one, name), one.id))[:GALLERY_SIZE]


def _standout(table: NucleusTable, index: int) -> Standout:
    outlines = table.outlines
    first, last = outlines.nuclei[index : index + 2].tolist()
    ends = outlines.rings[first : last + 1].tolist()
    return Standout(
        id=int(table.id[index]),
        class_index=int(table.class_index[index]),
        x=float(table.x[index]),
        y=float(table.y[index]),
        area=int(table.area[index]),
        mean_od=float(table.mean_od[index]),
        bounds=tuple(table.bounds[index].tolist()),
        # Copies: a view would keep the points of the whole table.
        rings=tuple(outlines.points[start:end].copy() for start, end in itertools.pairwise(ends)),
    )
