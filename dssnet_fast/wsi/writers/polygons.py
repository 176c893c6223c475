"""Outlines of many nuclei as polygons in output coordinates, without a loop over nuclei."""

from __future__ import annotations

import numpy as np
import shapely

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.wsi.results import Frame, Outlines


def written_outlines(outlines: Outlines, frame: Frame, simplify: float = 0.0) -> Outlines:
    """Outlines as files give them.

    Args:
        outlines: As `NucleusTable` holds them.
        frame: Where the analysed image lies.
        simplify: How far, in px of the analysed image, an outline may move to have fewer points.
            0 leaves all corners of its pixels.

    Returns:
        Outlines whose points are as `Frame.to_vertices` makes them. Each nucleus is a valid
        polygon: where simplifying would not give one, the exact outline stays.

    Raises:
        InputError: `simplify` is negative or not finite.
    """
    if not (np.isfinite(simplify) and simplify >= 0):
        raise InputError(f"simplify must be 0 px or more, got {simplify}")
    if simplify == 0 or not len(outlines.points):
        return Outlines(frame.to_vertices(outlines.points), outlines.rings, outlines.nuclei)
    exact = _polygons(outlines)
    simple = shapely.simplify(exact, simplify, preserve_topology=True)
    made = _written(simple, frame)
    # Simplified, and then rounded: either may let a thin part touch itself.
    valid = shapely.is_valid(_polygons(made)) & ~shapely.is_empty(simple)
    return made if valid.all() else _written(np.where(valid, simple, exact), frame)


def written_polygons(outlines: Outlines, frame: Frame) -> np.ndarray:
    """Polygons of shapely [N] of exact outlines, as `written_outlines` gives them."""
    return _polygons(written_outlines(outlines, frame))


def _polygons(outlines: Outlines) -> np.ndarray:
    return shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        outlines.points.astype(np.float64),
        (outlines.rings, outlines.nuclei),
    )


def _written(polygons: np.ndarray, frame: Frame) -> Outlines:
    _, points, (rings, nuclei) = shapely.to_ragged_array(polygons, include_z=False)
    return Outlines(frame.to_vertices(points), rings, nuclei)
