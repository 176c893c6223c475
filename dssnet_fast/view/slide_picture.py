"""A slide as DeepZoom tiles and crops, in the colours it was scanned in."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.tiling import Box
from dssnet_fast.view.deepzoom import DeepZoom
from dssnet_fast.view.memory import Memory

if TYPE_CHECKING:
    from PIL import Image

    from dssnet_fast.slides.slide import Slide

JPEG_QUALITY = 85
# Regions of a level with longer sides than so many tiles are put together of finer tiles, so
# that a slide with few levels does not have to fit into memory.
_TILES_AT_ONCE = 4
_KEPT_BYTES = 64 << 20
# Two levels count as the same if their px differ by less than this over the slide's width.
_SAME = 1.01
# Px of the level around a region, which resizing weighs in.
_MARGIN_PX = 4
_PAPER = (242, 242, 244)
_HATCH = (205, 120, 120)


class SlidePicture:
    """Tiles and crops of a slide. May be used from several threads.

    Args:
        slide: The slide; `close` closes it.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        finest = slide.levels[0]
        self.pyramid = DeepZoom(finest.width, finest.height)
        self._memory: Memory[Image.Image] = Memory(
            _KEPT_BYTES, lambda tile: 3 * tile.width * tile.height
        )

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """A tile of the pyramid as a JPEG; None if there is no such tile.

        What the slide cannot give is hatched.
        """
        picture = self._tile(level, column, row)
        return None if picture is None else _jpeg(picture)

    def crop(self, x: float, y: float, size: float, side: int) -> bytes:
        """A square around a point as a JPEG.

        Args:
            x: Of the point, px of the finest level.
            y: Of the point, px of the finest level.
            size: Of the square, px of the finest level.
            side: Of the picture, px.
        """
        from PIL import Image

        picture = Image.new("RGB", (side, side), _PAPER)
        scale = side / size
        left, top = x - size / 2, y - size / 2
        # The part of the square that the slide holds, and where it lies in the picture.
        region = (
            max(left, 0.0),
            max(top, 0.0),
            min(left + size, float(self.pyramid.width)),
            min(top + size, float(self.pyramid.height)),
        )
        if region[0] < region[2] and region[1] < region[3]:
            place = (round((region[0] - left) * scale), round((region[1] - top) * scale))
            wanted = (
                max(round((region[2] - left) * scale) - place[0], 1),
                max(round((region[3] - top) * scale) - place[1], 1),
            )
            picture.paste(self._read(region, wanted), place)
        return _jpeg(picture)

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def _tile(self, level: int, column: int, row: int) -> Image.Image | None:
        from PIL import Image

        box = self.pyramid.box(level, column, row)
        if box is None:
            return None
        step = self.pyramid.step(level)
        if step <= _TILES_AT_ONCE * self._slide.levels[self._best(step)].downsample * _SAME:
            region = (
                box.left * step,
                box.top * step,
                min(box.right * step, self.pyramid.width),
                min(box.bottom * step, self.pyramid.height),
            )
            return self._read(region, (box.width, box.height))

        def compose() -> Image.Image:
            side = self.pyramid.tile
            finer = Image.new("RGB", (2 * box.width, 2 * box.height), _PAPER)
            for down in (0, 1):
                for across in (0, 1):
                    part = self._tile(level + 1, 2 * column + across, 2 * row + down)
                    if part is not None:
                        finer.paste(part, (across * side, down * side))
            return finer.reduce(2)

        return self._memory.get((level, column, row), compose)

    def _best(self, step: float) -> int:
        """The coarsest level that is not coarser than `step`."""
        return max(
            index
            for index, level in enumerate(self._slide.levels)
            if index == 0 or level.downsample <= step * _SAME
        )

    def _read(
        self, region: tuple[float, float, float, float], size: tuple[int, int]
    ) -> Image.Image:
        """A region (left, top, right, bottom) of the finest level, px, resized to `size`."""
        from PIL import Image

        index = self._best((region[2] - region[0]) / size[0])
        level = self._slide.levels[index]
        across, down = level.width / self.pyramid.width, level.height / self.pyramid.height
        left, top, right, bottom = (
            region[0] * across,
            region[1] * down,
            region[2] * across,
            region[3] * down,
        )
        box = Box(
            max(int(top) - _MARGIN_PX, 0),
            max(int(left) - _MARGIN_PX, 0),
            min(math.ceil(bottom) + _MARGIN_PX, level.height),
            min(math.ceil(right) + _MARGIN_PX, level.width),
        )
        try:
            pixels = self._slide.read(index, box)
        except (InputError, OSError):
            return _hatched(size)
        return Image.fromarray(pixels).resize(
            size,
            Image.Resampling.BILINEAR,
            (
                left - box.left,
                top - box.top,
                min(right - box.left, box.width),
                min(bottom - box.top, box.height),
            ),
        )


def plain(size: tuple[int, int]) -> bytes:
    """A JPEG of nothing, for slides that are gone."""
    from PIL import Image

    return _jpeg(Image.new("RGB", size, _PAPER))


def _hatched(size: tuple[int, int]) -> Image.Image:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    for start in range(-size[1], size[0], 24):
        draw.line((start, size[1], start + size[1], 0), _HATCH, 3)
    return picture


def _jpeg(picture: Image.Image) -> bytes:
    made = io.BytesIO()
    picture.save(made, "JPEG", quality=JPEG_QUALITY)
    return made.getvalue()
