"""TensorRT as a contestant of the benchmarks: the network as ONNX, built in fp16 for one shape.

Of TensorRT's ways to be given half precision, the one of its version is taken: up to 10 a float32
model and leave to choose fp16 for each layer, from 11 on a model whose every tensor is fp16.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dssnet_fast.peers import Unavailable, onnx_model
from dssnet_fast.python_ref.network import DSSNet

if TYPE_CHECKING:
    import onnx

_WORKSPACE = 4 << 30  # bytes that the builder may try tactics in
_THOROUGH = 5  # the builder's highest optimisation level
_WARM_UP = 3  # calls before one is recorded


def in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16 weights and activations; image and logits stay float32.

    Raises:
        Unavailable: onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise Unavailable(f"exporting ONNX needs {error.name}") from error
    model = deepcopy(model)
    graph = model.graph

    def halve(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype("float16")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    # Factors and sizes of resizing are float32 by definition.
    resize = [node for node in graph.node if node.op_type == "Resize"]
    exact = {name for node in resize for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.name not in exact:
            halve(tensor)
    for node in graph.node:
        if exact.intersection(node.output):
            continue
        for attribute in node.attribute:
            halve(attribute.t)
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    del graph.value_info[:]  # it is inferred again
    first, last = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = [f"{first}_half" if name == first else name for name in node.input]
        node.output[:] = [f"{last}_half" if name == last else name for name in node.output]
    begin = helper.make_node("Cast", [first], [f"{first}_half"], to=TensorProto.FLOAT16)
    end = helper.make_node("Cast", [f"{last}_half"], [last], to=TensorProto.FLOAT)
    nodes = [begin, *graph.node, end]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


class Engine:
    """The network built for images of one shape.

    Args:
        reference: The network.
        graph: See `peers.onnx_model`.
        image: float32 [B, in_channels, H, W] on a CUDA device.

    Raises:
        Unavailable: TensorRT or what it needs is not installed, or it refuses the network.
    """

    def __init__(self, reference: DSSNet, graph: str, image: Tensor) -> None:
        try:
            import tensorrt
        except ImportError as error:
            raise Unavailable(f"needs {error.name or 'tensorrt'}: pip install tensorrt") from error
        model = onnx_model(reference, graph)
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        # Networks of TensorRT before 10 have implicit batches unless told otherwise.
        batches = getattr(tensorrt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        network = builder.create_network(0 if batches is None else 1 << int(batches))
        options = builder.create_builder_config()
        options.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, _WORKSPACE)
        options.builder_optimization_level = _THOROUGH
        if hasattr(tensorrt.BuilderFlag, "FP16"):
            options.set_flag(tensorrt.BuilderFlag.FP16)
        else:
            model = in_half_precision(model)
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse(model.SerializeToString()):
            raise Unavailable(f"TensorRT cannot read the model: {parser.get_error(0)}")
        profile = builder.create_optimization_profile()
        shape = tuple(image.shape)
        profile.set_shape("image", shape, shape, shape)
        options.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, options)
        if plan is None:
            raise Unavailable("TensorRT failed to build the network")
        # Both must outlive the context.
        self._runtime = tensorrt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._context.set_input_shape("image", shape)
        shape = (image.shape[0], reference.config.classes, *image.shape[2:])
        self._logits = torch.empty(shape, device=image.device)
        self._context.set_tensor_address("logits", self._logits.data_ptr())

    def recorded(self, image: Tensor) -> Callable[[], Tensor]:
        """A call that computes the logits of `image`: a CUDA graph, as TensorRT is fastest.

        All calls write the same tensor.
        """
        self._context.set_tensor_address("image", image.data_ptr())

        def run() -> None:
            stream = torch.cuda.current_stream(image.device)
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise Unavailable("TensorRT failed to run the network")

        side = torch.cuda.Stream(image.device)
        side.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.synchronize(image.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()

        def replay() -> Tensor:
            graph.replay()
            return self._logits

        # The graph reads the image's memory, wherever the caller's reference to it has gone.
        replay.image = image
        return replay
