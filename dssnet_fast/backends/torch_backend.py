"""The folded graph in PyTorch operators: any device, always there, the oracle of the folding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast import fold
from dssnet_fast.backends import PRECISIONS as DTYPES
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.hardware import cpu_supports
from dssnet_fast.weights import DOWNSAMPLERS, FoldedWeights

PRECISIONS = ("fp32", "bf16", "fp16")


def why_not(device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
    """Why this backend cannot run on `device` in `precision`; None when it can."""
    if precision == "fp16" and device.type == "cpu" and not cpu_supports("avx512_fp16"):
        return "fp16 needs a CPU with AVX-512 FP16; use bf16 or fp32"
    return None


def best_precision(device: torch.device) -> str:
    """Half precision on a GPU, where it is twice as fast; exact elsewhere."""
    return "fp16" if device.type == "cuda" else "fp32"


def make(weights: FoldedWeights, device: torch.device, precision: str) -> TorchBackend:
    """Pack `weights` for `device` and `precision`."""
    return TorchBackend(weights, device, DTYPES[precision])


class TorchBackend:
    """The four stages; see `dssnet_fast.backends.Backend`.

    Convolutions run in `dtype` on maps in channels-last memory. Two small products stay in float32
    whatever the precision, as they would in a kernel's accumulators: the FFM's nine products, whose
    differences would otherwise lose what they subtract, and the last convolution, whose result is
    the answer.
    """

    def __init__(self, weights: FoldedWeights, device: torch.device, dtype: torch.dtype) -> None:
        self.config = weights.config
        self.dtype = dtype
        self._weights: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, value in weights.tensors.items():
                self._add(name, value, device, dtype)
            exact = {name: value.double() for name, value in weights.tensors.items()}
            if self.config.upsampling == "nearest":
                products = fold.cell_products(exact["fuse.smooth.weight"])
                self._add("fuse.products.weight", products, device, torch.float32)
                self._add("fuse.smooth.bias", exact["fuse.smooth.bias"], device, torch.float32)
                self._add("fuse.smooth.slope", exact["fuse.smooth.slope"], device, torch.float32)
            composed, bias = fold.compose(
                exact["segment.inner.weight"],
                exact["segment.inner.bias"],
                exact["segment.outer.weight"],
                exact["segment.outer.bias"],
            )
            self._add("segment.tail.weight", fold.subpixel(composed, 2), device, torch.float32)
            self._add("segment.tail.bias", bias.repeat_interleave(4), device, torch.float32)
            for name in ("inner.weight", "inner.bias", "outer.weight"):
                self._add(f"segment.{name}", exact[f"segment.{name}"], device, torch.float32)

    def _add(self, name: str, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
        # Of its own even where nothing changes: packed weights never share memory with the source.
        self._weights[name] = value.to(device, dtype, copy=True).contiguous(memory_format=layout)

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def _prelu(self, name: str, x: Tensor) -> Tensor:
        return F.prelu(x, self._weights[f"{name}.slope"])

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
        for i in range(self.config.blocks):
            block = self._wneck if self.config.block == "wneck" else self._residual
            x = x + block(f"extract.blocks.{i}", x)
        return shallow.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)

    def _wneck(self, name: str, x: Tensor) -> Tensor:
        branches = [self._conv(f"{name}.expand1", x), self._conv(f"{name}.expand3", x)]
        wide = self._prelu(name, torch.cat(branches, dim=1))
        return self._conv(f"{name}.restore", self._conv(f"{name}.squeeze", wide))

    def _residual(self, name: str, x: Tensor) -> Tensor:
        index = 0
        while f"{name}.layers.{index}.weight" in self._weights:
            layer = f"{name}.layers.{index}"
            if f"{layer}.bias" in self._weights:
                x = self._conv(layer, x)
            else:
                x = F.prelu(x, self._weights[f"{layer}.weight"])
            index += 1
        return x

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        joined = torch.cat([shallow, deep], dim=-1).permute(0, 3, 1, 2)
        mixed = self._prelu("fuse.mix", self._conv("fuse.mix", joined))
        if self.config.upsampling == "nearest":
            smooth = self._smooth_cells(mixed)
        else:
            shuffled = F.pixel_shuffle(mixed, fold.CELL)
            smooth = self._prelu("fuse.smooth", self._conv("fuse.smooth", shuffled))
        y = self._prelu("fuse.reduce", self._conv("fuse.reduce", smooth))
        return y.permute(0, 2, 3, 1)

    def _smooth_cells(self, mixed: Tensor) -> Tensor:
        """Nearest x4, 3x3 convolution and PReLU, computed on 3x3 values a cell."""
        products = F.conv2d(mixed.float(), self._weights["fuse.products.weight"])
        products = products.permute(0, 2, 3, 1).unflatten(3, (fold.VALUES, fold.VALUES, -1))
        values = fold.combine_products(products) + self._weights["fuse.smooth.bias"]
        slope = self._weights["fuse.smooth.slope"]
        values = torch.where(values > 0, values, values * slope).to(self.dtype)
        return fold.expand_cells(values).permute(0, 3, 1, 2)

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        narrow = self._prelu("segment.narrow", self._conv("segment.narrow", y.permute(0, 3, 1, 2)))
        narrow = narrow.float()
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
