"""How close a fast network's answers are to the reference's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast.model import FastDSSNet
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import SCALE, DSSNet

# Borders in every position relative to the multiples of 8, and unlike sides.
_RANDOM_SIZES = ((64, 96), (41, 23), (8, 130))


@dataclass(frozen=True)
class Parity:
    """Agreement with the reference over some images.

    Attributes:
        images: How many.
        error: Worst relative error of the logits, |fast - reference| / |reference| (2-norms).
        labels: Share of pixels with the same label, over all images.
        edge_error: As `error`, of the edge map; None where the fast network has no edge head.
    """

    images: int
    error: float
    labels: float
    edge_error: float | None = None


def random_images(config: DSSNetConfig, seed: int = 0) -> list[np.ndarray]:
    """Noise, uint8 [H, W, in_channels], in sizes that exercise every border."""
    generator = np.random.default_rng(seed)
    return [
        generator.integers(0, 256, (*size, config.in_channels), dtype=np.uint8)
        for size in _RANDOM_SIZES
    ]


def reference_logits(reference: DSSNet, image: np.ndarray) -> np.ndarray:
    """The reference's answer to an image of any size, padded as `FastDSSNet` pads.

    Args:
        reference: In any precision and on any device.
        image: uint8 [H, W, in_channels].

    Returns:
        float64 [H, W, classes].
    """
    height, width = image.shape[:2]
    with torch.no_grad():
        logits = reference.logits(_padded(reference, image))[0, :, :height, :width]
    return logits.permute(1, 2, 0).double().cpu().numpy()


def reference_edges(reference: DSSNet, image: np.ndarray) -> np.ndarray:
    """The reference's edge map at full resolution, as `FastDSSNet.predict` gives it.

    Args:
        reference: With an edge head; see `reference_logits`.
        image: uint8 [H, W, in_channels].

    Returns:
        float64 [H, W].
    """
    height, width = image.shape[:2]
    with torch.no_grad():
        x0 = reference.downsample(_padded(reference, image))
        edges = reference.edges(*reference.extract(x0))
    full = F.interpolate(edges, scale_factor=2, mode="nearest")[0, 0, :height, :width]
    return full.double().cpu().numpy()


def _padded(reference: DSSNet, image: np.ndarray) -> Tensor:
    """An image as the reference takes it, in whole cells."""
    height, width = image.shape[:2]
    padding = ((0, -height % SCALE), (0, -width % SCALE), (0, 0))
    padded = np.pad(image, padding, constant_values=128)
    parameter = next(reference.parameters())
    x = torch.from_numpy(padded).permute(2, 0, 1)[None]
    return (x.to(parameter.device, parameter.dtype) - 128) / 128


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """|actual - expected| / |expected| in 2-norms; NaN where either has one."""
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


def compare(net: FastDSSNet, reference: DSSNet, images: Iterable[np.ndarray]) -> Parity:
    """Compare logits, labels and edges on uint8 images [H, W, in_channels]; see `Parity`."""
    errors, edge_errors, equal, pixels = [], [], 0, 0
    for image in images:
        expected = reference_logits(reference, image)
        errors.append(relative_error(net.predict(image, output="logits"), expected))
        equal += int((net.predict(image) == expected.argmax(-1)).sum())
        pixels += image.shape[0] * image.shape[1]
        if net.has_edges:
            expected = reference_edges(reference, image)
            edge_errors.append(relative_error(net.predict(image, output="edges"), expected))
    # max() would let a NaN hide behind the order of its arguments; NumPy's keeps it.
    edge_error = float(np.max(edge_errors)) if edge_errors else None
    return Parity(len(errors), float(np.max(errors)), equal / pixels, edge_error)
