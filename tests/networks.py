"""Networks and images that tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "images"

SMALL = {"width": 9, "features": 8, "blocks": 2}

# One network for each thing that a config can change.
CONFIGS = {
    "paper": DSSNetConfig(classes=3),
    "gray": DSSNetConfig(**SMALL, in_channels=1),
    "wide": DSSNetConfig(width=36, features=17, blocks=1, classes=16),
    "wdsr_b": DSSNetConfig(**SMALL, block="wdsr_b"),
    "bottleneck": DSSNetConfig(**SMALL, block="bottleneck", edge=False),
    "basic": DSSNetConfig(**SMALL, block="basic", super_resolution=False),
    "pixel_shuffle": DSSNetConfig(**SMALL, upsampling="pixel_shuffle", classes=5),
}


def random_network(config: DSSNetConfig | None = None, seed: int = 0, **changes) -> DSSNet:
    """A network in evaluation mode whose biases and slopes are random too."""
    torch.manual_seed(seed)
    network = DSSNet(config or DSSNetConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter.shape == (1,):
                parameter.uniform_(0.1, 0.6)
    return network.eval()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def example(height: int, width: int) -> np.ndarray:
    """uint8 [1, height, width, 3] from the example images, repeated where they are smaller."""
    path = sorted(EXAMPLES.iterdir())[0]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = -(-height // pixels.shape[0]), -(-width // pixels.shape[1])
    return np.tile(pixels, (rows, columns, 1))[None, :height, :width].copy()
