"""Running a network over images of any size, tile by tile."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dssnet_fast.tiling import Box, plan


class Network(Protocol):
    """What `predict_tiled` needs of a network; `FastDSSNet` has it."""

    context_px: int

    def decide(self, image: np.ndarray, core: Box) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, channels] to labels, uint8, and probabilities, float32, of the core."""


def predict_tiled(
    net: Network, image: np.ndarray, tile: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Segment an image of any size; the tiles' joined result is the whole image's.

    Memory beyond the image and the two results is that of one tile with its context, whatever the
    size of the image.

    Args:
        net: The network; see `Network`.
        image: uint8 [H, W, channels].
        tile: Largest side of a tile without its context, px, a multiple of 8. An image that is no
            larger goes through the network in one piece.

    Returns:
        labels: uint8 [H, W], the most probable class of each pixel.
        probability: float32 [H, W], that class's probability.

    Raises:
        InputError: `tile` is out of range, or the network's answer is not finite.
    """
    height, width = image.shape[:2]
    labels = np.empty((height, width), np.uint8)
    probability = np.empty((height, width), np.float32)
    whole = Box(0, 0, height, width)
    for part in plan(height, width, tile, net.context_px):
        read = np.ascontiguousarray(image[part.read.within(whole)])
        at = part.core.within(whole)
        labels[at], probability[at] = net.decide(read, part.core.seen_from(part.read))
    return labels, probability
