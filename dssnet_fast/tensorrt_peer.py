"""TensorRT as a contestant of the benchmarks: the network as ONNX, built for one shape, in fp16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dssnet_fast.python_ref.network import DSSNet

GRAPHS = ("original", "folded")
_WORKSPACE = 4 << 30  # bytes that the builder may try tactics in


class Unavailable(Exception):
    """TensorRT cannot run the network here; the message says why."""


class _Original(nn.Module):
    """The reference as released: image -> logits [B, classes, H, W]."""

    def __init__(self, network: DSSNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.logits(image)


def onnx_model(reference: DSSNet, graph: str):
    """A float32 ONNX model, input `image`, output `logits`, all but the channels dynamic.

    Args:
        reference: The network.
        graph: `original`, its layers as they are; `folded`, what `python -m dssnet_fast.convert`
            exports.

    Raises:
        Unavailable: A package is missing.
    """
    from copy import deepcopy

    from dssnet_fast import onnx_export
    from dssnet_fast.checkpoint import from_state
    from dssnet_fast.python_ref.released import released_state
    from dssnet_fast.weights import fold_checkpoint, unfold

    folded = fold_checkpoint(from_state(released_state(reference)))
    if graph == "folded":
        module = onnx_export.Graph(folded)
    else:
        # Weight normalisation would be computed in every run; nobody deploys it. So unfold, but
        # keep the down-samplers' 1x1 convolutions.
        module = _Original(deepcopy(reference).cpu().float())
        _remove_weight_norm(module)
    del unfold
    try:
        return onnx_export.to_onnx(module.eval(), reference.config.in_channels)
    except ImportError as error:
        raise Unavailable(f"exporting ONNX needs {error.name}") from error
