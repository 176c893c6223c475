"""Folded weights as the convolutions that the CPU's kernels compute.

The algebra is that of `dssnet_fast.fold` and `dssnet_fast.border`; here it is laid out, and decided
what is computed in which precision. Packing for an instruction set is the extension's (csrc/cpu).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dssnet_fast import border, fold
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.quantisation import Quantisation
from dssnet_fast.weights import FoldedWeights

IMAGE_STEP = 1 / 128  # of a normalised image: its values are whole multiples

# Layers of each kind of block: convolutions side by side, and the PReLU after them.
_BLOCKS = {
    "wneck": ((("expand1", "expand3"), "slope"), (("squeeze",), None), (("restore",), None)),
    "wdsr_b": ((("expand",), "slope"), (("squeeze",), None), (("restore",), None)),
    "bottleneck": ((("reduce",), "slope"), (("inner",), "inner.slope"), (("restore",), None)),
    "basic": ((("first",), "slope"), (("second",), None)),
}

# For each of a cell's four pixels along an axis, which sums of taps (see `fold.cell_taps`) meet the
# values it reads, in the order of csrc/cpu/fuse.cpp.
_PIXEL_TAPS = ((0, 1, 2), (0, 3), (4, 2), (0, 1, 2))

# Of what is composed: for all pixels, and for those at the image's border.
_TERMS = (
    "",
    ".top",
    ".bottom",
    ".left",
    ".right",
    ".top_left",
    ".top_right",
    ".bottom_left",
    ".bottom_right",
)


@dataclass(frozen=True)
class Operand:
    """One convolution.

    Attributes:
        weight: [lines, taps, inputs, outputs] float32.
        bias: [outputs] float32.
        type: `fp32`, `bf16` or `int8`, of weights and inputs.
        step: Of int8 inputs.
    """

    weight: np.ndarray
    bias: np.ndarray
    type: str
    step: float


@dataclass(frozen=True)
class Operands:
    """A network as the extension takes it.

    Attributes:
        sizes: Channels of its maps.
        convolutions: By name.
        blocks: For each block its layers: names of convolutions side by side, and a PReLU's slope.
        slopes: Of the PReLUs after the FFM's convolutions and those that follow.
    """

    sizes: dict[str, int]
    convolutions: dict[str, Operand]
    blocks: list[list[tuple[list[str], float]]]
    slopes: dict[str, float]


def float_type(precision: str, fast_bf16: bool) -> str:
    """What is computed in that is not in int8.

    Args:
        precision: `fp32`, `bf16` or `int8`.
        fast_bf16: Whether instructions for bfloat16 are faster than those for float32.

    Returns:
        `fp32`, `bf16`, or `wide_bf16`: float32 of weights and results that are rounded to bfloat16.
    """
    if precision == "bf16":
        return "bf16" if fast_bf16 else "wide_bf16"
    return "bf16" if precision == "int8" and fast_bf16 else "fp32"


def operands(folded: FoldedWeights, precision: str, floating: str) -> Operands:
    """All convolutions of a network.

    Args:
        folded: The network.
        precision: `fp32`, `bf16` or `int8`.
        floating: See `float_type`.
    """
    config = folded.config
    tensors = {name: value.double() for name, value in folded.tensors.items()}
    found = _downsample(tensors)
    for name in tensors:
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer.startswith("extract."):
            found[layer] = _convolution(tensors, layer)
    found |= (_fuse_nearest if config.upsampling == "nearest" else _fuse_learned)(tensors, config)
    found |= _segment(tensors)
    slopes = ["fuse.mix", "fuse.smooth", "fuse.reduce", "segment.narrow"]
    if config.edge:
        found |= _edges(tensors, config)
        slopes.append("edge.first")
    types = _Types(floating, folded.quantisation if precision == "int8" else None)
    return Operands(
        sizes={
            "in_channels": config.in_channels,
            "classes": config.classes,
            "width": config.width,
            "features": config.features,
            "fused": tensors["fuse.smooth.weight"].shape[1],
            "y": tensors["fuse.reduce.weight"].shape[0],
            "narrow": tensors["segment.narrow.weight"].shape[0],
            "learned_upsampling": config.upsampling == "pixel_shuffle",
            "edges": config.edge,
        },
        convolutions={name: types.operand(name, *pair) for name, pair in found.items()},
        blocks=[_block(tensors, f"extract.blocks.{i}", config) for i in range(config.blocks)],
        slopes={name: float(tensors[f"{name}.slope"]) for name in slopes},
    )


class _Types:
    """What each convolution is computed in."""

    def __init__(self, floating: str, given: Quantisation | None) -> None:
        self._type = floating
        self._given = given
        exact = set(given.exact) if given else set()
        # Both read the image, which is stored once.
        self._exact = exact | ({"downsample.stem"} if "downsample.0" in exact else set())

    def operand(self, name: str, weight: Tensor, bias: Tensor) -> Operand:
        """A convolution as the extension takes it; `weight` is [lines, taps, I, O] already."""
        step = self._step(name)
        # What the edge head's last convolution reads is never rounded: it has one channel.
        exact = "fp32" if name == "edge.last" else self._type
        return Operand(
            np.ascontiguousarray(weight.float().numpy()),
            np.ascontiguousarray(bias.float().numpy()),
            exact if step is None else "int8",
            1.0 if step is None else step,
        )

    def _step(self, name: str) -> float | None:
        if self._given is None or name.startswith(("fuse.mix", "edge.tail", "edge.last")):
            return None
        if self._layer(name) in self._exact:
            return None
        if name.startswith(("downsample.stem", "downsample.strided")):
            return IMAGE_STEP
        steps: Mapping[str, float] = self._given.steps
        if name.startswith("segment.tail"):
            return steps["segment.tail"]
        if name.startswith(("fuse.reduce", "edge.first")):
            return steps["fuse.reduce"]
        return steps[name]

    @staticmethod
    def _layer(name: str) -> str:
        """The layer, as `Quantisation.exact` names it."""
        parts = name.split(".")
        if name.startswith(("downsample.stem", "downsample.strided")):
            return "downsample.stem"
        if name.startswith("edge.first"):
            # It reads the same map.
            return "fuse.reduce"
        return ".".join(parts[:3] if name.startswith("extract.blocks") else parts[:2])


def _laid(weight: Tensor) -> Tensor:
    """[O, I, lines, taps] -> [lines, taps, I, O]."""
    return weight.permute(2, 3, 1, 0)


def _convolution(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return _laid(tensors[f"{name}.weight"]), tensors[f"{name}.bias"]


def _downsample(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    stem, stem_bias = tensors["downsample.stem.weight"], tensors["downsample.stem.bias"]
    terms = border.stem_terms(
        stem, stem_bias, tensors["downsample.0.weight"], tensors["downsample.0.bias"]
    )
    (everywhere, bias), (top, top_bias), (left, left_bias), (corner, corner_bias) = terms
    return {
        # Its bias is added once, after the maximum of four.
        "downsample.stem": (_laid(stem), torch.zeros_like(stem_bias)),
        "downsample.strided": (_laid(everywhere), bias + stem_bias),
        "downsample.strided.top": (_laid(top[:, :, 2:3]), top_bias),
        "downsample.strided.left": (_laid(left[..., 2:3]), left_bias),
        "downsample.strided.corner": (_laid(corner[:, :, 2:3, 2:3]), corner_bias),
        "downsample.1": _convolution(tensors, "downsample.1"),
        "downsample.2": _convolution(tensors, "downsample.2"),
    }


def _block(tensors: Mapping[str, Tensor], name: str, config: DSSNetConfig):
    return [
        (
            [f"{name}.{part}" for part in parts],
            1.0 if slope is None else float(tensors[f"{name}.{slope}"]),
        )
        for parts, slope in _BLOCKS[config.block]
    ]


def _fuse_nearest(
    tensors: Mapping[str, Tensor], config: DSSNetConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    mix, smooth = tensors["fuse.mix.weight"], tensors["fuse.smooth.weight"]
    bias, nothing = tensors["fuse.smooth.bias"], torch.zeros_like(tensors["fuse.smooth.bias"])
    found = {"fuse.mix": (_two_lines(mix, config), tensors["fuse.mix.bias"])}
    for i, product in enumerate(fold.cell_differences(smooth)):
        found[f"fuse.smooth.{i}"] = (product[None, None], nothing if i else bias)
    return found | _over_cells(tensors, "fuse.reduce")


def _over_cells(tensors: Mapping[str, Tensor], name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """A 3x3 convolution of the map that the FFM's nine values a cell stand for."""
    taps, bias = fold.cell_taps(tensors[f"{name}.weight"]), tensors[f"{name}.bias"]
    found = {}
    for i, rows in enumerate(_PIXEL_TAPS):
        for j, columns in enumerate(_PIXEL_TAPS):
            found[f"{name}.{4 * i + j}"] = (taps[list(rows)][:, list(columns)], bias)
    # The same at 1/2 resolution, for Winograd's form.
    found[name] = _convolution(tensors, name)
    return found


