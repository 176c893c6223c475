"""OpenVINO on the CPU as a contestant of the benchmarks, in float32, bfloat16 and int8."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dssnet_fast import peers

if TYPE_CHECKING:
    import onnx
    import openvino

PRECISIONS = ("fp32", "bf16", "int8")
# What layers that are not quantised run in: int8 leaves that to OpenVINO, as its users do.
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def require(precision: str) -> None:
    """Raise `peers.Unavailable` where packages are not installed or the CPU lacks `precision`."""
    # NNCF tells Google Analytics that it is used, except where this is set.
    os.environ.setdefault("NNCF_CI", "1")
    peers.need("onnx", "onnxscript", "openvino", *(["nncf"] if precision == "int8" else []))
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.upper() not in able:
        raise peers.Unavailable(f"OpenVINO has no {precision} on this CPU; it has {able}")


class Engine:
    """The network built for images of one shape, on as many threads as PyTorch has.

    Args:
        model: See `peers.onnx_model`.
        precision: One of `PRECISIONS`.
        samples: Images to quantise on, float32 [N, in_channels, H, W]; for `int8` only.
        image: What `run` computes on, float32 [B, in_channels, H, W], contiguous.
        reduced: See `quantised`; for `int8` only.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        precision: str,
        samples: Tensor,
        image: Tensor,
        reduced: bool = False,
    ) -> None:
        import openvino

        core = openvino.Core()
        network = core.read_model(model.SerializeToString())
        if precision == "int8":
            network = quantised(network, samples, reduced)
        network.reshape(list(image.shape))
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if precision in _HINTS:
            options["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
        self.compiled = core.compile_model(network, "CPU", options)
        self._logits = torch.empty(tuple(self.compiled.output(0).shape))
        self._request = self.compiled.create_infer_request()
        # The request reads and writes torch's memory.
        given, answer = image.numpy(), self._logits.numpy()
        self._request.set_input_tensor(openvino.Tensor(given, shared_memory=True))
        self._request.set_output_tensor(openvino.Tensor(answer, shared_memory=True))
        self._image = image

    def run(self) -> Tensor:
        """Logits [B, classes, H, W] float32 of the image; all calls write the same tensor."""
        self._request.infer()
        return self._logits


def quantised(network: openvino.Model, samples: Tensor, reduced: bool = False) -> openvino.Model:
    """Post-training quantisation with NNCF as its guide does it.

    Args:
        network: float32.
        samples: float32 [N, in_channels, H, W].
        reduced: Every layer's weights have 7 bits, not only the first one's as by default: NNCF's
            remedy for processors without VNNI, see `onnxruntime_peer.quantised`.
    """
    import nncf

    images = [sample[None].numpy() for sample in samples]
    # Warnings and progress bars would go to stdout, among results.
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            network,
            nncf.Dataset(images),
            subset_size=len(images),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if reduced else None
            ),
        )
