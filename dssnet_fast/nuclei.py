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
    pixels = flat.nonzero()[0]
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


def _measure(
    instances: np.ndarray, labels: np.ndarray, probability: np.ndarray, count: int
) -> Nuclei:
    pixels = instances.ravel().nonzero()[0]
    owner = instances.ravel()[pixels] - 1
    row, column = np.divmod(pixels, instances.shape[1])

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=count)

    area = np.bincount(owner, minlength=count)
    bounds = _bounds(owner, row, column, count)
    # Moments about each nucleus's own corner: whole numbers small enough to be exact.
    dx, dy = column - bounds[owner, 0], row - bounds[owner, 1]
    mean_x, mean_y = total(dx) / area, total(dy) / area
    xx = total(dx * dx) / area - mean_x**2
    yy = total(dy * dy) / area - mean_y**2
    xy = total(dx * dy) / area - mean_x * mean_y
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    longest = (xx + yy + spread) / 2
    shortest = np.clip((xx + yy - spread) / 2, 0, None)
    ratio = np.divide(shortest, longest, out=np.ones(count), where=longest > 0)

    mean_probability = total(probability.ravel()[pixels]) / area
    if not np.isfinite(mean_probability).all():
        raise InputError("find_nuclei: probability must be finite")
    first = np.zeros(count, np.int64)
    first[owner[::-1]] = pixels[::-1]
    return Nuclei(
        instances=instances,
        class_index=labels.ravel()[first],
        area=area,
        perimeter=_perimeters(instances, count),
        eccentricity=np.sqrt(np.clip(1 - ratio, 0, 1)),
        x=bounds[:, 0] + mean_x + 0.5,
        y=bounds[:, 1] + mean_y + 0.5,
        mean_probability=mean_probability,
        bounds=bounds,
    )


def _bounds(owner: np.ndarray, row: np.ndarray, column: np.ndarray, count: int) -> np.ndarray:
    bounds = np.zeros((count, 4), np.int64)
    # Pixels come row by row. Of several assignments to one place the last stays, so the rows of
    # a nucleus's first and last pixel are found by assigning backwards and forwards.
    bounds[owner[::-1], 1] = row[::-1]
    bounds[owner, 3] = row + 1
    order = np.argsort(column, kind="stable")
    bounds[owner[order[::-1]], 0] = column[order[::-1]]
    bounds[owner[order], 2] = column[order] + 1
    return bounds


def _perimeters(instances: np.ndarray, count: int) -> np.ndarray:
    padded = np.pad(instances, 1)
    stride = padded.shape[1]
    flat = padded.ravel()
    direct = (-stride, -1, 1, stride)
    diagonal = (-stride - 1, -stride + 1, stride - 1, stride + 1)

    pixels = flat.nonzero()[0]
    own = flat[pixels]
    inner = np.ones(len(pixels), bool)
    for step in direct:
        inner &= flat[pixels + step] == own
    border, own = pixels[~inner], own[~inner]
    on_border = np.zeros_like(flat)
    on_border[border] = own

    def neighbours(steps: tuple[int, ...]) -> np.ndarray:
        return sum((on_border[border + step] == own).astype(np.intp) for step in steps)

    weights = _PERIMETER_WEIGHTS[neighbours(direct), neighbours(diagonal)]
    return np.bincount(own - 1, weights=weights, minlength=count)
