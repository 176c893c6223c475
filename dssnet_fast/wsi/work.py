"""What has to be known to compute a slide's tiles, wherever that happens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dssnet_fast.separate import Separation
from dssnet_fast.tiling import Box


@dataclass(frozen=True)
class SlideWork:
    """A slide and how its tiles are computed; small, and the same on every machine.

    Attributes:
        path: The slide.
        mpp: Micrometres per px wanted.
        slide_mpp: Micrometres per px of the slide's finest level.
        image: The analysed image, px.
        context: Px around a tile that are computed as well, a multiple of 8.
        glass: Of each colour the value that light has that met nothing but glass.
        separation: How touching nuclei are told apart.
        min_area: Nuclei of fewer px are none.
        wanted: bool [rows, columns], the cells of `layout` in which nuclei are looked for.
        keep_going: Whether what cannot be read counts as empty, instead of being an error.
    """

    path: Path
    mpp: float
    slide_mpp: float
    image: Box
    context: int
    glass: tuple[float, float, float]
    separation: Separation
    min_area: int
    wanted: np.ndarray
    keep_going: bool


@dataclass(frozen=True)
class TileTask:
    """One tile: `number` is its place among the slide's tiles, `core` what it gives."""

    slide: SlideWork
    number: int
    core: Box


@dataclass(frozen=True)
class TileAnswer:
    """What became of a task: `data` as `tile_nuclei.to_bytes` makes it, or an error."""

    task: TileTask
    data: bytes | None = None
    error: Exception | None = None
