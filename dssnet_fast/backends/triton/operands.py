"""Folded weights as the matrices that the Triton kernels multiply with.

The algebra is that of `dssnet_fast.fold` and `dssnet_fast.border`; here it is only laid out, as the
kernels' own docstrings ask for it. Channels are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast import border, fold
from dssnet_fast.kernels import downsample, wneck
from dssnet_fast.kernels.launch import cdiv, power_of_2
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.weights import FoldedWeights

STEP = 16  # of k, the least that tensor cores multiply at once


def padded(channels: int) -> int:
    """How many channels a map has for so many of a layer."""
    return cdiv(channels, STEP) * STEP


@dataclass(frozen=True)
class Sizes:
    """Channels of maps, padding included.

    Attributes:
        width: Of the down-sampled maps.
        features: Of shallow and deep features, each.
        expanded: Of each branch of a W-NECK block.
        squeezed: Between its squeezing and restoring convolutions.
        fused: Of the map that the FFM up-samples.
        y: Of its result.
        narrow: Of the last map before the answer.
        slots: Classes, of the answer's matrix.
        is_fused: Whether `dssnet_fast.kernels.wneck` can run the blocks.
    """

    width: int
    features: int
    expanded: int
    squeezed: int
    fused: int
    y: int
    narrow: int
    slots: int
    is_fused: bool

    @classmethod
    def of(cls, folded: FoldedWeights, dtype: torch.dtype) -> Sizes:
        """Sizes of a network in a precision."""
        config, shapes = folded.config, {key: x.shape for key, x in folded.tensors.items()}
        expanded = squeezed = 0
        is_fused = False
        if config.block == "wneck":
            expanded = shapes["extract.blocks.0.expand1.weight"][0]
            squeezed = shapes["extract.blocks.0.squeeze.weight"][0]
            # In float32 a tile's expanded channels take twice the registers that there are.
            is_fused = (
                dtype.itemsize == 2
                and expanded <= wneck.LARGEST_EXPANDED
                and squeezed <= wneck.LARGEST_SQUEEZED
            )
        round_up = _power if is_fused else padded
        return cls(
            width=padded(config.width),
            features=padded(config.features),
            expanded=round_up(expanded),
            squeezed=round_up(squeezed),
            fused=padded(shapes["fuse.smooth.weight"][1]),
            y=shapes["fuse.reduce.weight"][0],
            narrow=_power(shapes["segment.narrow.weight"][0]),
            # At least 16 columns of 2x2 sub-pixels.
            slots=max(4, power_of_2(config.classes)),
            is_fused=is_fused,
        )


@dataclass(frozen=True)
class Packed:
    """A network as the kernels take it.

    Attributes:
        config: The network's.
        sizes: Channels of its maps.
        tensors: What `operands` names, in `dtype`; biases and slopes in float32.
        dtype: Of maps and weights.
        precision: How float32 is multiplied; see `dssnet_fast.kernels.launch.PRECISIONS`.
    """

    config: DSSNetConfig
    sizes: Sizes
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    precision: str


def pack(folded: FoldedWeights, device: torch.device, dtype: torch.dtype, precision: str) -> Packed:
    """Lay out a network's weights and round them once; arguments as in `Packed`."""
    sizes = Sizes.of(folded, dtype)
    tensors = {
        name: value.to(
            device, torch.float32 if name.endswith(("bias", "slope")) else dtype
        ).contiguous()
        for name, value in operands(folded, sizes).items()
    }
    return Packed(folded.config, sizes, tensors, dtype, precision)


def _power(channels: int) -> int:
    return max(STEP, power_of_2(channels))


def operands(folded: FoldedWeights, sizes: Sizes) -> dict[str, Tensor]:
    """All matrices of a network: name to float64; biases and slopes end in `bias` and `slope`."""
    tensors = {name: value.double() for name, value in folded.tensors.items()}
    found = {name: value for name, value in tensors.items() if name.endswith("slope")}
    found |= _downsample(tensors, sizes)
    found |= _layer(tensors, "extract.head", sizes.width, sizes.features)
    for i in range(folded.config.blocks):
        found |= _block(tensors, f"extract.blocks.{i}", folded.config, sizes)
    found |= _fuse(tensors, folded.config, sizes)
    found |= _segment(tensors, sizes)
    return found


def _pad(x: Tensor, *shape: int) -> Tensor:
    """Zeros at the end of each dimension up to `shape`."""
    amounts = [(0, wanted - size) for size, wanted in zip(x.shape, shape, strict=True)]
    return F.pad(x, [number for amount in reversed(amounts) for number in amount])


