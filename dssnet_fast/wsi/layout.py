"""Which rectangles of a slide go through the network.

Cells, squares of a fixed grid, either hold something or are passed by. Rectangles of whole cells
cover all cells that hold something; each costs its own area and that of the context around it.
"""

from __future__ import annotations

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides.glass import CELL
from dssnet_fast.tiling import Box, spans

CELL_PX = CELL

# A cut must save so much of the cost: every tile has costs of its own.
_WORTH = 0.95


def tile_for(device: str) -> tuple[int, int]:
    """Height and width of the largest tile on a kind of device, px.

    On a CPU the context costs little, for only what the tile depends on is computed, and larger
    tiles only take more memory. On a GPU the context is computed as well, and there is memory.
    """
    return (2048, 2048) if device == "cpu" else (4096, 4096)


def check_tile(tile: tuple[int, int]) -> None:
    """Raise InputError unless it is a height and a width of whole cells."""
    if len(tile) != 2 or any(side < CELL_PX or side % CELL_PX for side in tile):
        raise InputError(
            f"tile must be a height and a width, multiples of {CELL_PX} px, got {tile}"
        )


def cut(
    wanted: np.ndarray, height: int, width: int, tile: tuple[int, int], context: int
) -> list[Box]:
    """Rectangles that cover the wanted cells of an image.

    Args:
        wanted: bool [rows, columns] of cells.
        height: Of the image, px.
        width: Of the image, px.
        tile: Height and width of the largest rectangle, px, multiples of `CELL_PX`.
        context: Px around each that are computed as well.

    Returns:
        By rows of blocks of at most `tile`, as equal as possible. No two overlap.

    Raises:
        InputError: `tile` is no such pair.
    """
    check_tile(tile)
    found = []
    for top, bottom in spans(height, tile[0], CELL_PX):
        for left, right in spans(width, tile[1], CELL_PX):
            rows = slice(top // CELL_PX, -(-bottom // CELL_PX))
            columns = slice(left // CELL_PX, -(-right // CELL_PX))
            for box in _cover(wanted[rows, columns], context / CELL_PX):
                found.append(
                    Box(
                        top + box.top * CELL_PX,
                        left + box.left * CELL_PX,
                        min(top + box.bottom * CELL_PX, height),
                        min(left + box.right * CELL_PX, width),
                    )
                )
    return found


def _cover(wanted: np.ndarray, context: float) -> list[Box]:
    """Boxes, in cells, around all that is wanted; cut in two as long as that is cheaper."""
    whole = _around(wanted, 0, 0)
    if whole is None:
        return []
    part = wanted[whole.top : whole.bottom, whole.left : whole.right]
    best, halves = _WORTH * _cost(whole, context), None
    for at in range(1, part.shape[0]):
        pair = _around(part[:at], 0, 0), _around(part[at:], at, 0)
        if (cost := sum(_cost(one, context) for one in pair)) < best:
            best, halves = cost, ((part[:at], 0, 0), (part[at:], at, 0))
    for at in range(1, part.shape[1]):
        pair = _around(part[:, :at], 0, 0), _around(part[:, at:], 0, at)
        if (cost := sum(_cost(one, context) for one in pair)) < best:
            best, halves = cost, ((part[:, :at], 0, 0), (part[:, at:], 0, at))
    if halves is None:
        return [whole]
    return [
        Box(
            whole.top + down + box.top,
            whole.left + right + box.left,
            whole.top + down + box.bottom,
            whole.left + right + box.right,
        )
        for half, down, right in halves
        for box in _cover(half, context)
    ]


def _around(wanted: np.ndarray, down: int, right: int) -> Box | None:
    rows, columns = wanted.any(axis=1).nonzero()[0], wanted.any(axis=0).nonzero()[0]
    if not len(rows):
        return None
    return Box(
        down + int(rows[0]),
        right + int(columns[0]),
        down + int(rows[-1]) + 1,
        right + int(columns[-1]) + 1,
    )


def _cost(box: Box | None, context: float) -> float:
    return 0 if box is None else (box.height + 2 * context) * (box.width + 2 * context)
