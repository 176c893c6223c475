"""Stage 4's end: one sub-pixel convolution to logits, and the answer decided in registers.

The last two convolutions, over a nearest-x2 map, are one at half resolution with 2x2 outputs a
pixel. At the image's border the second one sees padding where the composed one sees the first one's
extension: pixels there take further products, one set for each side and corner, that subtract it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import multiply
from .launch import Config, Launch, cdiv, is_exact

LABELS, PROBABILITIES, LOGITS = 0, 1, 2
OUTPUTS = {"labels": LABELS, "probabilities": PROBABILITIES, "logits": LOGITS}


@triton.jit
def _border(
    sums,
    x_rows,
    weight_ptr,
    bias_ptr,
    chosen,
    seen_before,
    seen_after,
    step,
    TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums with the products of one side (TAPS 3, pixels `step` apart) or corner (TAPS 1)."""
    k = tl.arange(0, INPUTS)
    n = tl.arange(0, COLUMNS)
    for tap in tl.static_range(TAPS):
        seen = chosen
        offset = 0
        if TAPS == 3:
            offset = (tap - 1) * step
            if tap == 0:
                seen = seen & seen_before
            if tap == 2:
                seen = seen & seen_after
        x = tl.load(x_rows + offset + k[None, :], mask=seen[:, None], other=0.0)
        weight = tl.load(weight_ptr + (tap * INPUTS + k)[:, None] * COLUMNS + n[None, :])
        sums = multiply(x, weight, sums, PRECISION)
    return sums + tl.where(chosen[:, None], tl.load(bias_ptr + n)[None, :], 0.0)


