"""Reading parts of a pyramidal TIFF of labels without reading the rest."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.tiling import Box
from dssnet_fast.view.memory import Memory

if TYPE_CHECKING:
    from tifffile import TiffPage

_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class _Level:
    page: TiffPage
    width: int
    height: int
    step: int
    tile: tuple[int, int]


class LabelMap:
    """A map of whole numbers, tiled or in strips, with levels of 1/2, 1/4, ... or without.

    May be read from several threads.

    Args:
        path: The TIFF file. Its levels hold px of the finest one, not means of them.

    Attributes:
        width: Of the finest level, px.
        height: Of the finest level, px.

    Raises:
        InputError: The file is damaged or no such map.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        self._path = path
        try:
            self._tiff = tifffile.TiffFile(path)
        except OSError as error:
            raise InputError(f"{path.name}: {error.strerror or error}") from error
        except Exception as error:
            # tifffile raises whatever its parsing runs into.
            raise InputError(f"{path.name}: not a TIFF file that can be read ({error})") from error
        try:
            self._levels = self._find_levels()
        except Exception as error:
            self._tiff.close()
            raise InputError(f"{path.name}: no map of labels ({error})") from error
        self.width, self.height = self._levels[0].width, self._levels[0].height
        self._lock = threading.Lock()
        self._memory: Memory[np.ndarray] = Memory(_KEPT_BYTES, lambda part: part.nbytes)

    def _find_levels(self) -> list[_Level]:
        levels = []
        for series in self._tiff.series[0].levels:
            page = series.pages[0].aspage()
            if page.samplesperpixel != 1 or page.dtype is None or page.dtype.kind not in "ui":
                raise ValueError("px are not whole numbers")
            width, height = page.imagewidth, page.imagelength
            step = round(levels[0].width / width) if levels else 1
            tile = (
                (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
            )
            # 2, 4, ...: others would not meet the px that are asked for.
            if step & (step - 1) == 0:
                levels.append(_Level(page, width, height, step, tile))
        return levels

    def read(self, step: int, box: Box) -> np.ndarray:
        """Every `step`-th px of every `step`-th row.

        Args:
            step: A power of 2.
            box: In px of the map so reduced; may reach beyond it.

        Returns:
            [box.height, box.width], 0 beyond the map.

        Raises:
            InputError: This part of the file is damaged.
        """
        level = next(one for one in reversed(self._levels) if one.step <= step)
        stride = step // level.step
        rows = np.arange(box.top, box.bottom) * stride
        columns = np.arange(box.left, box.right) * stride
        found = np.zeros((box.height, box.width), level.page.dtype)
        # From one row of tiles to the next, and in it from tile to tile: memory for one at a time.
        for down, at_rows in _split(rows, level.tile[0], level.height):
            for across, at_columns in _split(columns, level.tile[1], level.width):
                tile = self._tile(level, down, across)
                inside = np.ix_(
                    rows[at_rows] - down * level.tile[0],
                    columns[at_columns] - across * level.tile[1],
                )
                found[at_rows, at_columns] = tile[inside]
        return found

    def _tile(self, level: _Level, down: int, across: int) -> np.ndarray:
        index = down * -(-level.width // level.tile[1]) + across
        return self._memory.get((level.step, index), lambda: self._decode(level, index))

    def _decode(self, level: _Level, index: int) -> np.ndarray:
        page = level.page
        try:
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            data = self._bytes(offset, count) if count else None
            decoded = page.decode(data, index)[0]
        except Exception as error:
            # Decoders raise whatever they run into.
            raise InputError(f"{self._path.name}: tile {index} is damaged ({error})") from error
        whole = np.zeros(level.tile, page.dtype)
        if decoded is not None:
            part = decoded.reshape(decoded.shape[-3:-1])
            whole[: part.shape[0], : part.shape[1]] = part
        return whole

    def _bytes(self, offset: int, count: int) -> bytes:
        with self._lock:
            self._tiff.filehandle.seek(offset)
            data = self._tiff.filehandle.read(count)
        if len(data) < count:
            raise ValueError("the file ends before it")
        return data

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()


def _split(at: np.ndarray, side: int, end: int) -> list[tuple[int, slice]]:
    """Which of increasing positions lie in which tile: (tile, slice of positions)."""
    first, last = np.searchsorted(at, [0, end])
    tiles = at[first:last] // side
    if not len(tiles):
        return []
    starts = np.flatnonzero(np.diff(tiles, prepend=-1))
    ends = np.append(starts[1:], len(tiles))
    return [
        (int(tiles[start]), slice(int(first + start), int(first + stop)))
        for start, stop in zip(starts, ends, strict=True)
    ]
