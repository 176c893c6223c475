"""The folded graph as ONNX, checked with onnxruntime."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dssnet_fast.backends.torch_backend import TorchBackend
from dssnet_fast.parity import relative_error
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.python_ref.network import SCALE
from dssnet_fast.weights import FoldedWeights

if TYPE_CHECKING:
    import onnx

OPSET = 18
TOLERANCE = 2e-5
# Sizes other than the traced one, so that the dynamic dimensions are really used.
_CHECKED = ((1, 64, 96), (2, 40, 24), (3, 8, 8))


class Graph(nn.Module):
    """The four stages in a row: [B, in_channels, H, W] float32 -> logits [B, classes, H, W]."""

    def __init__(self, weights: FoldedWeights) -> None:
        super().__init__()
        self._stages = TorchBackend(weights, torch.device("cpu"), torch.float32)

    def forward(self, image: Tensor) -> Tensor:
        """All stages."""
        stages = self._stages
        y = stages.fuse(*stages.extract(stages.downsample(image)))
        return stages.segment(y, "logits").permute(0, 3, 1, 2)


def to_onnx(module: nn.Module, in_channels: int) -> onnx.ModelProto:
    """An ONNX model of a module on the CPU, batch, height and width dynamic.

    Args:
        module: [B, in_channels, H, W] float32, H and W multiples of 8, to logits.
        in_channels: Of the image.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    sides = torch.export.Dim("height_8", min=1), torch.export.Dim("width_8", min=1)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (torch.zeros(2, in_channels, 5 * SCALE, 7 * SCALE),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={
                    "image": {
                        0: torch.export.Dim("batch", min=1),
                        2: SCALE * sides[0],
                        3: SCALE * sides[1],
                    }
                },
            )
    finally:
        exporter_log.setLevel(level)
    return program.model_proto


def export_onnx(weights: FoldedWeights, path: str | os.PathLike) -> float:
    """Write the folded graph as one ONNX file and run it in onnxruntime.

    Input `image`: float32 [batch, in_channels, height, width], `(value - 128) / 128`; height and
    width multiples of 8. Output `logits`: float32 [batch, classes, height, width].

    Args:
        weights: The network.
        path: The file to write or replace.

    Returns:
        The worst relative error of onnxruntime's answers against PyTorch's.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is not installed, or the answers differ.
        OSError: The file cannot be written.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise InputError(
            f"ONNX export needs {error.name}; install it with: pip install 'dssnet_fast[onnx]'"
        ) from error
    graph = Graph(weights).eval()
    config = weights.config
    with atomic_write(Path(path)) as temporary:
        model = to_onnx(graph, config.in_channels)
        onnx.helper.set_model_props(
            model,
            {
                "config": json.dumps(config.to_dict()),
                "class_names": json.dumps(weights.class_names),
                "normalisation": "(value - 128) / 128",
                "source_sha256": weights.source_digest,
            },
        )
        onnx.checker.check_model(model, full_check=True)
        onnx.save_model(model, temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        error = max(_error(session, graph, config.in_channels, *size) for size in _CHECKED)
        if not error <= TOLERANCE:
            raise InputError(
                f"{path}: onnxruntime differs from PyTorch by {error:.1e} (limit {TOLERANCE:.0e}); "
                "not written"
            )
    return error


def _error(session, graph: Graph, channels: int, batch: int, height: int, width: int) -> float:
    generator = torch.Generator().manual_seed(height)
    image = torch.rand(batch, channels, height, width, generator=generator) * 2 - 1
    with torch.no_grad():
        expected = graph(image).double().numpy()
    (actual,) = session.run(["logits"], {"image": image.numpy()})
    assert np.shape(actual) == expected.shape
    return relative_error(actual, expected)
