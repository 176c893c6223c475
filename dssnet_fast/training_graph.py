"""The network in training, in fewer operations: the same numbers and gradients.

The folding that inference uses (`fold.py`), written on the trained parameters instead of on fixed
weights, so that gradients flow through it: the FFM on the values of cells that differ, and pairs of
convolutions with nothing between them as one. What is folded is computed in float32 whatever the
network runs in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dssnet_fast import fold
from dssnet_fast.python_ref.network import DSSNet, DSSNetOutput, FeatureFusion


class FoldedTraining(nn.Module):
    """Runs a `DSSNet`; its parameters are that network's own.

    Args:
        network: To be trained.
    """

    def __init__(self, network: DSSNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> DSSNetOutput:
        """As `DSSNet.forward`."""
        network = self.network
        x0 = network.downsample(image)
        fused = _fuse(network.ffm, torch.cat(network.extract(x0), dim=1))
        return DSSNetOutput(
            segmentation=self._segment(fused),
            reconstruction=network.super_resolution(x0) if network.super_resolution else None,
            edge=self._edge(fused) if network.edge else None,
        )

    def logits(self, image: Tensor) -> Tensor:
        """As `DSSNet.logits`."""
        features = self.network.extract(self.network.downsample(image))
        return self._segment(_fuse(self.network.ffm, torch.cat(features, dim=1)))

    def _segment(self, fused: Tensor) -> Tensor:
        head = self.network.segmentation
        y = head.reduce_activation(head.reduce(fused))
        y = head.narrow_activation(head.narrow(y))
        # Logits are differences of large numbers; a bfloat16 product would be worse than the
        # reference's, which rounds between the two.
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        return _linear_pair(y, head.inner, head.outer, scale=2)

    def _edge(self, fused: Tensor) -> Tensor:
        first, activation, second, third, last = self.network.edge
        return last(_linear_pair(activation(first(fused)), second, third))


def _fuse(ffm: FeatureFusion, x: Tensor) -> Tensor:
    """[B, 2C, h, w] -> [B, 2C, 4h, 4w], as `FeatureFusion.forward`."""
    if ffm.upsampling != "nearest":
        return ffm(x)
    mixed = ffm.mix_activation(ffm.mix(x))
    with _float32(x):
        kernels = fold.cell_kernels(ffm.smooth.weight)
    values = fold.cell_values(mixed, kernels, ffm.smooth.bias, ffm.smooth_activation)
    return fold.lay_out_cells(values).permute(0, 3, 1, 2)


def _linear_pair(x: Tensor, first: nn.Conv2d, second: nn.Conv2d, scale: int = 1) -> Tensor:
    """Two 3x3 convolutions over the nearest-neighbour up-sampled map, in float32 at its end.

    Args:
        x: [B, C, H, W].
        first: Its padded output is what `second` sees.
        second: Has O outputs.
        scale: Of the up-sampling.

    Returns:
        [B, O, scale * H, scale * W].
    """
    factors = (first.weight, first.bias, second.weight)
    exact = torch.promote_types(x.dtype, torch.float32)
    with _float32(x):
        weight, bias = fold.compose(*factors, second.bias)
        if scale > 1:
            weight = fold.subpixel(weight, scale)
            bias = bias.repeat_interleave(scale * scale)
        y = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=weight.shape[-1] // 2)
        y = F.pixel_shuffle(y.to(exact), scale) if scale > 1 else y.to(exact)
        border = tuple(line.to(exact) for line in fold.outermost(x, scale))
        return fold.subtract_border_excess(y, border, *factors)


def _float32(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
