"""What other inference engines in the benchmarks share: the network as ONNX, and why one is out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.utils import parametrize

from dssnet_fast import onnx_export
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import load_released, released_state
from dssnet_fast.weights import fold_checkpoint

if TYPE_CHECKING:
    import onnx

GRAPHS = ("original", "folded")
INSTALL = "pip install 'dssnet_fast[peers]'"


class Unavailable(Exception):
    """A contestant cannot run here; the message says why."""


def need(*packages: str) -> None:
    """Import packages that are no dependency of ours.

    Raises:
        Unavailable: One is not installed; says how to install it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise Unavailable(f"needs {error.name or package}: {INSTALL}") from error


class _Original(nn.Module):
    """The reference's inference path, weight normalisation folded as everybody does."""

    def __init__(self, reference: DSSNet) -> None:
        super().__init__()
        # Not a copy: removing its parametrisations would take them from the reference's classes.
        self._network = DSSNet(reference.config).requires_grad_(False)
        load_released(self._network, released_state(reference))
        for layer in self._network.modules():
            if parametrize.is_parametrized(layer):
                parametrize.remove_parametrizations(layer, "weight")

    def forward(self, image: Tensor) -> Tensor:
        return self._network.logits(image)


def onnx_model(reference: DSSNet, graph: str) -> onnx.ModelProto:
    """A float32 model: input `image`, output `logits`, all sizes but the channels dynamic.

    Args:
        reference: The network.
        graph: `original`, its layers as released; `folded`, what `dssnet_fast.convert` exports.

    Raises:
        Unavailable: A package is missing.
    """
    need("onnx", "onnxscript")
    if graph == "original":
        module = _Original(reference)
    else:
        module = onnx_export.Graph(fold_checkpoint(from_state(released_state(reference))))
    return onnx_export.to_onnx(module.eval(), reference.config.in_channels)
