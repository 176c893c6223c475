"""A network on the PTX executor beside its reference, stage by stage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast.backends import PRECISIONS
from dssnet_fast.backends.cuda.engine import network_of
from dssnet_fast.backends.cuda.operands import operands
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import FoldedWeights, fold_checkpoint
from networks import noise, random_network
from ptx.plans import device_properties, run_plan, shipped_kernels


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|; NaN if anything is NaN."""
    return ((got.double() - wanted).norm() / wanted.norm()).item()


def last(x: Tensor) -> Tensor:
    """Channels first to channels last."""
    return x.permute(0, 2, 3, 1).contiguous()


def first(x: Tensor) -> Tensor:
    """Channels last to channels first."""
    return x.permute(0, 3, 1, 2)


class Laboratory:
    """One network, packed for one precision, on the executor.

    Args:
        native: The extension.
        network: The reference, or folded weights without one.
        precision: `fp16` or `bf16`.
        device: Name and changes for `device_properties`.
        ptx: Where the kernels come from.
        racecheck: Whether runs also look for races.
    """

    def __init__(
        self,
        native,
        network: DSSNet | FoldedWeights,
        precision: str = "fp16",
        device: tuple[str, dict] = ("H100", {}),
        ptx: Callable[[str], str] = shipped_kernels,
        racecheck: bool = False,
    ) -> None:
        self.native, self.precision, self.ptx, self.racecheck = native, precision, ptx, racecheck
        if isinstance(network, DSSNet):
            network = fold_checkpoint(from_state(released_state(network)))
        self.config = network.config
        self.dtype = PRECISIONS[precision]
        self.network = network_of(self.config, native)
        self.sizes = native.Sizes(self.network)
        matrices = operands(network, self.sizes)
        self.weights = native.pack(self.network, precision, matrices)
        self.device = device_properties(native, device[0], **device[1])

    def plan(self, stage: str, shape: tuple[int, int, int], input: str, output: str):
        """The launches for images of `shape` (batch, height, width)."""
        return self.native.plan(
            self.network, stage, *shape, self.precision, input, output, self.device
        )

    def run(
        self,
        stage: str,
        shape: tuple[int, int, int],
        *inputs: np.ndarray,
        input: str = "uint8",
        output: str = "logits",
        **options,
    ) -> list[np.ndarray]:
        """Bytes of the outputs of a stage."""
        plan = self.plan(stage, shape, input, output)
        options.setdefault("racecheck", self.racecheck)
        return run_plan(plan, self.weights, inputs, ptx=self.ptx, **options)

    def stored(self, x: Tensor, channels: int) -> np.ndarray:
        """A map [B, h, w, C] as kernels store it: rounded, padded with zero channels."""
        padded = F.pad(x, (0, channels - x.shape[-1])).to(self.dtype).contiguous()
        return padded.view(torch.int16).numpy()

    def read(
        self, data: np.ndarray, shape: tuple[int, int, int], scale: int, channels: int
    ) -> Tensor:
        """A stored map as [B, scale * h, scale * w, channels] without its padding.

        Raises:
            AssertionError: The padding is not zero.
        """
        batch, height, width = shape[0], shape[1] // 8 * scale, shape[2] // 8 * scale
        values = torch.from_numpy(data.view(np.int16)).view(self.dtype)
        values = values.view(batch, height, width, -1)
        assert not values[..., channels:].any(), "padding channels must be zero"
        return values[..., :channels]

    # --- stages, from and to plain tensors ---

    def downsample(self, image: np.ndarray | Tensor) -> Tensor:
        """uint8 [B, H, W, C], or normalised float32 [B, C, H, W]."""
        if isinstance(image, Tensor):
            shape = (image.shape[0], *image.shape[2:])
            (x0,) = self.run("downsample", shape, image.float().numpy(), input="float32")
        else:
            shape = image.shape[:3]
            (x0,) = self.run("downsample", shape, image)
        return self.read(x0, shape, 1, self.config.width)

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        shape = _image_shape(x0, 8)
        maps = self.run("extract", shape, self.stored(x0, self.sizes.width))
        shallow, deep = (self.read(one, shape, 1, self.config.features) for one in maps)
        return shallow, deep

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        shape = _image_shape(shallow, 8)
        maps = (self.stored(one, self.sizes.features) for one in (shallow, deep))
        (y,) = self.run("fuse", shape, *maps)
        return self.read(y, shape, 4, 32)

    def segment(self, y: Tensor, output: str) -> Tensor:
        shape = _image_shape(y, 2)
        (answer,) = self.run("segment", shape, self.stored(y, 32), output=output)
        return self.answer(answer, shape, output)

    def infer(self, image: np.ndarray, output: str, **options) -> Tensor:
        """The whole network on uint8 [B, H, W, C]."""
        shape = image.shape[:3]
        (answer,) = self.run("all", shape, image, output=output, **options)
        return self.answer(answer, shape, output)

    def answer(self, data: np.ndarray, shape: tuple[int, int, int], output: str) -> Tensor:
        """Bytes of an answer as [B, H, W] or [B, H, W, classes]."""
        if output == "labels":
            return torch.from_numpy(data).view(shape)
        return torch.from_numpy(data.view(np.float32)).view(*shape, self.config.classes)


def _image_shape(x: Tensor, scale: int) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1] * scale, x.shape[2] * scale


class Reference:
    """What the stages should give, in float64, and what PyTorch gives in the same precision."""

    def __init__(self, network: DSSNet, dtype: torch.dtype, image: np.ndarray) -> None:
        self.exact = network.double()
        rounded = DSSNet(network.config)
        rounded.load_state_dict(network.state_dict())
        self.rounded = rounded.to(dtype).eval()
        self.dtype = dtype
        self.image = (torch.from_numpy(image).double().permute(0, 3, 1, 2) - 128) / 128

    @torch.no_grad()
    def stage(self, name: str, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """A stage's results in float64 and in the precision; maps [B, h, w, C] in and out."""
        exact = getattr(self.exact, name)(*(first(x.double()) for x in inputs))
        rounded = getattr(self.rounded, name)(*(first(x.to(self.dtype)) for x in inputs))
        as_list = [x if isinstance(x, tuple) else (x,) for x in (exact, rounded)]
        return [last(x) for x in as_list[0]], [last(x) for x in as_list[1]]


def specimen(config: DSSNetConfig, shape: tuple[int, int, int]) -> tuple[DSSNet, np.ndarray]:
    """A random network and noise to run it on.

    Where convolutions are composed, the second sees what lies outside the image: large biases of
    the first make that large.
    """
    network = random_network(config)
    with torch.no_grad():
        network.stem.bias.mul_(30)
        network.segmentation.inner.bias.mul_(30)
        if config.edge:
            network.edge[2].bias.mul_(30)
    return network, noise(*shape, config.in_channels)
