"""Running the network on a GPU: torch's tensors, streams and memory around launch plans.

Everything here is about who owns which memory when. What is computed is in the plans (csrc/plan)
and the kernels (csrc/cuda).
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast.backends import PRECISIONS as DTYPES
from dssnet_fast.backends import decisions
from dssnet_fast.backends.cuda.operands import operands
from dssnet_fast.backends.inputs import (
    check_features,
    check_image,
    check_map,
    map_size,
    readable,
    readable_features,
)
from dssnet_fast.backends.torch_backend import EdgeStage
from dssnet_fast.tiling import Box
from dssnet_fast.weights import FoldedWeights

if TYPE_CHECKING:
    from types import ModuleType

    from dssnet_fast import _native
    from dssnet_fast.python_ref.config import DSSNetConfig

T = TypeVar("T")

PLANS = 256  # kept per network: a few kilobytes each
GRAPHS = 32  # kept per network: each holds memory of the driver's


class Device(Protocol):
    """What the engine asks of a device besides running launches."""

    torch_device: torch.device
    properties: _native.DeviceProperties

    def active(self) -> contextlib.AbstractContextManager:
        """Make it torch's current device for the length of a block."""

    def stream(self) -> int:
        """The handle of its current stream."""

    def is_capturing(self) -> bool:
        """Whether somebody records what is launched on its current stream, as of `active`."""

    def keep_for_stream(self, tensor: Tensor) -> None:
        """Let nobody have the tensor's memory before the current stream is done with it."""

    def wait(self) -> None:
        """Wait for the current stream."""


class TorchDevice:
    """A CUDA device as torch sees it; see `Device`."""

    def __init__(self, device: torch.device, properties: _native.DeviceProperties) -> None:
        self.torch_device = device
        self.properties = properties

    def active(self) -> contextlib.AbstractContextManager:
        """Make it torch's current device for the length of a block."""
        return torch.cuda.device(self.torch_device)

    def stream(self) -> int:
        """The handle of its current stream."""
        return torch.cuda.current_stream(self.torch_device).cuda_stream

    def is_capturing(self) -> bool:
        """Whether somebody records what is launched on its current stream, as of `active`."""
        return torch.cuda.is_current_stream_capturing()

    def keep_for_stream(self, tensor: Tensor) -> None:
        """Let nobody have the tensor's memory before the current stream is done with it."""
        tensor.record_stream(torch.cuda.current_stream(self.torch_device))

    def wait(self) -> None:
        """Wait for the current stream."""
        torch.cuda.current_stream(self.torch_device).synchronize()


class _Recent:
    """The most recently used values, at most `size` of them; safe from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made now if it is not kept."""
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                if len(self._values) > self._size:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]


def network_of(config: DSSNetConfig, native: ModuleType) -> _native.Network:
    """The network's sizes as the extension `native` takes them."""
    return native.Network(
        in_channels=config.in_channels,
        classes=config.classes,
        width=config.width,
        features=config.features,
        blocks=config.blocks,
        upsampling=config.upsampling,
    )


@dataclass(frozen=True)
class _Task:
    """What a plan is made for."""

    stage: str
    batch: int
    height: int
    width: int
    input: str = "uint8"
    output: str = "labels"


