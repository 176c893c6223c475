"""The geometry of DeepZoom pyramids: an image halved again and again, each level cut into tiles.

Integers only: no pixels here.
"""

from __future__ import annotations

from dataclasses import dataclass

from dssnet_fast.tiling import Box

TILE_PX = 512


@dataclass(frozen=True)
class DeepZoom:
    """The pyramid of an image. Level `last` is the image itself, level 0 is 1 px.

    Attributes:
        width: Of the image, px.
        height: Of the image, px.
        tile: Side of the tiles, px; those at the right and the bottom end with the image.
    """

    width: int
    height: int
    tile: int = TILE_PX

    @property
    def last(self) -> int:
        """The level of full size."""
        return (max(self.width, self.height) - 1).bit_length()

    def step(self, level: int) -> int:
        """Px of the image per px of a level."""
        return 1 << (self.last - level)

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level, px."""
        step = self.step(level)
        return -(-self.width // step), -(-self.height // step)

    def box(self, level: int, column: int, row: int) -> Box | None:
        """The px of a level that a tile holds; None if there is no such tile or level."""
        if not 0 <= level <= self.last or column < 0 or row < 0:
            return None
        width, height = self.size(level)
        left, top = column * self.tile, row * self.tile
        if left >= width or top >= height:
            return None
        return Box(top, left, min(top + self.tile, height), min(left + self.tile, width))