@triton.jit(do_not_specialize=["height", "width"])
def classify(
    x_ptr,
    weight_ptr,
    border_ptr,
    bias_ptr,
    y_ptr,
    height,
    width,
    INPUTS: tl.constexpr,
    CLASSES: tl.constexpr,
    SLOTS: tl.constexpr,
    OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """BLOCK_Y x BLOCK_X pixels at half resolution: their 2x2 answers each.

    x_ptr is [B, height, width, INPUTS]; weight_ptr [9, INPUTS, 4 * SLOTS], columns [2 sub-rows,
    2 sub-columns, SLOTS], SLOTS the power of two that holds CLASSES; border_ptr [16, INPUTS,
    4 * SLOTS]: three taps each for top, bottom, left and right, one each for the corners; bias_ptr
    [9, 4 * SLOTS] likewise, everywhere first, unused slots minus infinity there.
    """
    COLUMNS: tl.constexpr = 4 * SLOTS
    blocks_x = tl.cdiv(width, BLOCK_X)
    blocks_y = tl.cdiv(height, BLOCK_Y)
    program = tl.program_id(0)
    batch = program // (blocks_x * blocks_y)
    first_row = program // blocks_x % blocks_y * BLOCK_Y
    first_column = program % blocks_x * BLOCK_X
    m = tl.arange(0, BLOCK_Y * BLOCK_X)
    row = first_row + m // BLOCK_X
    column = first_column + m % BLOCK_X
    inside = (row < height) & (column < width)
    line = batch.to(tl.int64) * height + row
    x_rows = x_ptr + (line * width + column)[:, None] * INPUTS
    k = tl.arange(0, INPUTS)
    n = tl.arange(0, COLUMNS)
    weights = weight_ptr + k[:, None] * COLUMNS + n[None, :]

    up, down = row > 0, row + 1 < height
    left, right = column > 0, column + 1 < width
    sums = tl.full((BLOCK_Y * BLOCK_X, COLUMNS), 0.0, tl.float32)
    for tap in range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        seen = inside & (row + dy >= 0) & (row + dy < height)
        seen = seen & (column + dx >= 0) & (column + dx < width)
        x = tl.load(x_rows + (dy * width + dx) * INPUTS + k[None, :], mask=seen[:, None], other=0.0)
        weight = tl.load(weights + tap * INPUTS * COLUMNS)
        sums = multiply(x, weight, sums, PRECISION)
    sums += tl.load(bias_ptr + n)[None, :]

    at_rows = (first_row == 0) | (first_row + BLOCK_Y >= height)
    if at_rows | (first_column == 0) | (first_column + BLOCK_X >= width):
        top, bottom = inside & (row == 0), inside & (row + 1 == height)
        west, east = inside & (column == 0), inside & (column + 1 == width)
        size: tl.constexpr = INPUTS * COLUMNS
        for side in tl.static_range(8):
            chosen = top
            if side == 1:
                chosen = bottom
            if side == 2:
                chosen = west
            if side == 3:
                chosen = east
            if side == 4:
                chosen = top & west
            if side == 5:
                chosen = top & east
            if side == 6:
                chosen = bottom & west
            if side == 7:
                chosen = bottom & east
            if tl.max(chosen.to(tl.int32), 0) > 0:
                bias = bias_ptr + (side + 1) * COLUMNS
                if side < 2:
                    sums = _border(
                        sums, x_rows, border_ptr + 3 * side * size, bias, chosen, left, right,
                        INPUTS, 3, INPUTS, COLUMNS, PRECISION,
                    )  # fmt: skip
                elif side < 4:
                    sums = _border(
                        sums, x_rows, border_ptr + 3 * side * size, bias, chosen, up, down,
                        width * INPUTS, 3, INPUTS, COLUMNS, PRECISION,
                    )  # fmt: skip
                else:
                    sums = _border(
                        sums, x_rows, border_ptr + (8 + side) * size, bias, chosen, left, right,
                        0, 1, INPUTS, COLUMNS, PRECISION,
                    )  # fmt: skip

    logits = tl.reshape(sums, (BLOCK_Y * BLOCK_X, 4, SLOTS))
    sub_pixel = tl.arange(0, 4)
    sub_line = 2 * line[:, None] + (sub_pixel // 2)[None, :]
    pixel = sub_line * (2 * width) + 2 * column[:, None] + (sub_pixel % 2)[None, :]
    if OUTPUT == 0:
        labels = tl.argmax(logits, 2).to(tl.uint8)
        tl.store(y_ptr + pixel, labels, mask=inside[:, None])
    else:
        if OUTPUT == 1:
            logits = tl.exp(logits - tl.max(logits, 2)[:, :, None])
            logits = logits / tl.sum(logits, 2)[:, :, None]
        slot = tl.arange(0, SLOTS)
        y = y_ptr + pixel[:, :, None] * CLASSES + slot[None, None, :]
        wanted = inside[:, None, None] & (slot < CLASSES)[None, None, :]
        tl.store(y, logits, mask=tl.broadcast_to(wanted, (BLOCK_Y * BLOCK_X, 4, SLOTS)))


def launch_classify(
    x: Tensor,
    weight: Tensor,
    border: Tensor,
    bias: Tensor,
    answer: Tensor,
    classes: int,
    output: str,
    precision: str = "ieee",
) -> Launch:
    """Half-resolution map to the answer.

    Args:
        x: [B, H/2, W/2, inputs], inputs a power of two, contiguous.
        weight: [9, inputs, 4 * slots]; see `classify`.
        border: [16, inputs, 4 * slots].
        bias: [9, 4 * slots] float32.
        answer: uint8 [B, H, W], or float32 [B, H, W, classes]; written.
        classes: Of the network.
        output: A key of `OUTPUTS`.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, height, width, inputs = x.shape
    return Launch(
        classify,
        {
            "x_ptr": x,
            "weight_ptr": weight,
            "border_ptr": border,
            "bias_ptr": bias,
            "y_ptr": answer,
            "height": height,
            "width": width,
        },
        {
            "INPUTS": inputs,
            "CLASSES": classes,
            "SLOTS": weight.shape[2] // 4,
            "OUTPUT": OUTPUTS[output],
            "PRECISION": precision,
        },
        [
            Config({"BLOCK_Y": 8, "BLOCK_X": columns}, num_warps, 3)
            for columns, num_warps in (((16, 8),) if is_exact(x) else ((16, 4), (8, 4), (32, 8)))
        ],
        lambda blocks: batch * cdiv(height, blocks["BLOCK_Y"]) * cdiv(width, blocks["BLOCK_X"]),
    )
