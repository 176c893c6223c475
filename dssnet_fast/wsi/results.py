"""What the analysis of a slide gives, as the writers of outputs take it.

Coordinates are those of `dssnet_fast.nuclei` in the analysed image, which is the slide at the
resolution of the model: x to the right, y down, in px, and pixel (row r, column c) is the square
from (c, r) to (c + 1, r + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from dssnet_fast.contours import Outlines, join_outlines
from dssnet_fast.python_ref.errors import InputError


@dataclass(frozen=True)
class Frame:
    """Where the analysed image lies in the slide.

    Attributes:
        width: Of the analysed image, px.
        height: Of the analysed image, px.
        mpp: Micrometres per px of the analysed image.
        scale: Px of the slide's finest level per px of the analysed image.
        origin: (x, y) of the finest level, px, that is (0, 0) in outputs: (0, 0), or the corner of
            the part that QuPath shows.
    """

    width: int
    height: int
    mpp: float
    scale: float
    origin: tuple[int, int] = (0, 0)

    def to_output(self, points: np.ndarray) -> np.ndarray:
        """Points of the analysed image, [..., 2] of (x, y), in px of the slide as outputs count."""
        return np.asarray(points) * self.scale - np.asarray(self.origin, float)

    def to_vertices(self, points: np.ndarray) -> np.ndarray:
        """Corners of pixels, integer [..., 2] of (x, y), as outlines give them in output px.

        Returns:
            int64 where the scale is a whole number, else float64 rounded to 2 decimals. Corners
            that differ stay different, so outlines stay valid.
        """
        if float(self.scale).is_integer():
            return points.astype(np.int64) * int(self.scale) - np.asarray(self.origin, np.int64)
        # Adding 0 makes -0.0, which would be written so, 0.0.
        return np.round(self.to_output(points), 2) + 0.0


@dataclass(frozen=True)
class NucleusTable:
    """Some nuclei of a slide, in the order of their ids. All arrays have N elements.

    Attributes:
        id: int64, from 1 on without gaps over all tables of a slide; 0 before they are numbered.
        class_index: uint8, 1 or more.
        x: float64, centroid, px.
        y: float64, centroid, px.
        area: int64, px.
        perimeter: float64, px.
        eccentricity: float64.
        solidity: float64, area over the area of the convex hull.
        mean_probability: float64, of the class.
        mean_od: float64, optical density, mean over the pixels and colours.
        integrated_od: float64, optical density times area in px.
        bounds: int64 [N, 4], (left, top, right, bottom) in px, right and bottom excluded.
        outlines: Their outlines.
    """

    id: np.ndarray
    class_index: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray
    perimeter: np.ndarray
    eccentricity: np.ndarray
    solidity: np.ndarray
    mean_probability: np.ndarray
    mean_od: np.ndarray
    integrated_od: np.ndarray
    bounds: np.ndarray
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.id)

    def require_finite(self) -> None:
        """Raise InputError if a measurement is NaN or infinite: most formats cannot say so."""
        for name in (
            "x",
            "y",
            "perimeter",
            "eccentricity",
            "solidity",
            "mean_probability",
            "mean_od",
            "integrated_od",
        ):
            values = getattr(self, name)
            wrong = ~np.isfinite(values)
            if wrong.any():
                at = int(wrong.argmax())
                raise InputError(f"nucleus {self.id[at]}: its {name} is {values[at]}")

    def __getitem__(self, which: np.ndarray) -> NucleusTable:
        """Some of them, int64 [M] or bool [N], in that order."""
        return NucleusTable(*(getattr(self, field.name)[which] for field in fields(self)))


def join_tables(tables: Sequence[NucleusTable]) -> NucleusTable:
    """The nuclei of several tables, one at least, as one."""
    columns = [field.name for field in fields(NucleusTable) if field.name != "outlines"]
    return NucleusTable(
        **{name: np.concatenate([getattr(one, name) for one in tables]) for name in columns},
        outlines=join_outlines([one.outlines for one in tables]),
    )


@dataclass(frozen=True)
class LabelledRuns:
    """Horizontal stretches of pixels of one class and nucleus, by rows, then columns.

    Attributes:
        row: int32.
        start: int32, first column.
        end: int32, column after the last.
        label: uint8, the class, 1 or more.
        id: uint32, the nucleus, or 0 for pixels that belong to none (too small, or outside).
    """

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    label: np.ndarray
    id: np.ndarray


class Labels(Protocol):
    """The label map of a slide, which may be larger than memory."""

    def rows(self, top: int, bottom: int, step: int) -> LabelledRuns:
        """The runs of those rows from `top` to `bottom`, excluded, that are multiples of `step`.

        Calls with increasing `top` are cheap.
        """
