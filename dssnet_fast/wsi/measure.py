"""Measuring nuclei from their runs, however many, wherever they lie and however large they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dssnet_fast import contours
from dssnet_fast.contours import Canvas, Outlines, Tracer
from dssnet_fast.nuclei import PROBABILITY_UNITS, measure, total
from dssnet_fast.runs import Runs, expand
from dssnet_fast.wsi.results import NucleusTable

# Pixels of a canvas, at most.
_CANVAS_PX = 1 << 24
# A perimeter's weights look at borders one row away, and these at ids one row further: as many
# rows as a canvas has in its margin.
_CONTEXT_ROWS = 2


class OpticalDensity:
    """Optical densities as whole numbers, so that sums of them are exact.

    The density of a value I is -log10(I / glass), at least 0; a 0 counts as 1.

    Args:
        glass: For each colour the value that light has that met nothing but glass.
    """

    UNITS = 10_000

    def __init__(self, glass: Sequence[float]) -> None:
        values = np.maximum(np.arange(256), 1)
        density = np.log10(np.maximum(np.asarray(glass, float), 1)[:, None] / values)
        self._tables = np.rint(np.clip(density, 0, None) * self.UNITS).astype(np.int64)

    def units(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [P, colours] to int64 [P]: densities, summed over the colours, times `UNITS`."""
        return sum(table[pixels[:, at]] for at, table in enumerate(self._tables))


def measure_nuclei(
    runs: Runs, owner: np.ndarray, count: int, probability: np.ndarray, density: np.ndarray
) -> NucleusTable:
    """Everything that is measured of nuclei.

    Args:
        runs: Their pixels, by rows, then columns.
        owner: int64 [R], which nucleus each run belongs to, from 0 on.
        count: How many there are; each has a run.
        probability: int64 [R], sums over each run in `nuclei.PROBABILITY_UNITS`.
        density: int64 [R], sums over each run in `OpticalDensity.UNITS`, over three colours.
    """
    shapes = measure(runs, owner, count)
    perimeter, outlines = _trace(runs, owner, shapes.bounds)
    integrated = total(density, owner, count) / (3 * OpticalDensity.UNITS)
    return NucleusTable(
        id=np.zeros(count, np.int64),
        class_index=shapes.class_index,
        x=shapes.x,
        y=shapes.y,
        area=shapes.area,
        perimeter=perimeter,
        eccentricity=shapes.eccentricity,
        solidity=shapes.area / _hull_areas(outlines),
        mean_probability=total(probability, owner, count) / (shapes.area * PROBABILITY_UNITS),
        mean_od=integrated / shapes.area,
        integrated_od=integrated,
        bounds=shapes.bounds,
        outlines=outlines,
    )


def _hull_areas(outlines: Outlines) -> np.ndarray:
    import shapely

    exterior = outlines.nuclei[:-1]
    begin = outlines.rings[exterior]
    nucleus, point = expand(begin, outlines.rings[exterior + 1] - begin)
    rings = shapely.linearrings(outlines.points[point].astype(float), indices=nucleus)
    return shapely.area(shapely.convex_hull(rings))


def _trace(runs: Runs, owner: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, Outlines]:
    """Perimeters, float64 [N], and outlines."""
    count = len(bounds)
    if not count:
        return np.zeros(0), Tracer().outlines(0)
    left, top = bounds[:, :2].min(axis=0)
    right, bottom = bounds[:, 2:].max(axis=0)
    if (right - left) * (bottom - top) <= _CANVAS_PX:
        return _trace_on_canvas(runs, owner + 1, count, (top, bottom, left, right))
    # Far apart: they are moved one below the other on as many canvases as it takes.
    perimeter = np.zeros(count)
    parts, order = [], []
    by_owner = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[by_owner], np.arange(count + 1))
    for group in _stacks(bounds):
        height = bounds[group, 3] - bounds[group, 1]
        width = int((bounds[group, 2] - bounds[group, 0]).max())
        place = np.cumsum(height + 1) - height - 1
        which, run = expand(first[group], first[group + 1] - first[group])
        run = by_owner[run]
        shift = np.stack([bounds[group, 0], bounds[group, 1] - place], axis=1)
        moved = Runs(
            runs.row[run] - shift[which, 1],
            runs.start[run] - shift[which, 0],
            runs.end[run] - shift[which, 0],
            runs.label[run],
        )
        lengths, outlines = _trace_on_canvas(
            moved, which + 1, len(group), (0, int(place[-1] + height[-1]), 0, width)
        )
        perimeter[group] = lengths
        points = np.diff(outlines.rings[outlines.nuclei])
        back = np.repeat(shift, points, axis=0).astype(np.int32)
        parts.append(Outlines(outlines.points + back, outlines.rings, outlines.nuclei))
        order.append(group)
    place_of = np.argsort(np.concatenate(order), kind="stable")
    return perimeter, contours.join_outlines(parts)[place_of]


def _stacks(bounds: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of nuclei of similar width that fit on a canvas together; larger ones alone."""
    width, height = bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]
    group: list[int] = []
    rows = 0
    for at in np.argsort(width, kind="stable").tolist():
        if group and (rows + height[at] + 1) * width[at] > _CANVAS_PX:
            yield np.array(group)
            group, rows = [], 0
        group.append(at)
        rows += int(height[at]) + 1
    yield np.array(group)


def _trace_on_canvas(
    runs: Runs, ids: np.ndarray, count: int, area: tuple[int, int, int, int]
) -> tuple[np.ndarray, Outlines]:
    top, bottom, left, right = (int(edge) for edge in area)
    perimeter = np.zeros(count)
    tracer = Tracer()
    step = max(_CANVAS_PX // (right - left), 1)
    for begin in range(top, bottom, step):
        end = min(begin + step, bottom)
        seen = (runs.row >= begin - _CONTEXT_ROWS) & (runs.row < end + _CONTEXT_ROWS)
        canvas = Canvas(begin, end, left, right)
        places = canvas.paint(runs[seen], ids[seen])
        rows = canvas.rows_of(places)
        on_border = contours.border(canvas, places[(rows >= begin - 1) & (rows <= end)])
        rows = canvas.rows_of(on_border)
        counted = on_border[(rows >= begin) & (rows < end)]
        perimeter += contours.perimeters(canvas, on_border, count, counted)
        tracer.add(canvas, counted)
    return perimeter, tracer.outlines(count)
