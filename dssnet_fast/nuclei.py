"""From a class map to single nuclei: instances, measurements and exact outlines.

One coordinate system for everything: x to the right, y down, in px, and pixel (row r, column c)
is the square from (c, r) to (c + 1, r + 1), as in QuPath. So the centre of the first pixel is
(0.5, 0.5), and an outline encloses as much area as its nucleus has pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dssnet_fast import contours
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.runs import Runs, connect, find_runs, run_sums
from dssnet_fast.separate import divide

# Probabilities are summed as whole multiples of 1 / PROBABILITY_UNITS: exact, in whatever order.
PROBABILITY_UNITS = 2**24


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of one image. Arrays of length N are in the order of the ids, 1 to N.

    Attributes:
        instances: int32 [H, W], 0 for background, otherwise the id of the pixel's nucleus. Ids
            are given in the order of the nuclei's first pixels, row by row.
        class_index: uint8 [N], the class, 1 or more.
        area: int64 [N], pixels.
        perimeter: float64 [N], px, as `skimage.measure.perimeter` estimates it.
        eccentricity: float64 [N], of the ellipse with the same second moments; 0 for a circle,
            towards 1 for a line.
        x: float64 [N], centroid, px.
        y: float64 [N], centroid, px.
        mean_probability: float64 [N], mean over the nucleus of its class's probability.
        bounds: int64 [N, 4], (left, top, right, bottom) in px, right and bottom excluded.
    """

    instances: np.ndarray
    class_index: np.ndarray
    area: np.ndarray
    perimeter: np.ndarray
    eccentricity: np.ndarray
    x: np.ndarray
    y: np.ndarray
    mean_probability: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.area)


def find_nuclei(
    labels: np.ndarray,
    probability: np.ndarray,
    min_area: int = 15,
    levels: np.ndarray | None = None,
) -> Nuclei:
    """Find and measure the nuclei of a segmented image.

    A nucleus is a set of pixels of one class that are connected through their sides (not only
    their corners), so that its outline is a single polygon.

    Args:
        labels: uint8 [H, W], the class of each pixel, 0 for background.
        probability: float32 [H, W], the probability of that class.
        min_area: Nuclei of fewer pixels are dropped.
        levels: uint8 [H, W], by which nuclei that touch are told apart, see
            `dssnet_fast.separate`; None to take each connected part for one nucleus.

    Raises:
        InputError: Shapes or types are wrong, `min_area` is negative, or a nucleus has a
            probability that is not finite.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise InputError(
            f"find_nuclei: labels must be uint8 [H, W], got {labels.dtype} {list(labels.shape)}"
        )
    if probability.shape != labels.shape:
        raise InputError(
            f"find_nuclei: probability must have the shape of labels, {list(labels.shape)}, "
            f"got {list(probability.shape)}"
        )
    if levels is not None and (levels.shape != labels.shape or levels.dtype != np.uint8):
        raise InputError(
            f"find_nuclei: levels must be uint8 {list(labels.shape)} as labels, "
            f"got {levels.dtype} {list(levels.shape)}"
        )
    if min_area < 0:
        raise InputError(f"find_nuclei: min_area must be 0 or more, got {min_area}")
    height, width = labels.shape
    runs = find_runs(labels, levels)
    nucleus = connect(runs)
    if levels is not None:
        runs, nucleus = divide(runs, levels[runs.row, runs.start], nucleus).joined()
    area = np.bincount(nucleus, weights=runs.length).astype(np.int64)
    kept = area >= min_area
    ids = np.where(kept, np.cumsum(kept), 0)
    runs, nucleus = runs[kept[nucleus]], ids[nucleus[kept[nucleus]]]

    canvas = contours.Canvas(0, height, 0, width)
    places = canvas.paint(runs, nucleus)
    count = int(kept.sum())
    shape = measure(runs, nucleus - 1, count)
    flat = places - canvas.places(np.zeros(1, int), np.zeros(1, int))
    pixels = flat // canvas.stride * width + flat % canvas.stride
    probabilities = run_sums(probability_units(probability.ravel()[pixels]), runs.length)
    return Nuclei(
        instances=canvas.dense(),
        class_index=shape.class_index,
        area=shape.area,
        perimeter=contours.perimeters(canvas, contours.border(canvas, places), count),
        eccentricity=shape.eccentricity,
        x=shape.x,
        y=shape.y,
        mean_probability=total(probabilities, nucleus - 1, count)
        / (shape.area * PROBABILITY_UNITS),
        bounds=shape.bounds,
    )


def outlines(instances: np.ndarray) -> contours.Outlines:
    """The exact outlines of all instances of a map.

    Args:
        instances: integer [H, W], 0 for background; the ids are 1 to N, and the pixels of each
            are connected through their sides.
    """
    height, width = instances.shape
    canvas = contours.Canvas(0, height, 0, width)
    rows, columns = instances.nonzero()
    places = canvas.places(rows, columns)
    canvas.ids[places] = instances[rows, columns]
    tracer = contours.Tracer()
    tracer.add(canvas, contours.border(canvas, places))
    return tracer.outlines(int(instances.max(initial=0)))


def border(instances: np.ndarray) -> np.ndarray:
    """Pixels of nuclei with a side to another nucleus, to background or to the outside.

    Args:
        instances: integer [H, W], 0 for background.

    Returns:
        bool [H, W].
    """
    found = np.zeros(instances.shape, bool)
    found[[0, -1]] = found[:, [0, -1]] = True
    for axis in (0, 1):
        ahead, behind = (np.s_[1:], np.s_[:-1]) if axis == 0 else (np.s_[:, 1:], np.s_[:, :-1])
        differs = instances[ahead] != instances[behind]
        found[ahead] |= differs
        found[behind] |= differs
    return found & (instances != 0)


def probability_units(probability: np.ndarray) -> np.ndarray:
    """Probabilities as int64 multiples of 1 / `PROBABILITY_UNITS`.

    Raises:
        InputError: One is not finite.
    """
    if not np.isfinite(probability).all():
        raise InputError("find_nuclei: probability must be finite")
    return np.rint(probability * np.float32(PROBABILITY_UNITS)).astype(np.int64)


def total(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """float64 [count], exact sums of whole numbers by owner."""
    return np.bincount(owner, weights=values, minlength=count)


@dataclass(frozen=True)
class Shapes:
    """What the pixels' places tell of N nuclei; attributes as those of `Nuclei`."""

    class_index: np.ndarray
    area: np.ndarray
    x: np.ndarray
    y: np.ndarray
    eccentricity: np.ndarray
    bounds: np.ndarray


