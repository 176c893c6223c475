"""UNet, the network that the paper compares DSSNet with (its Table 5).

Source: Ronneberger et al. 2015, with padded convolutions, so that the output has the input's size:
31.0 million parameters.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (64, 128, 256, 512, 1024)  # channels at 1, 1/2, 1/4, 1/8 and 1/16 resolution


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """The classic UNet.

    Args:
        in_channels: Channels of the image.
        classes: Segmentation classes with the background.
    """

    def __init__(self, in_channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _double_conv(inputs, outputs)
            for inputs, outputs in itertools.pairwise((in_channels, *WIDTHS))
        )
        pairs = list(itertools.pairwise(WIDTHS[::-1]))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_double_conv(2 * b, b) for _, b in pairs)
        self.outer = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits.

        Args:
            image: [B, in_channels, H, W] float; H and W multiples of 16.

        Returns:
            [B, classes, H, W].

        Raises:
            ValueError: A side is no multiple of 16.
        """
        if image.shape[-2] % 16 or image.shape[-1] % 16:
            raise ValueError(
                f"image must have H and W multiples of 16, got shape {list(image.shape)}"
            )
        x, skipped = image, []
        for number, layers in enumerate(self.down):
            x = layers(x if number == 0 else F.max_pool2d(x, 2))
            skipped.append(x)
        for enlarge, layers, skip in zip(self.enlarge, self.up, skipped[-2::-1], strict=True):
            x = layers(torch.cat([skip, enlarge(x)], dim=1))
        return self.outer(x)
