"""From a class map to single nuclei: instances, measurements and exact outlines.

One coordinate system for everything: x to the right, y down, in px, and pixel (row r, column c)
is the square from (c, r) to (c + 1, r + 1), as in QuPath. So the centre of the first pixel is
(0.5, 0.5), and an outline encloses as much area as its nucleus has pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dssnet_fast.python_ref.errors import InputError

# Steps along pixel edges, clockwise on the screen: right, down, left, up. A nucleus lies to the
# right of its edges.
_STEP_X = np.array([1, 0, -1, 0])
_STEP_Y = np.array([0, 1, 0, -1])

# How much a border pixel adds to the perimeter, by its number of direct and of diagonal
# neighbours that are border pixels as well (skimage.measure.perimeter with neighborhood=4, after
# Benkrid and Crookes: "Design and FPGA implementation of a perimeter estimator", 2000).
_PERIMETER_WEIGHTS = np.zeros((5, 5))
_PERIMETER_WEIGHTS[[2, 2, 2, 3, 3, 3], [0, 1, 2, 0, 1, 2]] = 1
_PERIMETER_WEIGHTS[[0, 1], [2, 3]] = np.sqrt(2)
_PERIMETER_WEIGHTS[[1, 1], [1, 2]] = (1 + np.sqrt(2)) / 2


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


def find_nuclei(labels: np.ndarray, probability: np.ndarray, min_area: int = 15) -> Nuclei:
    """Separate and measure the nuclei of a segmented image.

    A nucleus is a set of pixels of one class that are connected through their sides (not only
    their corners), so that its outline is a single polygon.

    Args:
        labels: uint8 [H, W], the class of each pixel, 0 for background.
        probability: float32 [H, W], the probability of that class.
        min_area: Nuclei of fewer pixels are dropped.

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
    if min_area < 0:
        raise InputError(f"find_nuclei: min_area must be 0 or more, got {min_area}")
    from skimage.measure import label

    instances = label(labels, background=0, connectivity=1)
    areas = np.bincount(instances.ravel())
    areas[0] = 0
    kept = (areas >= max(min_area, 1)).nonzero()[0]
    new_ids = np.zeros(len(areas), np.int32)
    new_ids[kept] = np.arange(1, len(kept) + 1, dtype=np.int32)
    instances = new_ids[instances]
    return _measure(instances, labels, probability, len(kept))


