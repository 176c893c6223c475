"""The nuclei of a slide as transparent tiles, in the colours of their classes."""

from __future__ import annotations

import io
from collections.abc import Collection

import numpy as np

from dssnet_fast.nuclei import border
from dssnet_fast.tiling import Box
from dssnet_fast.view.deepzoom import DeepZoom
from dssnet_fast.view.label_map import LabelMap

# The picture has so many px to a side of a px of the maps, so that outlines stay fine when the
# page enlarges the slide.
FINEST = 4
# Opacity of the inside and of the outline by the px of the maps to a px of the tile: from afar
# nuclei are spots, close by only outlines that leave the slide to be seen.
_FILL = {1: 0, 2: 70}
_FILL_AFAR = 170
_LINE = 255
_MARGIN_PX = 2  # The width of lines.


class NucleiPicture:
    """Tiles of the nuclei. May be used from several threads.

    Args:
        labels: The class of each px.
        nuclei: The id of each px's nucleus, 0 for none.
        colours: (red, green, blue) of each class, background first.
    """

    def __init__(self, labels: LabelMap, nuclei: LabelMap, colours: list[list[int]]) -> None:
        self._labels = labels
        self._nuclei = nuclei
        self._colours = np.zeros((256, 3), np.uint8)
        self._colours[: len(colours)] = colours
        self.pyramid = DeepZoom(nuclei.width * FINEST, nuclei.height * FINEST)

    def tile(self, level: int, column: int, row: int, hidden: Collection[int] = ()) -> bytes | None:
        """A tile of the picture's pyramid as a PNG; None if there is no such tile.

        Args:
            level: Of the pyramid.
            column: Of the tile.
            row: Of the tile.
            hidden: Classes to leave out.

        Raises:
            InputError: This part of a map is damaged.
        """
        box = self.pyramid.box(level, column, row)
        if box is None:
            return None
        step = self.pyramid.step(level)
        enlarged, step = max(FINEST // step, 1), max(step // FINEST, 1)
        # With what lies around, so that lines are the same on both sides of the tile's edge.
        around = Box(
            box.top // enlarged - _MARGIN_PX,
            box.left // enlarged - _MARGIN_PX,
            -(-box.bottom // enlarged) + _MARGIN_PX,
            -(-box.right // enlarged) + _MARGIN_PX,
        )
        ids, classes = self._nuclei.read(step, around), self._labels.read(step, around)
        shown = np.ones(256, bool)
        shown[[0, *hidden]] = False
        # Px without an id are too small to be nuclei.
        ids = np.where(shown[classes], ids, 0)
        if enlarged > 1:
            ids, classes = (
                one.repeat(enlarged, axis=0).repeat(enlarged, axis=1) for one in (ids, classes)
            )
        top, left = around.top * enlarged, around.left * enlarged
        inside = Box(top, left, top + ids.shape[0], left + ids.shape[1])
        alpha = np.where(ids != 0, _FILL.get(step, _FILL_AFAR), 0).astype(np.uint8)
        if step < 4:
            line = border(ids)
            if step == 1:
                # Two px wide: one is hard to see where nothing is filled.
                line |= border(np.where(line, 0, ids))
            alpha[line] = _LINE
        made = np.dstack([self._colours[classes], alpha])[box.within(inside)]
        made[made[:, :, 3] == 0] = 0
        return _png(made)

    def id_at(self, x: float, y: float) -> int:
        """The id of the nucleus at a point of the maps, px; 0 if there is none.

        Raises:
            InputError: This part of the map is damaged.
        """
        row, column = int(np.floor(y)), int(np.floor(x))
        if not (0 <= row < self._nuclei.height and 0 <= column < self._nuclei.width):
            return 0
        return int(self._nuclei.read(1, Box(row, column, row + 1, column + 1))[0, 0])

    def close(self) -> None:
        """Close the maps."""
        self._labels.close()
        self._nuclei.close()


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(made, "PNG", compress_level=1)
    return made.getvalue()
