"""The fewest multiply-accumulates that each launch of a run could do.

Counted on the folded graph (docs/architecture.md, "What is folded, and where"): channels without
padding, every result computed once, nothing for borders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.weights import folded_shapes

HEAD_CHANNELS, TAIL_CHANNELS = 32, 20  # of the segmentation head


def layer_macs(config: DSSNetConfig, batch: int, height: int, width: int) -> dict[str, int]:
    """Of all layers, as the packed weights name them.

    Args:
        config: The network.
        batch: Images.
        height: Of the images, px; a multiple of 8.
        width: As `height`.
    """
    colours, channels, fused = config.in_channels, config.width, config.fused
    blocks = {
        name.removesuffix(".weight"): math.prod(shape)
        for name, shape in folded_shapes(config).items()
        if name.startswith("extract.") and name.endswith(".weight")
    }
    if config.upsampling == "nearest":
        # The 1x1 convolution, nine products and 100 taps a cell.
        mix, smooth, reduce = fused**2, 9 * fused**2, 100 * fused * HEAD_CHANNELS
    else:
        mix, smooth, reduce = (
            16 * fused * outputs for outputs in (fused, 9 * fused, 9 * HEAD_CHANNELS)
        )
    a_cell = {
        # The stem at full resolution for the maximum, and a 5x5 convolution at 1/2.
        "downsample.stem": 64 * 9 * colours * channels,
        "downsample.strided": 16 * 25 * colours * channels,
        "downsample.1": 4 * 9 * channels**2,
        "downsample.2": 9 * channels**2,
        **blocks,
        "fuse.mix": mix,
        "fuse.smooth": smooth,
        "fuse.reduce": reduce,
        "segment.narrow": 16 * 9 * HEAD_CHANNELS * TAIL_CHANNELS,
        "segment.tail": 16 * 9 * TAIL_CHANNELS * 4 * config.classes,
    }
    cells = batch * height * width // 64
    return {name: cells * macs for name, macs in a_cell.items()}


def launch_macs(weights: Iterable[str], layers: Mapping[str, int]) -> int:
    """Of a launch that takes these of the Triton backend's packed weights.

    Args:
        weights: Their names; those that only correct borders need nothing.
        layers: From `layer_macs`.
    """
    names = [name.removesuffix(".weight") for name in weights]
    # Both branches of a W-NECK block may be packed as one layer.
    return sum(layers.get(name + branch, 0) for name in names for branch in ("", "1", "3"))


def minimum_macs(
    config: DSSNetConfig, batch: int, height: int, width: int
) -> list[tuple[str, int]]:
    """Of the CUDA backend's launches, in their order.

    Args:
        config: The network, of W-NECK blocks.
        batch: Images.
        height: Of the images, px; a multiple of 8.
        width: As `height`.

    Returns:
        For each launch what its kernel's name begins with, and its multiply-accumulates.
    """
    layers = layer_macs(config, batch, height, width)

    def of(stage: str, *names: str) -> int:
        return sum(layers[f"{stage}.{name}"] for name in names)

    # A launch restores a block and squeezes the next.
    chain = [of("extract", "head")]
    for i in range(config.blocks):
        chain[-1] += of(f"extract.blocks.{i}", "expand1", "expand3", "squeeze")
        chain.append(of(f"extract.blocks.{i}", "restore"))
    shuffled = config.upsampling == "pixel_shuffle"
    return [
        ("stem_down", of("downsample", "stem", "strided")),
        ("down", of("downsample", "1")),
        ("down", of("downsample", "2")),
        *(("wneck", macs) for macs in chain),
        ("fuse_shuffle" if shuffled else "fuse_nearest", of("fuse", "mix", "smooth", "reduce")),
        ("segment", of("segment", "narrow", "tail")),
    ]