def outlines(instances: np.ndarray) -> list[list[np.ndarray]]:
    """The exact outlines of all instances of a map, along the edges of their pixels.

    Args:
        instances: integer [H, W], 0 for background; the ids are 1 to N, and the pixels of each
            are connected through their sides.

    Returns:
        For each id in order its rings, the exterior first, then holes. A ring is int64
        [corners + 1, 2] of (x, y) in px, closed, without points on straight lines. Exteriors have
        positive area by the shoelace formula, holes negative (the orientation RFC 7946 asks for).
        Each is one valid polygon: no ring touches itself, and rings meet at single points at most.
    """
    count = int(instances.max(initial=0))
    found: list[list[np.ndarray]] = [[] for _ in range(count)]
    if not count:
        return found
    # A margin of background lets every edge and neighbour be looked up without special cases.
    padded = np.pad(instances, 1)
    stride = padded.shape[1]
    flat = padded.ravel()

    # An edge is 4 * pixel + direction. Beyond the top edge of a pixel (direction 0) lies the pixel
    # above, beyond its right edge (1) the one to the right, and so on.
    beyond = np.array([-stride, 1, stride, -1])
    ahead = np.array([1, stride, -1, -stride])
    pixels = np.pad(border(instances), 1).ravel().nonzero()[0]
    edges = np.concatenate(
        [
            4 * pixels[flat[pixels + beyond[direction]] != flat[pixels]] + direction
            for direction in range(4)
        ]
    )
    edges.sort()
    pixel, direction = edges >> 2, edges & 3

    # The next edge turns left onto the pixel diagonally ahead if that belongs to the nucleus, goes
    # straight on along the pixel ahead if that does, and otherwise turns right around its own
    # pixel. Looking diagonally first joins corners that touch: the background between them is then
    # two rings that meet at a point, not one ring that crosses itself.
    straight = pixel + ahead[direction]
    diagonal = straight + beyond[direction]
    follow = np.where(
        flat[diagonal] == flat[pixel],
        4 * diagonal + ((direction - 1) & 3),
        np.where(
            flat[straight] == flat[pixel],
            4 * straight + direction,
            4 * pixel + ((direction + 1) & 3),
        ),
    )
    following = np.searchsorted(edges, follow)
    order, starts = _cycles(following)

    pixel, direction = pixel[order], direction[order]
    lengths = np.diff(np.append(starts, len(order)))
    ring = np.repeat(np.arange(len(starts)), lengths)
    before = np.arange(len(order)) - 1
    before[starts] = starts + lengths - 1
    corner = direction != direction[before]
    pixel, direction, ring = pixel[corner], direction[corner], ring[corner]
    # An edge begins, clockwise, at its pixel's top left, top right, bottom right or bottom left.
    # (The margin moved pixels by one.)
    x = pixel % stride - 1 + np.isin(direction, (1, 2))
    y = pixel // stride - 1 + (direction >= 2)
    points = np.stack([x, y], axis=1)

    first = np.searchsorted(ring, np.arange(len(starts)))
    owners = flat[pixel[first]].tolist()
    for owner, part in zip(owners, np.split(points, first[1:]), strict=True):
        closed = np.concatenate([part, part[:1]])
        # The exterior begins at the topmost leftmost pixel's top edge. It is found first, for
        # edges are sorted by pixel; what follows are holes.
        found[owner - 1].append(closed)
    return found


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a permutation into its cycles.

    Returns:
        order: int64 [E], all elements, each cycle from its smallest element on; cycles by that.
        starts: int64, where in `order` each cycle begins.
    """
    steps = following.tolist()
    seen = bytearray(len(steps))
    order: list[int] = []
    starts: list[int] = []
    for first in range(len(steps)):
        if seen[first]:
            continue
        starts.append(len(order))
        at = first
        while not seen[at]:
            seen[at] = 1
            order.append(at)
            at = steps[at]
    return np.array(order, np.int64), np.array(starts, np.int64)


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


def _measure(
    instances: np.ndarray, labels: np.ndarray, probability: np.ndarray, count: int
) -> Nuclei:
    # Row by row in runs of pixels of one nucleus: much fewer than pixels, and sums over a run have
    # closed forms. Columns `start` to `end`, excluded.
    row, start, end = _runs(instances)
    owner = instances[row, start] - 1
    length = end - start

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=count)

    area = total(length).astype(np.int64)
    bounds = _bounds(owner, row, start, end, count)
    # Moments about each nucleus's own corner: whole numbers small enough to be exact.
    first, last, dy = start - bounds[owner, 0], end - 1 - bounds[owner, 0], row - bounds[owner, 1]
    sum_x = (first + last) * length // 2
    mean_x, mean_y = total(sum_x) / area, total(dy * length) / area
    xx = total(_sum_of_squares(last) - _sum_of_squares(first - 1)) / area - mean_x**2
    yy = total(dy * dy * length) / area - mean_y**2
    xy = total(dy * sum_x) / area - mean_x * mean_y
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    longest = (xx + yy + spread) / 2
    shortest = np.clip((xx + yy - spread) / 2, 0, None)
    ratio = np.divide(shortest, longest, out=np.ones(count), where=longest > 0)

    mean_probability = total(_run_sums(probability, row, start, end)) / area
    if not np.isfinite(mean_probability).all():
        raise InputError("find_nuclei: probability must be finite")
    class_index = np.zeros(count, np.uint8)
    class_index[owner] = labels[row, start]
    return Nuclei(
        instances=instances,
        class_index=class_index,
        area=area,
        perimeter=_perimeters(instances, count),
        eccentricity=np.sqrt(np.clip(1 - ratio, 0, 1)),
        x=bounds[:, 0] + mean_x + 0.5,
        y=bounds[:, 1] + mean_y + 0.5,
        mean_probability=mean_probability,
        bounds=bounds,
    )


def _runs(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column and column after the last of each run of one nucleus, in raster order."""
    height, width = instances.shape
    changes = np.ones((height, width + 1), bool)
    changes[:, 1:-1] = instances[:, 1:] != instances[:, :-1]
    row, column = changes.nonzero()
    # From one change in a row to the next; the last change is the row's end.
    row, start, end = row[:-1], column[:-1], column[1:]
    kept = start < width
    row, start, end = row[kept], start[kept], end[kept]
    kept = instances[row, start] > 0
    return row[kept], start[kept], end[kept]


def _run_sums(
    values: np.ndarray, row: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """float64, the sum of `values` [H, W] over each run."""
    width = values.shape[1]
    ends = np.stack([row * width + start, row * width + end], axis=1).ravel()
    if not len(ends):
        return np.zeros(0)
    # Every second sum is that of the gap to the next run. There is none after the last pixel.
    if ends[-1] == values.size:
        ends = ends[:-1]
    return np.add.reduceat(values.ravel(), ends, dtype=np.float64)[::2]


def _sum_of_squares(last: np.ndarray) -> np.ndarray:
    """0 + 1 + 4 + ... + last**2."""
    return last * (last + 1) * (2 * last + 1) // 6


def _bounds(
    owner: np.ndarray, row: np.ndarray, start: np.ndarray, end: np.ndarray, count: int
) -> np.ndarray:
    bounds = np.zeros((count, 4), np.int64)
    bounds[:, :2] = np.iinfo(np.int64).max
    np.minimum.at(bounds[:, 0], owner, start)
    np.minimum.at(bounds[:, 1], owner, row)
    np.maximum.at(bounds[:, 2], owner, end)
    np.maximum.at(bounds[:, 3], owner, row + 1)
    return bounds


def _perimeters(instances: np.ndarray, count: int) -> np.ndarray:
    # With a margin, so that every pixel has all its neighbours.
    on_border = np.pad(np.where(border(instances), instances, 0), 1)
    stride = on_border.shape[1]
    flat = on_border.ravel()
    pixels = flat.nonzero()[0]
    own = flat[pixels]

    def neighbours(steps: tuple[int, ...]) -> np.ndarray:
        return sum((flat[pixels + step] == own).astype(np.intp) for step in steps)

    direct = neighbours((-stride, -1, 1, stride))
    diagonal = neighbours((-stride - 1, -stride + 1, stride - 1, stride + 1))
    return np.bincount(own - 1, weights=_PERIMETER_WEIGHTS[direct, diagonal], minlength=count)
