"""The fewest multiply-accumulates that each launch of a run could do.

Counted on the folded graph (docs/architecture.md, "What is folded, and where"): channels without
padding, every result computed once, nothing for borders.
"""

from __future__ import annotations

from dssnet_fast.python_ref.config import DSSNetConfig

HEAD_CHANNELS, TAIL_CHANNELS = 32, 20  # of the segmentation head


def minimum_macs(
    config: DSSNetConfig, batch: int, height: int, width: int
) -> list[tuple[str, int]]:
    """Of the launches of a run, in their order.

    Args:
        config: The network, of W-NECK blocks.
        batch: Images.
        height: Of the images, px; a multiple of 8.
        width: As `height`.

    Returns:
        For each launch what its kernel's name begins with, and its multiply-accumulates.
    """
    cells = batch * height * width // 64
    channels, features = config.width, config.features
    branch, low_rank = 3 * features, features * 3 // 4
    # The stem at full resolution for the maximum, and a 5x5 convolution at 1/2.
    stem = (64 * 9 + 16 * 25) * config.in_channels * channels
    down = 9 * channels**2
    head, restore = 9 * channels * features, 9 * low_rank * features
    block = (1 + 9) * features * branch + 9 * 2 * branch * low_rank
    chain = [head + block, *[restore + block] * (config.blocks - 1), restore]
    if config.upsampling == "nearest":
        # The 1x1 convolution, nine products and 100 taps a cell.
        fused = 2 * features
        fuse = fused**2 + 9 * fused**2 + 100 * fused * HEAD_CHANNELS
        fuse_kernel = "fuse_nearest"
    else:
        fused = 2 * features
        fuse = 16 * (fused**2 + 9 * fused**2 + 9 * fused * HEAD_CHANNELS)
        fuse_kernel = "fuse_shuffle"
    narrow = 9 * HEAD_CHANNELS * TAIL_CHANNELS
    tail = 9 * TAIL_CHANNELS * 4 * config.classes
    each = [
        ("stem_down", stem),
        ("down", 4 * down),
        ("down", down),
        *(("wneck", macs) for macs in chain),
        (fuse_kernel, fuse),
        ("segment", 16 * (narrow + tail)),
    ]
    return [(kernel, cells * macs) for kernel, macs in each]