class _Graph:
    """The CUDA graph of a plan on one stream, made when it is first needed again.

    Making one costs more than it saves on a single run, and images of ever new sizes give plans
    that run once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = False
        self._graph: _native.Graph | None = None

    def get(self, make: Callable[[], _native.Graph]) -> _native.Graph | None:
        """None the first time."""
        with self._lock:
            if self._graph is None and self._wanted:
                self._graph = make()
            self._wanted = True
            return self._graph


class CudaBackend:
    """The four stages, and all of them as one CUDA graph; see `dssnet_fast.backends.Backend`.

    Work goes to torch's current stream and memory comes from torch's allocator, the workspace of
    each run too: it is back with the allocator when the run has been queued, and whoever gets it
    next on this stream comes after. So runs on several streams and from several threads share
    nothing but the weights. While somebody else captures the stream into a graph, kernels are
    launched one by one and become part of that graph.

    Args:
        weights: The network.
        precision: `fp16` or `bf16`.
        device: Where to run.
        native: The extension, or what stands in for it.
        runner: The extension's `Runner` for the device, its kernels loaded.
    """

    def __init__(
        self,
        weights: FoldedWeights,
        precision: str,
        device: Device,
        native: ModuleType,
        runner: _native.Runner,
    ) -> None:
        self.config = weights.config
        self.precision = precision
        self.dtype = DTYPES[precision]
        self._device = device
        self._native = native
        self._runner = runner
        self._network = network_of(weights.config, native)
        sizes = native.Sizes(self._network)
        self._channels = {"x0": sizes.width, "features": sizes.features, "y": sizes.y}
        self._plans = _Recent(PLANS)
        self._graphs = _Recent(GRAPHS)
        packed = native.pack(self._network, precision, operands(weights, sizes))
        with device.active():
            on_host = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
            self._weights = on_host.to(device.torch_device, copy=True)
            where = device.torch_device
            self._edges = EdgeStage(weights, where, self.dtype) if weights.config.edge else None
            self._home_stream = device.stream()
            # Other streams may be the first to read them.
            device.wait()

    # --- stages ----------------------------------------------------------------------------------

    def infer(self, image: Tensor, output: str) -> Tensor:
        """All stages; see `dssnet_fast.backends.Backend`."""
        image, kind, height, width = self._image(image)
        task = _Task("all", image.shape[0], height, width, kind, output)
        return self._run(task, [image], [self._answer(task)])[0]

    def decide(self, image: Tensor, core: Box, edges: bool = False) -> tuple[Tensor, ...]:
        """All stages for a part of the images; see `dssnet_fast.backends.Backend`."""
        if edges:
            return decisions.by_stages(self, self.config, image, core, edges)
        # All stages are one graph in one workspace; by stages they would be four, with every map
        # between them kept.
        return decisions.by_whole(self, self.config, image, core)

    def infer_edges(self, image: Tensor) -> Tensor:
        """The edge map of whole images; see `dssnet_fast.backends.Backend`."""
        return decisions.infer_edges(self, image)

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1."""
        image, kind, height, width = self._image(image)
        task = _Task("downsample", image.shape[0], height, width, kind)
        return self._run(task, [image], [self._map(task, 8, "x0")])[0][..., : self.config.width]

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2."""
        task = self._task("extract", x0, 8)
        x0 = self._padded("x0", x0, self.config.width)
        results = [self._map(task, 8, "features") for _ in range(2)]
        shallow, deep = self._run(task, [x0], results)
        return shallow[..., : self.config.features], deep[..., : self.config.features]

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        check_features("fuse", shallow, deep)
        task = self._task("fuse", shallow, 8)
        maps = [self._padded("features", part, self.config.features) for part in (shallow, deep)]
        return self._run(task, maps, [self._map(task, 2, "y")])[0]

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head, in PyTorch's operators."""
        device, channels = self._device.torch_device, self.config.features
        features = readable_features("edges", shallow, deep, channels, self.dtype, device)
        return self._edges.edges(*features)

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        task = self._task("segment", y, 2, output)
        y = self._padded("y", y, self._channels["y"])
        return self._run(task, [y], [self._answer(task)])[0]

    # --- tensors ---------------------------------------------------------------------------------

    def _task(self, stage: str, x: Tensor, scale: int, output: str = "labels") -> _Task:
        return _Task(stage, *map_size(stage, x, scale), output=output)

    def _image(self, image: Tensor) -> tuple[Tensor, str, int, int]:
        """The image as kernels read it, its kind, height and width."""
        _, height, width = check_image(image, self.config.in_channels)
        kind = "uint8" if image.dtype == torch.uint8 else "float32"
        image = image if kind == "uint8" else image.float()
        return readable(image, self._device.torch_device), kind, height, width

    def _padded(self, name: str, x: Tensor, channels: int) -> Tensor:
        """A map between stages, its channels padded as kernels want them."""
        check_map(name, x, channels, self.dtype)
        padded = F.pad(x, (0, self._channels[name] - channels))
        return readable(padded, self._device.torch_device)

    def _map(self, task: _Task, scale: int, name: str) -> Tensor:
        shape = (task.batch, task.height // scale, task.width // scale, self._channels[name])
        return self._empty(shape, self.dtype)

    def _answer(self, task: _Task) -> Tensor:
        shape = (task.batch, task.height, task.width)
        if task.output == "labels":
            return self._empty(shape, torch.uint8)
        return self._empty((*shape, self.config.classes), torch.float32)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device.torch_device)

    # --- running ---------------------------------------------------------------------------------

    def _plan(self, task: _Task) -> _native.Plan:
        return self._native.plan(
            network=self._network,
            stage=task.stage,
            batch=task.batch,
            height=task.height,
            width=task.width,
            precision=self.precision,
            input=task.input,
            output=task.output,
            device=self._device.properties,
        )

    def _run(self, task: _Task, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        """Queue a plan on the current stream and return `outputs`, which it will fill."""
        if any(tensor.numel() == 0 for tensor in outputs):
            return outputs
        plan = self._plans.get(task, lambda: self._plan(task))
        with self._device.active():
            stream = self._device.stream()
            workspace = self._empty((plan.workspace_bytes,), torch.uint8)
            addresses = self._addresses(plan, inputs, outputs, workspace)
            if stream != self._home_stream:
                self._device.keep_for_stream(self._weights)
            graph = None
            if not self._device.is_capturing():
                kept = self._graphs.get((task, stream), _Graph)
                graph = kept.get(lambda: self._runner.graph(plan, addresses))
            if graph is None:
                self._runner.launch(plan, addresses, stream)
            else:
                graph.launch(addresses, stream)
        return outputs

    def _addresses(
        self, plan: _native.Plan, inputs: list[Tensor], outputs: list[Tensor], workspace: Tensor
    ) -> list[int]:
        """Where each of the plan's buffers is."""
        role = self._native.Role
        given = {role.input: iter(inputs), role.output: iter(outputs)}
        addresses = []
        for buffer in plan.buffers:
            if buffer.role == role.workspace:
                addresses.append(workspace.data_ptr() + buffer.offset)
                continue
            tensor = self._weights if buffer.role == role.weights else next(given[buffer.role])
            if tensor.nbytes != buffer.bytes:
                raise AssertionError(
                    f"buffer {buffer.name} of a plan has {buffer.bytes} bytes, "
                    f"its tensor {tensor.nbytes}"
                )
            addresses.append(tensor.data_ptr())
        return addresses
