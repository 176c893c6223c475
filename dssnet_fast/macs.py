"""Multiply-accumulates of a computation, counted from what PyTorch would run.

Nothing is computed for real: everything happens on torch's meta device, in shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from dssnet_fast.backends.torch_backend import TorchBackend
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.weights import FoldedWeights, folded_shapes, inference_config

META = torch.device("meta")


def count(compute: Callable[[], object]) -> int:
    """Multiply-accumulates of all convolutions and matrix products that `compute` runs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2


def reference(config: DSSNetConfig, height: int, width: int) -> int:
    """Of the reference's inference path on one image; both sides multiples of 8."""
    with META:
        network = DSSNet(inference_config(config))
        image = torch.empty(1, config.in_channels, height, width)
    return count(lambda: network.logits(image))


def folded(config: DSSNetConfig, height: int, width: int) -> dict[str, int]:
    """Of each stage of the folded graph on one image; both sides multiples of 8.

    `edges`, where the network has an edge head, holds the FFM, too, as `fuse` does.
    """
    config = inference_config(config)
    shapes = folded_shapes(config)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    backend = TorchBackend(FoldedWeights(config, tensors, (), ""), META, torch.float32)
    image = torch.empty(1, config.in_channels, height, width, device=META)
    x0 = backend.downsample(image)
    features = backend.extract(x0)
    y = backend.fuse(*features)
    edges = {"edges": count(lambda: backend.edges(*features))} if config.edge else {}
    return {
        "downsample": count(lambda: backend.downsample(image)),
        "extract": count(lambda: backend.extract(x0)),
        "fuse": count(lambda: backend.fuse(*features)),
        "segment": count(lambda: backend.segment(y, "logits")),
        **edges,
    }
