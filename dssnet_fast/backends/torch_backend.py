"""The folded graph in PyTorch operators: any device, always there, the oracle of the folding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast import fold
from dssnet_fast.backends import PRECISIONS as DTYPES
from dssnet_fast.backends import decisions
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.hardware import cpu_supports, why_no_fast_bf16
from dssnet_fast.tiling import Box
from dssnet_fast.weights import DOWNSAMPLERS, FoldedWeights

PRECISIONS = ("fp32", "bf16", "fp16")

# Two convolutions with nothing between them, at the end of either head.
_COMPOSED = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")


def why_not(device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
    """Why this backend cannot run on `device` in `precision`; None when it can."""
    if precision not in PRECISIONS:
        return f"computes in {', '.join(PRECISIONS)}; for {precision} use backend cpu"
    if precision == "fp16" and device.type == "cpu" and not cpu_supports("avx512_fp16"):
        return "fp16 needs a CPU with AVX-512 FP16; use fp32"
    return None


def why_not_automatic(device: torch.device) -> str | None:
    """`auto` takes it wherever it runs."""
    return None


def why_no_gain(device: torch.device, precision: str) -> str | None:
    """Why fp32 is the better choice; None when it is not."""
    return why_no_fast_bf16(device) if precision == "bf16" else None


def unmet(device: torch.device) -> str | None:
    """Its variables ask for nothing that it may not have."""
    return None


def best_precision(device: torch.device) -> str:
    """Half precision on a GPU, where it is twice as fast; exact elsewhere."""
    return "fp16" if device.type == "cuda" else "fp32"


def make(weights: FoldedWeights, device: torch.device, precision: str) -> TorchBackend:
    """Pack `weights` for `device` and `precision`."""
    return TorchBackend(weights, device, DTYPES[precision])


class EdgeStage:
    """The FFM and the edge head: what backends without kernels for the latter share.

    Convolutions run in `dtype` on maps in channels-last memory, all but the last: their result is
    the answer and stays in float32, as it would in a kernel's accumulators.
    """

    # Of the weights that are packed.
    _PREFIXES = ("fuse.mix.", "fuse.smooth.", "edge.")

    def __init__(self, weights: FoldedWeights, device: torch.device, dtype: torch.dtype) -> None:
        tensors = {k: v for k, v in weights.tensors.items() if k.startswith(self._PREFIXES)}
        self.config = weights.config
        self.dtype = dtype
        self._device = device
        # A PReLU with one slope is a leaky ReLU, which PyTorch can run in place.
        self._slopes = {
            name.removesuffix(".slope"): float(value)
            for name, value in tensors.items()
            if name.endswith(".slope")
        }
        self._weights: dict[str, Tensor] = {}
        for name, value in tensors.items():
            self._add(name, value, dtype)
        if self.config.upsampling == "nearest":
            kernels = fold.cell_kernels(tensors["fuse.smooth.weight"].double())
            self._cell_kernels = tuple(self._packed(kernel, dtype) for kernel in kernels)
        if self.config.edge:
            self._add_tail("edge", tensors, lambda weight: weight)
            for leaf in ("weight", "bias"):
                self._add(f"edge.last.{leaf}", tensors[f"edge.last.{leaf}"], torch.float32)

    def _add_tail(
        self, stage: str, tensors: Mapping[str, Tensor], form: Callable[[Tensor], Tensor]
    ) -> None:
        """The composed convolutions `inner` and `outer`, and both alone for the image's border.

        `form` is what is done to the kernel.
        """
        names = [f"{stage}.{name}" for name in _COMPOSED]
        for name in names:
            self._add(name, tensors[name], torch.float32)
        composed, bias = fold.compose(*(tensors[name].double() for name in names))
        weight = form(composed)
        repeated = bias.repeat_interleave(weight.shape[0] // bias.shape[0])
        self._add(f"{stage}.tail.weight", weight, torch.float32)
        self._add(f"{stage}.tail.bias", repeated, torch.float32)

    def _packed(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
        # A copy even where nothing changes: packed weights never share memory with their source.
        return value.to(self._device, dtype, copy=True).contiguous(memory_format=layout)

    def _add(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        self._weights[name] = self._packed(value, dtype)

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def _activate(self, name: str, x: Tensor) -> Tensor:
        return F.leaky_relu_(x, self._slopes[name])

    def _smooth(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The FFM: [B, h, w, features] twice -> [B, 2 * features, 4h, 4w]."""
        joined = torch.cat([shallow, deep], dim=-1).permute(0, 3, 1, 2)
        mixed = self._activate("fuse.mix", self._conv("fuse.mix", joined))
        if self.config.upsampling == "nearest":
            bias = self._weights["fuse.smooth.bias"]
            activate = partial(self._activate, "fuse.smooth")
            values = fold.cell_values(mixed, self._cell_kernels, bias, activate)
            return fold.lay_out_cells(values).permute(0, 3, 1, 2)
        shuffled = F.pixel_shuffle(mixed, fold.CELL)
        return self._activate("fuse.smooth", self._conv("fuse.smooth", shuffled))

    def _composed(
        self, stage: str, x: Tensor, scale: int, form: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`inner` and `outer` over the nearest-up-sampled `x`; `form` is what follows them."""
        return fold.subtract_border_excess(
            form(self._conv(f"{stage}.tail", x)),
            fold.outermost(x, scale),
            self._weights[f"{stage}.inner.weight"],
            self._weights[f"{stage}.inner.bias"],
            self._weights[f"{stage}.outer.weight"],
        )

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge map; see `dssnet_fast.backends.Backend`."""
        first = self._conv("edge.first", self._smooth(shallow, deep))
        first = self._activate("edge.first", first).float()
        narrow = self._composed("edge", first, 1, lambda y: y)
        return self._conv("edge.last", narrow)[:, 0]


class TorchBackend(EdgeStage):
    """The stages; see `dssnet_fast.backends.Backend`."""

    _PREFIXES = ("",)

    def __init__(self, weights: FoldedWeights, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(weights, device, dtype)
        self._add_tail("segment", weights.tensors, lambda weight: fold.subpixel(weight, 2))

    def infer(self, image: Tensor, output: str) -> Tensor:
        """All stages but the edge head."""
        return self.segment(self.fuse(*self.extract(self.downsample(image))), output)

    def decide(self, image: Tensor, core: Box, edges: bool = False) -> tuple[Tensor, ...]:
        """All stages for a part of the images; see `dssnet_fast.backends.Backend`."""
        return decisions.by_stages(self, self.config, image, core, edges)

    def infer_edges(self, image: Tensor) -> Tensor:
        """The edge map of whole images; see `dssnet_fast.backends.Backend`."""
        return decisions.infer_edges(self, image)

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1."""
        if image.dtype == torch.uint8:
            # Whole numbers up to 256 are exact in every precision.
            x = ((image.to(self.dtype) - 128) / 128).permute(0, 3, 1, 2)
        else:
            x = image.to(self.dtype, memory_format=torch.channels_last)
        x = self._conv("downsample.stem", x)
        for i in range(DOWNSAMPLERS):
            x = F.max_pool2d(x, 2) + self._conv(f"downsample.{i}", x, stride=2)
        return x.permute(0, 2, 3, 1)

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2."""
        shallow = x = self._conv("extract.head", x0.permute(0, 3, 1, 2))
        block = getattr(self, f"_{self.config.block}")
        for i in range(self.config.blocks):
            x = x + block(f"extract.blocks.{i}", x)
        return shallow.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)

    def _wneck(self, name: str, x: Tensor) -> Tensor:
        branches = [self._conv(f"{name}.expand1", x), self._conv(f"{name}.expand3", x)]
        wide = self._activate(name, torch.cat(branches, dim=1))
        return self._conv(f"{name}.restore", self._conv(f"{name}.squeeze", wide))

    def _wdsr_b(self, name: str, x: Tensor) -> Tensor:
        wide = self._activate(name, self._conv(f"{name}.expand", x))
        return self._conv(f"{name}.restore", self._conv(f"{name}.squeeze", wide))

    def _bottleneck(self, name: str, x: Tensor) -> Tensor:
        x = self._activate(name, self._conv(f"{name}.reduce", x))
        x = self._activate(f"{name}.inner", self._conv(f"{name}.inner", x))
        return self._conv(f"{name}.restore", x)

    def _basic(self, name: str, x: Tensor) -> Tensor:
        x = self._activate(name, self._conv(f"{name}.first", x))
        return self._conv(f"{name}.second", x)

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        reduced = self._conv("fuse.reduce", self._smooth(shallow, deep))
        return self._activate("fuse.reduce", reduced).permute(0, 2, 3, 1)

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        narrow = self._conv("segment.narrow", y.permute(0, 3, 1, 2))
        narrow = self._activate("segment.narrow", narrow).float()
        logits = self._composed("segment", narrow, 2, lambda y: F.pixel_shuffle(y, 2))
        if output == "labels":
            if self.config.classes == 2:
                return (logits[:, 1] > logits[:, 0]).to(torch.uint8)
            return logits.argmax(1).to(torch.uint8)
        if output == "probabilities":
            logits = logits.softmax(1)
        return logits.permute(0, 2, 3, 1)
