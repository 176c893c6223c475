"""DSSNet, the whole network of the paper, in plain PyTorch.

Source: Luo et al. 2022, "Dual supervised sampling networks for real-time segmentation of cervical
cell nucleus", doi:10.1016/j.csbj.2022.08.023; layer widths as in the authors' release.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import MAKERS, WNeck, conv
from .config import DSSNetConfig

SCALE = 8  # the features live at 1/8 of the image's resolution
UPSAMPLING = 4  # the FFM goes from 1/8 to 1/2

HEAD_CHANNELS = 32  # segmentation head, at 1/2 resolution
TAIL_CHANNELS = 20  # segmentation head, before and after its up-sampling to full resolution
RECONSTRUCTION_CHANNELS = 64
RECONSTRUCTION_BLOCKS = 5


class DSSNetOutput(NamedTuple):
    """What the network computes in training.

    Attributes:
        segmentation: [B, classes, H, W] logits.
        reconstruction: [B, in_channels, H, W] the image from its down-sampled features, in
            normalised values; None without the super-resolution branch.
        edge: [B, 1, H/2, W/2] edge map; None without the edge branch.
    """

    segmentation: Tensor
    reconstruction: Tensor | None
    edge: Tensor | None


class DualBranchDownsampler(nn.Module):
    """Half the resolution twice over: max pooling plus a strided convolution, no activation.

    [B, C, H, W] -> [B, C, H/2, W/2].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strided = conv(channels, channels, stride=2)
        self.project = conv(channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return F.max_pool2d(x, 2) + self.project(self.strided(x))


class FeatureFusion(nn.Module):
    """FFM: joins shallow and deep features and brings them to 1/2 resolution.

    [B, 2C, h, w] -> [B, 2C, 4h, 4w].
    """

    def __init__(self, channels: int, upsampling: str) -> None:
        super().__init__()
        learned = upsampling == "pixel_shuffle"
        self.upsampling = upsampling
        self.mix = conv(channels, channels * UPSAMPLING**2 if learned else channels, kernel=1)
        self.mix_activation = nn.PReLU()
        self.smooth = conv(channels, channels)
        self.smooth_activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2C, h, w] -> [B, 2C, 4h, 4w]."""
        if self.upsampling == "pixel_shuffle":
            x = F.pixel_shuffle(self.mix(x), UPSAMPLING)
        else:
            x = self.mix(F.interpolate(x, scale_factor=UPSAMPLING, mode="nearest"))
        return self.smooth_activation(self.smooth(self.mix_activation(x)))


class SegmentationHead(nn.Module):
    """From the FFM's output to logits. [B, 2C, H/2, W/2] -> [B, classes, H, W]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.reduce = conv(channels, HEAD_CHANNELS)
        self.reduce_activation = nn.PReLU()
        # The last three are the only layers without weight normalisation.
        self.narrow = nn.Conv2d(HEAD_CHANNELS, TAIL_CHANNELS, 3, padding=1)
        self.narrow_activation = nn.PReLU()
        self.inner = nn.Conv2d(TAIL_CHANNELS, TAIL_CHANNELS, 3, padding=1)
        self.outer = nn.Conv2d(TAIL_CHANNELS, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 32, H/2, W/2], the output of `reduce` and its activation -> logits."""
        x = self.narrow_activation(self.narrow(x))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.outer(self.inner(x))


class EdgeHead(nn.Sequential):
    """Edge supervision on the FFM's output. [B, 2C, H/2, W/2] -> [B, 1, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            conv(channels, channels),
            nn.PReLU(),
            conv(channels, channels),
            conv(channels, 1),
            conv(1, 1),
        )


class SuperResolutionHead(nn.Module):
    """Reconstruction of the image from its down-sampled features.

    [B, width, h, w] -> [B, in_channels, 8h, 8w].
    """

    def __init__(self, config: DSSNetConfig) -> None:
        super().__init__()
        inner, outputs = RECONSTRUCTION_CHANNELS, config.in_channels * SCALE**2
        self.head = nn.Sequential(
            conv(config.width, config.features),
            nn.PReLU(),
            conv(config.features, inner),
            nn.PReLU(),
        )
        self.body = nn.Sequential(*(WNeck(inner) for _ in range(RECONSTRUCTION_BLOCKS)))
        self.tail = nn.Sequential(conv(inner, outputs), nn.PReLU(), conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> [B, in_channels, 8h, 8w]."""
        return F.pixel_shuffle(self.tail(self.body(self.head(x))), SCALE)


class DSSNet(nn.Module):
    """The reference network.

    `forward` computes everything that training needs; `logits` only what inference needs. The four
    stages `downsample`, `extract`, `fuse` and `segment` are the seams at which the fast inference
    path is compared with this one.

    Args:
        config: The architecture.
    """

    def __init__(self, config: DSSNetConfig = DSSNetConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        self.stem = conv(config.in_channels, config.width)
        self.downsamplers = nn.Sequential(
            *(DualBranchDownsampler(config.width) for _ in range(SCALE.bit_length() - 1))
        )
        self.head = conv(config.width, config.features)
        self.blocks = nn.Sequential(
            *(MAKERS[config.block](config.features) for _ in range(config.blocks))
        )
        self.ffm = FeatureFusion(config.fused, config.upsampling)
        self.segmentation = SegmentationHead(config.fused, config.classes)
        self.edge = EdgeHead(config.fused) if config.edge else None
        self.super_resolution = SuperResolutionHead(config) if config.super_resolution else None

    def forward(self, image: Tensor) -> DSSNetOutput:
        """Compute logits and both supervisions.

        Args:
            image: [B, in_channels, H, W] float, `(value - 128) / 128`; H and W multiples of 8.

        Raises:
            ValueError: The shape is not the network's.
        """
        x0 = self.downsample(image)
        fused = self.ffm(torch.cat(self.extract(x0), dim=1))
        return DSSNetOutput(
            segmentation=self.segment(self._reduce(fused)),
            reconstruction=self.super_resolution(x0) if self.super_resolution else None,
            edge=self.edge(fused) if self.edge else None,
        )

    def logits(self, image: Tensor) -> Tensor:
        """The inference path alone: [B, in_channels, H, W] -> [B, classes, H, W]."""
        return self.segment(self.fuse(*self.extract(self.downsample(image))))

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1: [B, in_channels, H, W] -> [B, width, H/8, W/8]."""
        self._check(image)
        return self.downsamplers(self.stem(image))

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2: [B, width, h, w] -> shallow and deep features, [B, features, h, w] each."""
        shallow = self.head(x0)
        return shallow, self.blocks(shallow)

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3: two [B, features, h, w] -> [B, 32, 4h, 4w]."""
        return self._reduce(self.ffm(torch.cat([shallow, deep], dim=1)))

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head, where there is one: two [B, features, h, w] -> [B, 1, 4h, 4w]."""
        return self.edge(self.ffm(torch.cat([shallow, deep], dim=1)))

    def segment(self, y: Tensor) -> Tensor:
        """Stage 4: [B, 32, H/2, W/2] -> logits [B, classes, H, W]."""
        return self.segmentation(y)

    def _reduce(self, fused: Tensor) -> Tensor:
        return self.segmentation.reduce_activation(self.segmentation.reduce(fused))

    def _check(self, image: Tensor) -> None:
        channels = self.config.in_channels
        if (
            image.ndim != 4
            or image.shape[1] != channels
            or image.shape[2] % 8
            or image.shape[3] % 8
        ):
            raise ValueError(
                f"image must have shape [B, {channels}, H, W] with H and W multiples of 8, "
                f"got {list(image.shape)}"
            )
