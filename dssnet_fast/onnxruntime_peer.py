"""ONNX Runtime on the CPU as a contestant of the benchmarks, in float32 and int8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dssnet_fast import peers

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32", "int8")


def require(precision: str) -> None:
    """Raise `peers.Unavailable` where the packages are not installed."""
    peers.need("onnx", "onnxscript", "onnxruntime")


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
        import onnxruntime

        if precision == "int8":
            model = quantised(model, samples, reduced)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Else its threads go on spinning into the turn of whoever comes next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        dims = model.graph.input[0].type.tensor_type.shape.dim
        for dim, size in zip(dims, image.shape, strict=True):
            if dim.dim_param:
                options.add_free_dimension_override_by_name(dim.dim_param, size)
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (logits,) = self.session.run(["logits"], {"image": image.numpy()})
        self._image, self._logits = image, torch.from_numpy(logits)
        self._binding = self.session.io_binding()
        self._binding.bind_input("image", "cpu", 0, np.float32, image.shape, image.data_ptr())
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)

    def run(self) -> Tensor:
        """Logits [B, classes, H, W] float32 of the image; all calls write the same tensor."""
        self.session.run_with_iobinding(self._binding)
        return self._logits


def quantised(model: onnx.ModelProto, samples: Tensor, reduced: bool = False) -> onnx.ModelProto:
    """Static quantisation as ONNX Runtime's guide does it: weights a channel, QDQ, uint8 maps.

    Args:
        model: float32.
        samples: float32 [N, in_channels, H, W].
        reduced: Weights of 7 bits, its remedy for processors without VNNI: there two products of
            a byte and 8 bits are added up in 16 bits, and the sums saturate.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self._left, None)
            return None if sample is None else {"image": sample[None].numpy()}

    with tempfile.TemporaryDirectory() as folder:
        names = ("model", "prepared", "quantised")
        given, prepared, done = (Path(folder, f"{name}.onnx") for name in names)
        # By path: it would move the weights out of a model that it is given as such.
        onnx.save(model, given)
        # Its symbolic shape inference gives up on sizes that are multiples of 8.
        quantization.quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            done,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=reduced,
        )
        return onnx.load(done)