def _taps(weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """[O, I, r, c] -> [r * c, inputs, outputs]."""
    rows, columns = weight.shape[2:]
    laid = _pad(weight.permute(2, 3, 1, 0), rows, columns, inputs, outputs)
    return laid.flatten(0, 1)


def _layer(tensors: dict[str, Tensor], name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": _taps(tensors[f"{name}.weight"], inputs, outputs),
        f"{name}.bias": _pad(tensors[f"{name}.bias"], outputs),
    }


def _downsample(tensors: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    width, row = sizes.width, downsample.ROW
    stem, stem_bias = tensors["downsample.stem.weight"], tensors["downsample.stem.bias"]

    def rows(kernel: Tensor) -> Tensor:
        # [O, C, r, 5] -> [r, 16, width]: a row's pixels and their channels lie side by side.
        laid = kernel.permute(2, 3, 1, 0).flatten(1, 2)
        return _pad(laid, kernel.shape[2], row, width)

    terms = border.stem_terms(
        stem, stem_bias, tensors["downsample.0.weight"], tensors["downsample.0.bias"]
    )
    (strided, bias), (top, top_bias), (left, left_bias), (corner, corner_bias) = terms
    biases = torch.stack([bias + stem_bias, top_bias, left_bias, corner_bias])
    found = {
        # The stem at both columns under a pooling window, in one 5-wide neighbourhood.
        "downsample.stem": torch.stack([rows(F.pad(stem, (1 + i, 1 - i))) for i in range(2)]),
        "downsample.strided": rows(strided),
        "downsample.border": torch.cat([rows(top[:, :, 2:3]), rows(left), rows(corner[:, :, 2:3])]),
        "downsample.bias": _pad(biases, 4, width),
    }
    for i in (1, 2):
        found |= _layer(tensors, f"downsample.{i}", width, width)
    return found


def _block(
    tensors: dict[str, Tensor], name: str, config: DSSNetConfig, sizes: Sizes
) -> dict[str, Tensor]:
    if config.block == "wneck":
        return _wneck(tensors, name, sizes)
    found = {}
    for key in (key for key in tensors if key.startswith(f"{name}.") and key.endswith("weight")):
        outputs, inputs = tensors[key].shape[:2]
        found |= _layer(tensors, key.removesuffix(".weight"), padded(inputs), padded(outputs))
    return found


def _wneck(tensors: dict[str, Tensor], name: str, sizes: Sizes) -> dict[str, Tensor]:
    features, expanded, squeezed = sizes.features, sizes.expanded, sizes.squeezed
    layers = (_layer(tensors, f"{name}.expand{size}", features, expanded) for size in (1, 3))
    (pointwise, bias1), (full, bias3) = (layer.values() for layer in layers)
    squeeze = tensors[f"{name}.squeeze.weight"]
    halves = [_taps(half, expanded, squeezed) for half in squeeze.chunk(2, dim=1)]
    found = {
        f"{name}.squeeze.weight": torch.stack(halves, dim=1),
        f"{name}.squeeze.bias": _pad(tensors[f"{name}.squeeze.bias"], squeezed),
        **_layer(tensors, f"{name}.restore", squeezed, features),
    }
    if sizes.is_fused:
        return found | {
            f"{name}.expand1.weight": pointwise[0],
            f"{name}.expand3.weight": full,
            f"{name}.expand.bias": torch.stack([bias1, bias3]),
        }
    # One convolution for both branches: the first half of its outputs sees the centre tap only.
    centred = F.pad(pointwise, (0, 0, 0, 0, 4, 4))
    return found | {
        f"{name}.expand.weight": torch.cat([centred, full], dim=2),
        f"{name}.expand.bias": torch.cat([bias1, bias3]),
        f"{name}.squeeze.weight": found[f"{name}.squeeze.weight"].flatten(1, 2),
    }


def _fuse(tensors: dict[str, Tensor], config: DSSNetConfig, sizes: Sizes) -> dict[str, Tensor]:
    # Shallow and deep features lie side by side, each with its padding.
    halves = tensors["fuse.mix.weight"].chunk(2, dim=1)
    fused = sizes.fused
    reduce = tensors["fuse.reduce.weight"]
    found = {
        "fuse.smooth.bias": _pad(tensors["fuse.smooth.bias"], fused),
        "fuse.reduce.bias": tensors["fuse.reduce.bias"],
    }
    if config.upsampling == "pixel_shuffle":
        # PixelShuffle reads output channel * 16 + sub-pixel; the kernel has the channel fastest.
        area = fold.CELL**2
        parts = [_taps(half, sizes.features, half.shape[0]) for half in halves]
        mix = torch.cat(parts, dim=1).unflatten(2, (-1, area)).transpose(2, 3)
        bias = tensors["fuse.mix.bias"].unflatten(0, (-1, area)).T
        return found | {
            "fuse.mix.weight": _pad(mix, 1, 2 * sizes.features, area, fused).flatten(2),
            "fuse.mix.bias": _pad(bias, area, fused).flatten(),
            "fuse.smooth.weight": _taps(tensors["fuse.smooth.weight"], fused, fused),
            "fuse.reduce.weight": _taps(reduce, fused, reduce.shape[0]),
        }
    parts = [_taps(half, sizes.features, fused) for half in halves]
    products = fold.cell_differences(tensors["fuse.smooth.weight"])
    taps = fold.cell_taps(reduce)
    return found | {
        "fuse.mix.weight": torch.cat(parts, dim=1),
        "fuse.mix.bias": _pad(tensors["fuse.mix.bias"], fused),
        "fuse.smooth.weight": _pad(products, 9, fused, fused),
        "fuse.reduce.weight": _pad(taps, 5, 5, fused, reduce.shape[0]),
    }


def _segment(tensors: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    tail = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
    terms = border.tail_terms(*(tensors[f"segment.{name}"] for name in tail))

    def matrix(weight: Tensor) -> Tensor:
        # [2, 2, classes, I, r, c] -> [taps, narrow, 4 * slots].
        laid = weight.permute(4, 5, 3, 0, 1, 2).flatten(0, 1)
        return _pad(laid, laid.shape[0], sizes.narrow, 2, 2, sizes.slots).flatten(2)

    biases = [_pad(bias, 2, 2, sizes.slots) for _, bias in terms]
    # Slots that no class has must never win.
    classes = terms[0][1].shape[2]
    biases[0][..., classes:] = float("-inf")
    everywhere, *at_border = [matrix(weight) for weight, _ in terms]
    outputs = tensors["segment.narrow.weight"].shape[1]
    return {
        **_layer(tensors, "segment.narrow", outputs, sizes.narrow),
        "segment.tail": everywhere,
        "segment.border": torch.cat(at_border),
        "segment.tail.bias": torch.stack(biases).flatten(1),
    }
