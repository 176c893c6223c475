"""The residual blocks of the feature extraction, and the convolution they are made of.

Source: Luo et al. 2022, section 3.3.3 and Fig. 5, which compares four kinds of block. W-NECK is as
released; the other three follow the papers that introduced them, with PReLU as activation.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

EXPANSION = 6  # hidden channels per channel
LOW_RANK = 0.75  # squeezed channels per channel


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A weight-normalised convolution with bias that keeps the size (at stride 1)."""
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2))


class WNeck(nn.Module):
    """Wide neck: 1x1 and 3x3 expansion side by side, PReLU, low-rank squeeze, restore, add.

    [B, C, h, w] -> [B, C, h, w]. Each branch has C * 6 / 2 channels, the squeeze int(C * 0.75).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        branch = channels * EXPANSION // 2
        squeezed = int(channels * LOW_RANK)
        self.expand1 = conv(channels, branch, kernel=1)
        self.expand3 = conv(channels, branch)
        self.activation = nn.PReLU()
        self.squeeze = conv(2 * branch, squeezed)
        self.restore = conv(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        wide = self.activation(torch.cat([self.expand1(x), self.expand3(x)], dim=1))
        return x + self.restore(self.squeeze(wide))


class Residual(nn.Module):
    """x + layers(x). [B, C, h, w] -> [B, C, h, w].

    Args:
        layers: Run in this order, under these names.
    """

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return x + self.layers(x)


def wdsr_b(channels: int) -> Residual:
    """WDSR-B (Yu et al. 2018): 1x1 wide expansion, PReLU, 1x1 low-rank squeeze, 3x3."""
    wide, squeezed = channels * EXPANSION, int(channels * LOW_RANK)
    return Residual(
        expand=conv(channels, wide, kernel=1),
        activation=nn.PReLU(),
        squeeze=conv(wide, squeezed, kernel=1),
        restore=conv(squeezed, channels),
    )


def bottleneck(channels: int) -> Residual:
    """Bottleneck (He et al. 2016): 1x1 to a quarter of the channels, 3x3, 1x1 back."""
    narrow = channels // 4
    return Residual(
        reduce=conv(channels, narrow, kernel=1),
        activation=nn.PReLU(),
        inner=conv(narrow, narrow),
        inner_activation=nn.PReLU(),
        restore=conv(narrow, channels, kernel=1),
    )


def basic(channels: int) -> Residual:
    """Basic residual block (He et al. 2016): two 3x3 convolutions."""
    return Residual(
        first=conv(channels, channels), activation=nn.PReLU(), second=conv(channels, channels)
    )


MAKERS = {"wneck": WNeck, "wdsr_b": wdsr_b, "bottleneck": bottleneck, "basic": basic}
