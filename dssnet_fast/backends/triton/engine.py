"""The network as launches of Triton kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

import dssnet_fast.backends.triton.graphs as graphs
from dssnet_fast.backends import decisions, new_answer
from dssnet_fast.backends.inputs import (
    check_features,
    check_image,
    check_map,
    map_size,
    readable,
    readable_features,
)
from dssnet_fast.backends.torch_backend import EdgeStage
from dssnet_fast.backends.triton.operands import pack
from dssnet_fast.backends.triton.stages import program
from dssnet_fast.tiling import Box
from dssnet_fast.weights import FoldedWeights

PROGRAMS = 256  # kept per network: a few kilobytes each


class TritonBackend:
    """The four stages; see `dssnet_fast.backends.Backend`.

    Work goes to torch's current stream, and the workspace of each run comes from torch's allocator,
    so that runs on several streams and from several threads share nothing but the weights. With
    `DSSNET_FAST_TRITON_GRAPHS=1` `infer` replays CUDA graphs instead.

    Args:
        weights: The network.
        device: Where the kernels run; the CPU in Triton's interpreter.
        dtype: Of maps and weights; sums are float32.
        precision: How float32 is multiplied; see `dssnet_fast.kernels.launch.PRECISIONS`.
    """

    def __init__(
        self,
        weights: FoldedWeights,
        device: torch.device,
        dtype: torch.dtype,
        precision: str = "ieee",
    ) -> None:
        self.config = weights.config
        self.dtype = dtype
        self._device = device
        self._network = pack(weights, device, dtype, precision)
        self._channels = self._network.sizes
        self._edges = EdgeStage(weights, device, dtype) if weights.config.edge else None
        self._program = lru_cache(PROGRAMS)(partial(program, self._network))
        wanted = os.environ.get(graphs.VARIABLE) == "1" and device.type == "cuda"
        self._graphs = graphs.Graphs() if wanted else None

    # --- stages ----------------------------------------------------------------------------------

    def infer(self, image: Tensor, output: str) -> Tensor:
        """All stages; see `dssnet_fast.backends.Backend`."""
        image, shape = self._image(image)

        def run(image: Tensor) -> Tensor:
            answer = new_answer(image, shape, output, self.config.classes)
            self._run("infer", shape, output, {"image": image, "answer": answer})
            return answer

        if self._graphs is None or 0 in shape:
            return run(image)
        with self._current():
            return self._graphs.run((shape, image.dtype, output), run, image)

    def decide(self, image: Tensor, core: Box, edges: bool = False) -> tuple[Tensor, ...]:
        """All stages for a part of the images; see `dssnet_fast.backends.Backend`."""
        if edges:
            return decisions.by_stages(self, self.config, image, core, edges)
        # All stages are one program in one workspace, or one graph; by stages they would be four,
        # with every map between them kept.
        return decisions.by_whole(self, self.config, image, core)

    def infer_edges(self, image: Tensor) -> Tensor:
        """The edge map of whole images; see `dssnet_fast.backends.Backend`."""
        return decisions.infer_edges(self, image)

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1."""
        image, shape = self._image(image)
        x0 = self._map(shape, 8, self._channels.width)
        self._run("downsample", shape, "", {"image": image, "x0": x0})
        return x0[..., : self.config.width]

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2."""
        shape = map_size("extract", x0, 8)
        joined = self._map(shape, 8, 2 * self._channels.features)
        x0 = self._padded("x0", x0, self.config.width, self._channels.width)
        self._run("extract", shape, "", {"x0": x0, "joined": joined})
        shallow, deep = joined.chunk(2, dim=3)
        return shallow[..., : self.config.features], deep[..., : self.config.features]

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        check_features("fuse", shallow, deep)
        shape = map_size("fuse", shallow, 8)
        padded = [
            self._padded("features", x, self.config.features, self._channels.features)
            for x in (shallow, deep)
        ]
        joined = torch.cat(padded, dim=3)
        y = self._map(shape, 2, self._channels.y)
        self._run("fuse", shape, "", {"joined": joined, "y": y})
        return y

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head, in PyTorch's operators."""
        channels = self.config.features
        features = readable_features("edges", shallow, deep, channels, self.dtype, self._device)
        return self._edges.edges(*features)

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        shape = map_size("segment", y, 2)
        y = self._padded("y", y, self._channels.y, self._channels.y)
        answer = new_answer(y, shape, output, self.config.classes)
        self._run("segment", shape, output, {"y": y, "answer": answer})
        return answer

    # --- tensors ---------------------------------------------------------------------------------

    def _image(self, image: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """The image as kernels read it, and its batch, height and width."""
        size = check_image(image, self.config.in_channels)
        image = image if image.dtype == torch.uint8 else image.float()
        return readable(image, self._device), size

    def _padded(self, name: str, x: Tensor, channels: int, wanted: int) -> Tensor:
        """A map between stages with zeros from its `channels` up to those wanted."""
        check_map(name, x, channels, self.dtype)
        return readable(F.pad(x, (0, wanted - channels)), self._device)

    def _map(self, shape: tuple[int, int, int], scale: int, channels: int) -> Tensor:
        batch, height, width = shape
        size = (batch, height // scale, width // scale, channels)
        return torch.empty(size, dtype=self.dtype, device=self._device)

    def _run(
        self, stage: str, shape: tuple[int, int, int], output: str, given: Mapping[str, Tensor]
    ) -> None:
        if 0 in shape:
            return
        with self._current():
            self._program(stage, shape, output).run(given, self._device)

    def _current(self) -> contextlib.AbstractContextManager:
        """Triton launches on torch's current device."""
        on_gpu = self._device.type == "cuda"
        return torch.cuda.device(self._device) if on_gpu else contextlib.nullcontext()