def measure(runs: Runs, owner: np.ndarray, count: int) -> Shapes:
    """Measure nuclei.

    Args:
        runs: Their pixels.
        owner: int64 [R], which nucleus each run belongs to, from 0 on.
        count: How many there are; each has a run.
    """
    length = runs.length
    area = total(length, owner, count).astype(np.int64)
    bounds = _bounds(runs, owner, count)
    # Moments about each nucleus's own corner: whole numbers small enough to be exact. Sums over a
    # run have closed forms.
    first, last = runs.start - bounds[owner, 0], runs.end - 1 - bounds[owner, 0]
    dy = runs.row - bounds[owner, 1]
    sum_x = (first + last) * length // 2
    squares = _sum_of_squares(last) - _sum_of_squares(first - 1)
    mean_x, mean_y = total(sum_x, owner, count) / area, total(dy * length, owner, count) / area
    xx = total(squares, owner, count) / area - mean_x**2
    yy = total(dy * dy * length, owner, count) / area - mean_y**2
    xy = total(dy * sum_x, owner, count) / area - mean_x * mean_y
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    longest = (xx + yy + spread) / 2
    shortest = np.clip((xx + yy - spread) / 2, 0, None)
    ratio = np.divide(shortest, longest, out=np.ones(count), where=longest > 0)
    class_index = np.zeros(count, np.uint8)
    class_index[owner] = runs.label
    return Shapes(
        class_index=class_index,
        area=area,
        x=bounds[:, 0] + mean_x + 0.5,
        y=bounds[:, 1] + mean_y + 0.5,
        eccentricity=np.sqrt(np.clip(1 - ratio, 0, 1)),
        bounds=bounds,
    )


def _sum_of_squares(last: np.ndarray) -> np.ndarray:
    """0 + 1 + 4 + ... + last**2."""
    return last * (last + 1) * (2 * last + 1) // 6


def _bounds(runs: Runs, owner: np.ndarray, count: int) -> np.ndarray:
    bounds = np.zeros((count, 4), np.int64)
    bounds[:, :2] = np.iinfo(np.int64).max
    np.minimum.at(bounds[:, 0], owner, runs.start)
    np.minimum.at(bounds[:, 1], owner, runs.row)
    np.maximum.at(bounds[:, 2], owner, runs.end)
    np.maximum.at(bounds[:, 3], owner, runs.row + 1)
    return bounds
