"""How close a fast network's answers are to the reference's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

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
    """

    images: int
    error: float
    labels: float


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
    padding = ((0, -height % SCALE), (0, -width % SCALE), (0, 0))
    padded = np.pad(image, padding, constant_values=128)
    parameter = next(reference.parameters())
    x = torch.from_numpy(padded).permute(2, 0, 1)[None]
    x = (x.to(parameter.device, parameter.dtype) - 128) / 128
    with torch.no_grad():
        logits = reference.logits(x)[0, :, :height, :width]
    return logits.permute(1, 2, 0).double().cpu().numpy()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """|actual - expected| / |expected| in 2-norms; NaN where either has one."""
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


def compare(net: FastDSSNet, reference: DSSNet, images: Iterable[np.ndarray]) -> Parity:
    """Compare logits and labels on uint8 images [H, W, in_channels]; see `Parity`."""
    errors, equal, pixels = [], 0, 0
    for image in images:
        expected = reference_logits(reference, image)
        errors.append(relative_error(net.predict(image, output="logits"), expected))
        equal += int((net.predict(image) == expected.argmax(-1)).sum())
        pixels += image.shape[0] * image.shape[1]
    # max() would let a NaN hide behind the order of its arguments; NumPy's keeps it.
    return Parity(len(errors), float(np.max(errors)), equal / pixels)
