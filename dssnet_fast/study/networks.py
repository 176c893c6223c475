"""The networks that are compared, by the names that the paper's Table 5 gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dssnet_fast import cli, macs
from dssnet_fast.checkpoint import plain_shapes
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet, DSSNetOutput
from dssnet_fast.python_ref.unet import UNet
from dssnet_fast.training_graph import FoldedTraining

DSSNET = "DSSNet"
ENCODER = "resnet34"  # of the networks from segmentation-models-pytorch


class LogitsOnly(nn.Module):
    """A network without branches, as `Trainer` asks for one.

    Args:
        network: [B, C, H, W] -> logits [B, classes, H, W], for sides that are multiples of
            `multiple`.
        multiple: Other images are extended at the bottom and right with 0, and the logits cropped.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, image: Tensor) -> DSSNetOutput:
        """As `logits`, without reconstruction and edge map."""
        return DSSNetOutput(self.logits(image), None, None)

    def logits(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes, H, W]."""
        height, width = image.shape[-2:]
        extra = (0, -width % self.multiple, 0, -height % self.multiple)
        return self.network(F.pad(image, extra))[..., :height, :width]


def _unet(config: DSSNetConfig) -> nn.Module:
    return LogitsOnly(UNet(config.in_channels, config.classes), 16)


def _unet_plus_plus(config: DSSNetConfig) -> nn.Module:
    return LogitsOnly(_library().UnetPlusPlus(**_described(config)), 32)


def _pspnet(config: DSSNetConfig) -> nn.Module:
    return LogitsOnly(_library().PSPNet(**_described(config)), 8)


def _library():
    require(("UNet++",))
    import segmentation_models_pytorch

    return segmentation_models_pytorch


def _described(config: DSSNetConfig) -> dict[str, object]:
    return {
        "encoder_name": ENCODER,
        "encoder_weights": None,  # random: nothing is downloaded
        "in_channels": config.in_channels,
        "classes": config.classes,
    }


MAKERS: dict[str, Callable[[DSSNetConfig], nn.Module]] = {
    DSSNET: DSSNet,
    "UNet": _unet,
    "UNet++": _unet_plus_plus,
    "PSPNet": _pspnet,
}
_FROM_LIBRARY = ("UNet++", "PSPNet")


def require(names: tuple[str, ...]) -> None:
    """Make sure that networks can be made.

    Raises:
        InputError: One needs a package that is not installed; says what to install.
    """
    if set(names) & set(_FROM_LIBRARY):
        cli.need_packages("study", ("segmentation_models_pytorch",))


def graph_of(name: str) -> Callable[[nn.Module], nn.Module] | None:
    """What `Trainer` runs in a network's place."""
    return FoldedTraining if name == DSSNET else None


@cache
def parameters(name: str, config: DSSNetConfig) -> int:
    """Of the path from image to logits, weight normalisation folded."""
    if name == DSSNET:
        config = replace(config, super_resolution=False, edge=False)
        return sum(shape.numel() for shape in plain_shapes(config).values())
    with macs.META:
        return sum(value.numel() for value in MAKERS[name](config).parameters())


@cache
def multiply_accumulates(name: str, config: DSSNetConfig, size: int) -> int:
    """From one image of size x size px to its logits, as the network is published.

    Args:
        name: One of `MAKERS`.
        config: Its architecture; of others than DSSNet only channels and classes.
        size: A multiple of 32.
    """
    if name == DSSNET:
        return macs.reference(config, size, size)
    with macs.META:
        network = MAKERS[name](config).eval()
        image = torch.empty(1, config.in_channels, size, size)
    return macs.count(lambda: network.logits(image))
