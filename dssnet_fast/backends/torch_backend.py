"""The folded graph in PyTorch operators: any device, always there, the oracle of the folding."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast import fold
from dssnet_fast.backends import PRECISIONS as DTYPES
from dssnet_fast.backends import decisions
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.hardware import cpu_supports
from dssnet_fast.tiling import Box
from dssnet_fast.weights import DOWNSAMPLERS, FoldedWeights

PRECISIONS = ("fp32", "bf16", "fp16")


def why_not(device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
    """Why this backend cannot run on `device` in `precision`; None when it can."""
    if precision not in PRECISIONS:
        return f"computes in {', '.join(PRECISIONS)}; for {precision} use backend cpu"
    if precision == "fp16" and device.type == "cpu" and not cpu_supports("avx512_fp16"):
        return "fp16 needs a CPU with AVX-512 FP16; use bf16 or fp32"
    return None


def why_not_automatic(device: torch.device) -> str | None:
    """`auto` takes it wherever it runs."""
    return None


def best_precision(device: torch.device) -> str:
    """Half precision on a GPU, where it is twice as fast; exact elsewhere."""
    return "fp16" if device.type == "cuda" else "fp32"


def make(weights: FoldedWeights, device: torch.device, precision: str) -> TorchBackend:
    """Pack `weights` for `device` and `precision`."""
    return TorchBackend(weights, device, DTYPES[precision])


class TorchBackend:
    """The four stages; see `dssnet_fast.backends.Backend`.

    Convolutions run in `dtype` on maps in channels-last memory, all but the last: its result is
    the answer and stays in float32, as it would in a kernel's accumulators.
    """

    def __init__(self, weights: FoldedWeights, device: torch.device, dtype: torch.dtype) -> None:
        self.config = weights.config
        self.dtype = dtype
        self._device = device
        # A PReLU with one slope is a leaky ReLU, which PyTorch can run in place.
        self._slopes = {
            name.removesuffix(".slope"): float(value)
            for name, value in weights.tensors.items()
            if name.endswith(".slope")
        }
        self._weights: dict[str, Tensor] = {}
        for name, value in weights.tensors.items():
            self._add(name, value, dtype)
        exact = {name: value.double() for name, value in weights.tensors.items()}
        if self.config.upsampling == "nearest":
            kernels = fold.cell_kernels(exact["fuse.smooth.weight"])
            self._cell_kernels = tuple(self._packed(kernel, dtype) for kernel in kernels)
        tail = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
        for name in tail:
            self._add(f"segment.{name}", exact[f"segment.{name}"], torch.float32)
        composed, bias = fold.compose(*(exact[f"segment.{name}"] for name in tail))
        self._add("segment.tail.weight", fold.subpixel(composed, 2), torch.float32)
        self._add("segment.tail.bias", bias.repeat_interleave(4), torch.float32)

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

    def infer(self, image: Tensor, output: str) -> Tensor:
        """All stages."""
        return self.segment(self.fuse(*self.extract(self.downsample(image))), output)

    def decide(self, image: Tensor, core: Box) -> tuple[Tensor, Tensor]:
        """All stages for a part of the images; see `dssnet_fast.backends.Backend`."""
        return decisions.by_stages(self, self.config, image, core)

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
        joined = torch.cat([shallow, deep], dim=-1).permute(0, 3, 1, 2)
        mixed = self._activate("fuse.mix", self._conv("fuse.mix", joined))
        if self.config.upsampling == "nearest":
            bias = self._weights["fuse.smooth.bias"]
            activate = partial(self._activate, "fuse.smooth")
            values = fold.cell_values(mixed, self._cell_kernels, bias, activate)
            smooth = fold.lay_out_cells(values).permute(0, 3, 1, 2)
        else:
            shuffled = F.pixel_shuffle(mixed, fold.CELL)
            smooth = self._activate("fuse.smooth", self._conv("fuse.smooth", shuffled))
        return self._activate("fuse.reduce", self._conv("fuse.reduce", smooth)).permute(0, 2, 3, 1)

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        narrow = self._conv("segment.narrow", y.permute(0, 3, 1, 2))
        narrow = self._activate("segment.narrow", narrow).float()
        logits = fold.subtract_border_excess(
            F.pixel_shuffle(self._conv("segment.tail", narrow), 2),
            fold.outermost(narrow, 2),
            self._weights["segment.inner.weight"],
            self._weights["segment.inner.bias"],
            self._weights["segment.outer.weight"],
        )
        if output == "labels":
            if self.config.classes == 2:
                return (logits[:, 1] > logits[:, 0]).to(torch.uint8)
            return logits.argmax(1).to(torch.uint8)
        if output == "probabilities":
            logits = logits.softmax(1)
        return logits.permute(0, 2, 3, 1)