def _fuse_learned(
    tensors: Mapping[str, Tensor], config: DSSNetConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    # PixelShuffle reads output channel * 16 + pixel.
    pixels = fold.CELL**2
    mix, bias = tensors["fuse.mix.weight"], tensors["fuse.mix.bias"]
    return {
        **{
            f"fuse.mix.{i}": (_two_lines(mix[i::pixels], config), bias[i::pixels])
            for i in range(pixels)
        },
        "fuse.smooth": _convolution(tensors, "fuse.smooth"),
        "fuse.reduce": _convolution(tensors, "fuse.reduce"),
    }


def _two_lines(weight: Tensor, config: DSSNetConfig) -> Tensor:
    """A 1x1 convolution of shallow and deep features, each of which is a line: [2, 1, I, O]."""
    return torch.stack([_laid(half)[0] for half in weight.split(config.features, dim=1)])


def _segment(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    tail = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
    terms = border.tail_terms(*(tensors[f"segment.{name}"] for name in tail))
    found = {"segment.narrow": _convolution(tensors, "segment.narrow")}
    for name, (weight, bias) in zip(_TERMS, terms, strict=True):
        found[f"segment.tail{name}"] = (_laid(weight.flatten(0, 2)), bias.flatten())
    return found


def _edges(tensors: Mapping[str, Tensor], config: DSSNetConfig) -> dict[str, tuple[Tensor, Tensor]]:
    if config.upsampling == "nearest":
        found = _over_cells(tensors, "edge.first")
    else:
        found = {"edge.first": _convolution(tensors, "edge.first")}
    tail = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
    terms = border.composed_terms(*(tensors[f"edge.{name}"] for name in tail))
    for name, term in zip(_TERMS, terms, strict=True):
        found[f"edge.tail{name}"] = _rows_of_taps(*term)
    return found | {"edge.last": _convolution(tensors, "edge.last")}


def _rows_of_taps(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution [1, I, rows, taps] with an output for each row: [1, taps, I, rows].

    The middle row, which is always in the image, has the bias.
    """
    rows = weight.shape[2]
    biases = bias.new_zeros(rows)
    biases[rows // 2] = bias
    return weight.permute(0, 3, 1, 2), biases
