"""Running a network over images of any size, tile by tile."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dssnet_fast.tiling import Box, plan


class Network(Protocol):
    """What `predict_tiled` needs of a network; `FastDSSNet` has it."""

    context_px: int
    edge_context_px: int

    def decide(self, image: np.ndarray, core: Box, edges: bool) -> tuple[np.ndarray, ...]:
        """uint8 [H, W, channels] to what `predict_tiled` gives, of the core."""


def predict_tiled(
    net: Network, image: np.ndarray, tile: int = 2048, edges: bool = False
) -> tuple[np.ndarray, ...]:
    """Segment an image of any size; the tiles' joined result is the whole image's.

    Memory beyond the image and the results is that of one tile with its context, whatever the
    size of the image.

    Args:
        net: The network; see `Network`.
        image: uint8 [H, W, channels].
        tile: Largest side of a tile without its context, px, a multiple of 8. An image that is no
            larger goes through the network in one piece.
        edges: Whether the edge map is wanted, too.

    Returns:
        labels: uint8 [H, W], the most probable class of each pixel.
        probability: float32 [H, W], that class's probability.
        edges: float32 [H, W], see `FastDSSNet.decide`; only where it is wanted.

    Raises:
        InputError: `tile` is out of range, the network's answer is not finite, or edges are wanted
            of weights without an edge head.
    """
    height, width = image.shape[:2]
    dtypes = (np.uint8, np.float32, np.float32)[: 3 if edges else 2]
    answers = tuple(np.empty((height, width), dtype) for dtype in dtypes)
    whole = Box(0, 0, height, width)
    for part in plan(height, width, tile, net.edge_context_px if edges else net.context_px):
        read = np.ascontiguousarray(image[part.read.within(whole)])
        found = net.decide(read, part.core.seen_from(part.read), edges)
        for answer, of_part in zip(answers, found, strict=True):
            answer[part.core.within(whole)] = of_part
    return answers
