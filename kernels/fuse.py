"""Stage 3 with nearest up-sampling, in sub-pixel form.

Nearest x4 and a 3x3 convolution give a cell 3x3 distinct values, a b c along each axis (see
`dssnet_fast.fold`). With the cell and its differences to the cells before and after as factors they
take nine products, which `cell_values` adds up in registers, with bias and PReLU. `reduce_cells`
computes the next 3x3 convolution from them: 100 products a cell instead of 144, because taps that
meet the same value are added up beforehand.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import multiply, prelu, rounded
from .convolution import step_of
from .launch import Config, Launch, cdiv, is_exact


@triton.jit(do_not_specialize=["cells", "height", "width"])
def cell_values(
    x_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    y_ptr,
    cells,
    height,
    width,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_M cells times BLOCK_N channels of all nine values.

    x_ptr is [cells, CHANNELS], weight_ptr [9, CHANNELS, CHANNELS] (row factor slowest: the cell,
    before, after; then column factor; twice the sums of taps for each difference, which is halved),
    y_ptr [cells, 9, CHANNELS].
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    blocks_n = CHANNELS // BLOCK_N
    program = tl.program_id(0)
    m = program // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = m < cells
    row = m // width % height
    column = m % width
    up, down = inside & (row > 0), inside & (row + 1 < height)
    left, right = column > 0, column + 1 < width
    x_rows = x_ptr + m.to(tl.int64) * CHANNELS
    line = width * CHANNELS
    weights = weight_ptr + k[:, None] * CHANNELS + n[None, :]
    stride: tl.constexpr = CHANNELS * CHANNELS

    zero = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    here, before, after = zero, zero, zero
    above, above_before, above_after = zero, zero, zero
    below, below_before, below_after = zero, zero, zero
    for first in range(0, CHANNELS, BLOCK_K):
        at = x_rows[:, None] + (first + k)[None, :]
        w = weights + first * CHANNELS
        # Differences are halved along each axis: no sum of them is larger than the values are.
        x = tl.load(at, mask=inside[:, None], other=0.0)
        x_left = tl.load(at - CHANNELS, mask=(inside & left)[:, None], other=0.0)
        x_right = tl.load(at + CHANNELS, mask=(inside & right)[:, None], other=0.0)
        middle = x.to(tl.float32)
        to_left = (x_left.to(tl.float32) - middle) * 0.5
        to_right = (x_right.to(tl.float32) - middle) * 0.5
        here = multiply(x, tl.load(w), here, PRECISION)
        before = multiply(rounded(to_left, DTYPE), tl.load(w + stride), before, PRECISION)
        after = multiply(rounded(to_right, DTYPE), tl.load(w + 2 * stride), after, PRECISION)

        x = tl.load(at - line, mask=up[:, None], other=0.0).to(tl.float32)
        x_left = tl.load(at - line - CHANNELS, mask=(up & left)[:, None], other=0.0)
        x_right = tl.load(at - line + CHANNELS, mask=(up & right)[:, None], other=0.0)
        upwards = rounded((x - middle) * 0.5, DTYPE)
        upleft = rounded(((x_left.to(tl.float32) - x) * 0.5 - to_left) * 0.5, DTYPE)
        upright = rounded(((x_right.to(tl.float32) - x) * 0.5 - to_right) * 0.5, DTYPE)
        above = multiply(upwards, tl.load(w + 3 * stride), above, PRECISION)
        above_before = multiply(upleft, tl.load(w + 4 * stride), above_before, PRECISION)
        above_after = multiply(upright, tl.load(w + 5 * stride), above_after, PRECISION)

        x = tl.load(at + line, mask=down[:, None], other=0.0).to(tl.float32)
        x_left = tl.load(at + line - CHANNELS, mask=(down & left)[:, None], other=0.0)
        x_right = tl.load(at + line + CHANNELS, mask=(down & right)[:, None], other=0.0)
        downwards = rounded((x - middle) * 0.5, DTYPE)
        downleft = rounded(((x_left.to(tl.float32) - x) * 0.5 - to_left) * 0.5, DTYPE)
        downright = rounded(((x_right.to(tl.float32) - x) * 0.5 - to_right) * 0.5, DTYPE)
        below = multiply(downwards, tl.load(w + 6 * stride), below, PRECISION)
        below_before = multiply(downleft, tl.load(w + 7 * stride), below_before, PRECISION)
        below_after = multiply(downright, tl.load(w + 8 * stride), below_after, PRECISION)

    slope = tl.load(slope_ptr)
    here += tl.load(bias_ptr + n)[None, :]
    y = y_ptr + m.to(tl.int64)[:, None] * (9 * CHANNELS) + n[None, :]
    wanted = inside[:, None]
    a, c = here + above, here + below
    aa, ac = a + before + above_before, a + after + above_after
    ca, cc = c + before + below_before, c + after + below_after
    tl.store(y, rounded(prelu(aa, slope), DTYPE), mask=wanted)
    tl.store(y + CHANNELS, rounded(prelu(a, slope), DTYPE), mask=wanted)
    tl.store(y + 2 * CHANNELS, rounded(prelu(ac, slope), DTYPE), mask=wanted)
    tl.store(y + 3 * CHANNELS, rounded(prelu(here + before, slope), DTYPE), mask=wanted)
    tl.store(y + 4 * CHANNELS, rounded(prelu(here, slope), DTYPE), mask=wanted)
    tl.store(y + 5 * CHANNELS, rounded(prelu(here + after, slope), DTYPE), mask=wanted)
    tl.store(y + 6 * CHANNELS, rounded(prelu(ca, slope), DTYPE), mask=wanted)
    tl.store(y + 7 * CHANNELS, rounded(prelu(c, slope), DTYPE), mask=wanted)
    tl.store(y + 8 * CHANNELS, rounded(prelu(cc, slope), DTYPE), mask=wanted)


@triton.jit
def _columns(x0, x1, x2, x3, x4, w, STRIDE: tl.constexpr, s0, s1, s2, s3, PRECISION: tl.constexpr):
    """Ten products of one row of values: sums of the four sub-columns.

    x0 to x4 are c of the cell before, a, b, c, and a of the cell after; w points to the weights
    for column taps -, 0, +, 0 and +, - and 0.
    """
    minus = tl.load(w)
    s0 = multiply(x0, minus, s0, PRECISION)
    s1 = multiply(x1, minus, s1, PRECISION)
    s3 = multiply(x2, minus, s3, PRECISION)
    centre = tl.load(w + STRIDE)
    s0 = multiply(x1, centre, s0, PRECISION)
    s3 = multiply(x3, centre, s3, PRECISION)
    plus = tl.load(w + 2 * STRIDE)
    s0 = multiply(x2, plus, s0, PRECISION)
    s2 = multiply(x3, plus, s2, PRECISION)
    s3 = multiply(x4, plus, s3, PRECISION)
    s1 = multiply(x2, tl.load(w + 3 * STRIDE), s1, PRECISION)
    s2 = multiply(x2, tl.load(w + 4 * STRIDE), s2, PRECISION)
    return s0, s1, s2, s3


@triton.jit(do_not_specialize=["cells", "height", "width"])
def reduce_cells(
    x_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    y_ptr,
    cells,
    height,
    width,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One of the four sub-rows of BLOCK_M cells.

    x_ptr is [cells, 9, CHANNELS], weight_ptr [5 row taps, 5 column taps, CHANNELS, OUTPUTS] (taps
    -, 0, +, 0 and +, - and 0), y_ptr [B, 4h, 4w, OUTPUTS].
    """
    program = tl.program_id(0)
    sub_row = program % 4
    m = program // 4 * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, OUTPUTS)
    k = tl.arange(0, BLOCK_K)
    inside = m < cells
    row = m // width % height
    column = m % width
    left, right = column > 0, column + 1 < width
    x_rows = x_ptr + m.to(tl.int64) * (9 * CHANNELS)
    STRIDE: tl.constexpr = CHANNELS * OUTPUTS
    weights = weight_ptr + k[:, None] * OUTPUTS + n[None, :]

    # Rows of values: c of the cell before, a, b, c, a of the cell after. Sub-rows 0 and 3 see
    # three of them through one tap each, 1 and 2 see two, one of them through two taps.
    outer = (sub_row == 0) | (sub_row == 3)
    first = tl.where(sub_row == 0, 0, tl.where(sub_row == 1, 1, 2))
    count = tl.where(outer, 3, 2)
    s0 = tl.full((BLOCK_M, OUTPUTS), 0.0, tl.float32)
    s1, s2, s3 = s0, s0, s0
    chunks: tl.constexpr = CHANNELS // BLOCK_K
    for step in range(count * chunks):
        value = first + step // chunks
        seen = value - first
        inner = tl.where(sub_row == 1, seen * 3, 4 - 2 * seen)
        tap = tl.where(outer, seen, inner)
        dy = tl.where(value == 0, -1, tl.where(value == 4, 1, 0))
        line = tl.where(value == 0, 2, tl.where(value == 4, 0, value - 1))
        real = inside & (row + dy >= 0) & (row + dy < height)
        chunk = step % chunks * BLOCK_K
        offset = (dy * width * 9 + line * 3) * CHANNELS + chunk
        at = x_rows[:, None] + (offset + k)[None, :]
        x0 = tl.load(at - 7 * CHANNELS, mask=(real & left)[:, None], other=0.0)
        x1 = tl.load(at, mask=real[:, None], other=0.0)
        x2 = tl.load(at + CHANNELS, mask=real[:, None], other=0.0)
        x3 = tl.load(at + 2 * CHANNELS, mask=real[:, None], other=0.0)
        x4 = tl.load(at + 9 * CHANNELS, mask=(real & right)[:, None], other=0.0)
        w = weights + (tap * 5 * CHANNELS + chunk) * OUTPUTS
        s0, s1, s2, s3 = _columns(x0, x1, x2, x3, x4, w, STRIDE, s0, s1, s2, s3, PRECISION)

    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    bias = tl.load(bias_ptr + n)[None, :]
    slope = tl.load(slope_ptr)
    line = (m // width).to(tl.int64) * 4 + sub_row
    y = y_ptr + (line * width + column)[:, None] * (4 * OUTPUTS) + n[None, :]
    wanted = inside[:, None]
    tl.store(y, rounded(prelu(s0 + bias, slope), DTYPE), mask=wanted)
    tl.store(y + OUTPUTS, rounded(prelu(s1 + bias, slope), DTYPE), mask=wanted)
    tl.store(y + 2 * OUTPUTS, rounded(prelu(s2 + bias, slope), DTYPE), mask=wanted)
    tl.store(y + 3 * OUTPUTS, rounded(prelu(s3 + bias, slope), DTYPE), mask=wanted)


def launch_cell_values(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, values: Tensor, precision: str = "ieee"
) -> Launch:
    """The nine values of each cell, after bias and PReLU.

    Args:
        x: [B, h, w, channels], contiguous.
        weight: [9, channels, channels]; see `cell_values`.
        bias: [channels] float32.
        slope: [1] float32.
        values: [B, h, w, 9, channels]; written.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, height, width, channels = x.shape
    cells = batch * height * width
    block_n = step_of(channels, 32)
    return Launch(
        cell_values,
        {
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "slope_ptr": slope,
            "y_ptr": values,
            "cells": cells,
            "height": height,
            "width": width,
        },
        {"CHANNELS": channels, "PRECISION": precision},
        [
            Config({"BLOCK_M": m, "BLOCK_N": block_n, "BLOCK_K": step_of(channels, 16)}, warps, 2)
            # Nine sums of each cell are held.
            for m, warps in (((16, 4),) if is_exact(x) else ((64, 4), (32, 2)))
        ],
        lambda blocks: cdiv(cells, blocks["BLOCK_M"]) * (channels // block_n),
    )


def launch_reduce_cells(
    values: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, y: Tensor, precision: str = "ieee"
) -> Launch:
    """The 3x3 convolution after the cells' values, and its PReLU.

    Args:
        values: [B, h, w, 9, channels].
        weight: [5, 5, channels, outputs], outputs a power of two; see `reduce_cells`.
        bias: [outputs] float32.
        slope: [1] float32.
        y: [B, 4h, 4w, outputs]; written.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, height, width, _, channels = values.shape
    cells = batch * height * width
    choices = ((64, 16, 4, 3), (128, 16, 8, 3), (64, 32, 4, 2))
    if is_exact(values):
        choices = ((16, 16, 4, 2),)
    return Launch(
        reduce_cells,
        {
            "x_ptr": values,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "slope_ptr": slope,
            "y_ptr": y,
            "cells": cells,
            "height": height,
            "width": width,
        },
        {
            "CHANNELS": channels,
            "OUTPUTS": weight.shape[3],
            "PRECISION": precision,
        },
        [
            Config({"BLOCK_M": m, "BLOCK_K": step_of(channels, k)}, warps, stages)
            for m, k, warps, stages in choices
        ],
        lambda blocks: 4 * cdiv(cells, blocks["BLOCK_M"]),
    )
