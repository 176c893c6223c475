"""The grid of square cells that an analysed image is divided into to say where to look."""

from __future__ import annotations

import numpy as np


def grid(width: int, height: int, cell: int) -> tuple[int, int]:
    """Rows and columns of cells of `cell` px that cover an image."""
    return -(-height // cell), -(-width // cell)


def dilated(cells: np.ndarray) -> np.ndarray:
    """Bool [rows, columns]: the cells given and their eight neighbours."""
    grown = cells.copy()
    grown[1:] |= cells[:-1]
    grown[:-1] |= cells[1:]
    across = grown.copy()
    grown[:, 1:] |= across[:, :-1]
    grown[:, :-1] |= across[:, 1:]
    return grown
