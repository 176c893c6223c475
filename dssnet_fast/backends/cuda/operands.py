"""Folded weights as the matrices that the CUDA kernels multiply with.

A kernel computes D = A B: rows of A are pixels, B is one of these matrices [k, n] in the order of k
in which the kernel reads its pixels' neighbourhoods (`csrc/cuda/params.h` and the kernels' own
comments give it). The algebra is that of `dssnet_fast.fold`; here it is only laid out. Rounding to
16 bits and the order of fragments are the business of `csrc/plan/weights.cpp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast import border, fold
from dssnet_fast.weights import FoldedWeights

if TYPE_CHECKING:
    from dssnet_fast._native import Sizes

STEP = 16  # of k, one tensor-core instruction
TILE = 8  # of n


def operands(folded: FoldedWeights, sizes: Sizes) -> dict[str, np.ndarray]:
    """All matrices and tables of a network.

    Args:
        folded: Of a network with W-NECK blocks.
        sizes: Its channels as the kernels store them, `_native.Sizes`.

    Returns:
        Name to float32 [k, n]; tables of biases and slopes are [kinds, channels].
    """
    tensors = {name: value.double() for name, value in folded.tensors.items()}
    found = _downsample(tensors, sizes) | _extract(tensors, sizes, folded.config.blocks)
    if folded.config.upsampling == "nearest":
        found |= _fuse_nearest(tensors, sizes)
    else:
        found |= _fuse_learned(tensors, sizes)
    found |= _segment(tensors, sizes)
    return {name: np.ascontiguousarray(value.float().numpy()) for name, value in found.items()}


def _pad(x: Tensor, *shape: int) -> Tensor:
    """Zeros at the end of each dimension up to `shape`."""
    padding = [
        amount
        for size, wanted in zip(reversed(x.shape), reversed(shape), strict=True)
        for amount in (0, wanted - size)
    ]
    return F.pad(x, padding)


def _table(*rows: Tensor, channels: int) -> Tensor:
    return torch.stack([_pad(row, channels) for row in rows])


def _taps(weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """[O, I, r, c] -> [r * c * inputs, outputs]: tap slowest, then input."""
    rows, columns = weight.shape[2:]
    laid = _pad(weight.permute(2, 3, 1, 0), rows, columns, inputs, outputs)
    return laid.reshape(-1, outputs)


# --- stage 1 --------------------------------------------------------------------------------------


def _downsample(tensors: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    width = sizes.width
    stem, stem_bias = tensors["downsample.stem.weight"], tensors["downsample.stem.bias"]
    strided, bias = tensors["downsample.0.weight"], tensors["downsample.0.bias"]

    def rows(kernel: Tensor) -> Tensor:
        # [O, C, r, 5] -> [r * 16, width]: a row's pixels and their channels lie side by side.
        laid = kernel.permute(2, 3, 1, 0).flatten(1, 2)
        return _pad(laid, kernel.shape[2], STEP, width).reshape(-1, width)

    # The stem at both columns under a pooling window, in one 5-wide neighbourhood.
    columns = torch.stack([rows(F.pad(stem, (1 + shift, 1 - shift))) for shift in range(2)])
    stems = columns.unflatten(2, (-1, TILE)).permute(1, 2, 0, 3).flatten(1)

    terms = border.stem_terms(stem, stem_bias, strided, bias)
    (composed, everywhere), (top, top_bias), (left, left_bias), (corner, corner_bias) = terms
    found = {
        "downsample.stem": stems,
        "downsample.strided": rows(composed),
        "downsample.border": torch.cat([rows(top[:, :, 2:3]), rows(left), rows(corner[:, :, 2:3])]),
        "downsample.bias": _table(
            everywhere + stem_bias, top_bias, left_bias, corner_bias, channels=width
        ),
    }
    for i in (1, 2):
        found[f"downsample.{i}"] = _taps(tensors[f"downsample.{i}.weight"], width, width)
        found[f"downsample.{i}.bias"] = _table(tensors[f"downsample.{i}.bias"], channels=width)
    return found


# --- stage 2 --------------------------------------------------------------------------------------


def _extract(tensors: dict[str, Tensor], sizes: Sizes, blocks: int) -> dict[str, Tensor]:
    features, expanded, squeezed = sizes.features, sizes.expanded, sizes.squeezed
    found = {
        "extract.head": _taps(tensors["extract.head.weight"], sizes.width, features),
        "extract.head.bias": _table(tensors["extract.head.bias"], channels=features),
    }
    for i in range(blocks):
        block = {
            name.removeprefix(f"extract.blocks.{i}."): value
            for name, value in tensors.items()
            if name.startswith(f"extract.blocks.{i}.")
        }
        branch = block["expand1.weight"].shape[0]
        # Both branches begin at a multiple of 32 channels.
        squeeze = torch.cat(
            [
                _pad(half.permute(1, 2, 3, 0).flatten(1, 2), expanded, 9, squeezed)
                for half in block["squeeze.weight"].split(branch, dim=1)
            ]
        )
        found |= {
            f"extract.{i}.expand1": _taps(block["expand1.weight"], features, expanded),
            f"extract.{i}.expand3": _taps(block["expand3.weight"], features, expanded),
            f"extract.{i}.expand.bias": _table(
                block["expand1.bias"], block["expand3.bias"], channels=expanded
            ),
            f"extract.{i}.slope": block["slope"].view(1, 1),
            # n = (tile of 8, tap, channel): a warp holds all nine products of its 8 channels.
            f"extract.{i}.squeeze": squeeze.unflatten(2, (-1, TILE)).transpose(1, 2).flatten(1),
            f"extract.{i}.squeeze.bias": _table(block["squeeze.bias"], channels=squeezed),
            f"extract.{i}.restore": _taps(block["restore.weight"], squeezed, features),
            f"extract.{i}.restore.bias": _table(block["restore.bias"], channels=features),
        }
    return found


# --- stage 3 --------------------------------------------------------------------------------------


def _joined(weight: Tensor, features: int) -> Tensor:
    """A 1x1 convolution of shallow and deep features: [O, 2 * F, 1, 1] -> [2 * features, O]."""
    halves = weight[:, :, 0, 0].T.chunk(2)
    return torch.cat([_pad(half, features, weight.shape[0]) for half in halves])


def _in_steps(factors: Tensor, before: int) -> Tensor:
    """[..., factors, k, n] -> k-steps of all factors in turn, then their last eight rows.

    Args:
        factors: Its `before` leading dimensions stay slowest.
        before: 0 for [factors, k, n], 1 for [rows, factors, k, n].
    """
    whole = factors.shape[-2] // STEP * STEP
    parts = []
    for part, step in ((factors[..., :whole, :], STEP), (factors[..., whole:, :], TILE)):
        steps = part.unflatten(-2, (part.shape[-2] // step, step)).movedim(-3, before)
        parts.append(steps.flatten(before, -2))
    return torch.cat(parts, dim=before).flatten(0, -2)


def _fuse_nearest(tensors: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    fused, values = sizes.fused, sizes.values
    mix = _joined(tensors["fuse.mix.weight"], sizes.features)
    smooth, reduce = tensors["fuse.smooth.weight"], tensors["fuse.reduce.weight"]

    products = _pad(fold.cell_differences(smooth), 9, fused, _mix_outputs(fused, 16))
    taps = _pad(fold.cell_taps(reduce), 5, 5, fused, sizes.y)
    chunks = [_in_steps(chunk, before=1) for chunk in taps.split(values, dim=2)]
    return {
        "fuse.mix": _pad(mix, 2 * sizes.features, _mix_outputs(fused, TILE * sizes.mix_tiles)),
        "fuse.smooth": _in_steps(products, before=0),
        "fuse.reduce": torch.cat(chunks),
        "fuse.mix.bias": _table(tensors["fuse.mix.bias"], channels=fused),
        **_fuse_tables(tensors, sizes),
    }


def _mix_outputs(channels: int, multiple: int) -> int:
    return -(-channels // multiple) * multiple


def _fuse_learned(tensors: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    fused, area = sizes.fused, fold.CELL**2
    # Pixel shuffle reads channel c * 16 + sub-pixel.
    mix = _joined(tensors["fuse.mix.weight"], sizes.features).unflatten(1, (-1, area))
    bias = tensors["fuse.mix.bias"].unflatten(0, (-1, area)).T
    return {
        "fuse.mix": _pad(mix.transpose(1, 2), 2 * sizes.features, area, fused).flatten(1),
        "fuse.mix.bias": _table(*bias, channels=fused),
        "fuse.smooth": _taps(tensors["fuse.smooth.weight"], fused, fused),
        "fuse.reduce": _taps(tensors["fuse.reduce.weight"], fused, sizes.y),
        **_fuse_tables(tensors, sizes),
    }


def _fuse_tables(tensors: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    slopes = [tensors[f"fuse.{name}.slope"] for name in ("mix", "smooth", "reduce")]
    return {
        "fuse.smooth.bias": _table(tensors["fuse.smooth.bias"], channels=sizes.fused),
        "fuse.reduce.bias": _table(tensors["fuse.reduce.bias"], channels=sizes.y),
        "fuse.slopes": torch.cat(slopes)[None],
    }


# --- stage 4 --------------------------------------------------------------------------------------


def _segment(tensors: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    tail = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
    terms = border.tail_terms(*(tensors[f"segment.{name}"] for name in tail))
    everywhere, *at_border = [
        _taps(weight.flatten(0, 2), sizes.tail, sizes.outputs) for weight, _ in terms
    ]
    return {
        "segment.narrow": _taps(tensors["segment.narrow.weight"], sizes.y, sizes.tail),
        "segment.narrow.bias": _table(tensors["segment.narrow.bias"], channels=sizes.tail),
        "segment.slope": tensors["segment.narrow.slope"].view(1, 1),
        "segment.tail": everywhere,
        "segment.border": torch.cat(at_border),
        "segment.bias": _table(*(bias.flatten() for _, bias in terms), channels=sizes.outputs),
    }
