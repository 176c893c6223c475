"""How a large image is cut into tiles whose joined results equal the whole image's.

Integers only: no pixels and no network here.
"""

from __future__ import annotations

from dataclasses import dataclass

from dssnet_fast.python_ref.errors import InputError


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels: rows `top` to `bottom`, columns `left` to `right`, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width

    def around(self, context: int, outer: Box) -> Box:
        """This box and `context` px to each side, as far as `outer` goes."""
        return Box(
            max(self.top - context, outer.top),
            max(self.left - context, outer.left),
            min(self.bottom + context, outer.bottom),
            min(self.right + context, outer.right),
        )

    def rounded_out(self, multiple: int) -> Box:
        """The smallest box around this one whose edges are multiples of `multiple`."""
        top, left = (edge // multiple * multiple for edge in (self.top, self.left))
        return Box(top, left, _up(self.bottom, multiple), _up(self.right, multiple))

    def moved(self, down: int, right: int) -> Box:
        """This box so many pixels further."""
        return Box(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def seen_from(self, outer: Box) -> Box:
        """This box where `outer` begins at row 0 and column 0."""
        return self.moved(-outer.top, -outer.left)

    def within(self, outer: Box) -> tuple[slice, slice]:
        """The (rows, columns) of an array holding `outer` at which this box lies."""
        seen = self.seen_from(outer)
        return slice(seen.top, seen.bottom), slice(seen.left, seen.right)


@dataclass(frozen=True)
class Tile:
    """One tile of an image.

    Attributes:
        core: The pixels whose result this tile gives. The cores of a plan cover the image, each
            pixel once.
        read: The pixels the network must see for that: the core and its context, as far as the
            image goes.
    """

    core: Box
    read: Box


def plan(height: int, width: int, tile: int, context: int, multiple: int = 8) -> list[Tile]:
    """Cut an image into tiles, row by row.

    The network pads an image at its bottom and right to a multiple of 8 and computes on a grid of
    8 x 8 px cells. So that a tile's cells are the image's own, tiles begin at multiples of
    `multiple`; so that the padding is the image's own, a tile ends at a multiple of it or exactly
    where the image ends. Tiles of an axis are as equal as this allows: an image a little larger
    than a tile becomes two halves, not a tile and a sliver.

    Args:
        height: Height of the image, px.
        width: Width of the image, px.
        tile: Largest side of a core, px; a positive multiple of `multiple`.
        context: Pixels around a core that its result depends on; rounded up to `multiple`.
        multiple: The network's grid, px.

    Returns:
        The tiles. An image no larger than `tile` is one tile.

    Raises:
        InputError: An argument is not a whole number or out of its range.
    """
    for name, value, least in (
        ("height", height, 1),
        ("width", width, 1),
        ("context", context, 0),
        ("multiple", multiple, 1),
        ("tile", tile, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(
                f"plan: {name} must be a whole number of at least {least}, got {value!r}"
            )
    if tile % multiple:
        raise InputError(f"plan: tile must be a multiple of {multiple}, got {tile}")
    context = _up(context, multiple)
    rows, columns = spans(height, tile, multiple), spans(width, tile, multiple)
    cores = [Box(top, left, bottom, right) for top, bottom in rows for left, right in columns]
    return [Tile(core, core.around(context, Box(0, 0, height, width))) for core in cores]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def spans(length: int, tile: int, multiple: int) -> list[tuple[int, int]]:
    """Cut an axis into parts of at most `tile`, as equal as multiples of `multiple` can be."""
    parts = -(-length // tile)
    step = _up(-(-length // parts), multiple)
    return [(start, min(start + step, length)) for start in range(0, length, step)]
