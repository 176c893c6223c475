"""Stage 1: three down-samplers, the first fused with the stem and with reading the image.

A down-sampler adds the maximum of 2x2 pixels and a convolution of stride 2, and both branches come
from one read. The first follows the stem with nothing between them: the stem outputs that the
maximum compares, and the stem and the strided convolution as one 5x5 convolution, are products with
one 5x5 neighbourhood of the image, so the stem's full-resolution map exists in registers only.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import multiply, rounded
from .launch import Config, Launch, cdiv, is_exact, power_of_2

ROW = 16  # numbers of a neighbourhood's row, with its three channels


@triton.jit
def _image_row(
    pixels_ptr,
    seen,
    r,
    row,
    height,
    step,
    BYTES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Row r of the 5x5 neighbourhoods: [BLOCK_M, 16], normalised; what is not seen is zero."""
    line = 2 * row - 2 + r
    seen = seen & ((line >= 0) & (line < height))[:, None]
    if BYTES:
        # Zero padding is value 128.
        value = tl.load(pixels_ptr + r * step, mask=seen, other=128).to(tl.float32)
        return rounded((value - 128) * 0.0078125, DTYPE)
    value = tl.load(pixels_ptr + r * step, mask=seen, other=0.0)
    return rounded(value.to(tl.float32), DTYPE)


@triton.jit
def _three_rows(sums, x0, x1, x2, weights, real, ROW_SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Sums with the products of three rows of neighbourhoods."""
    sums = multiply(x0, tl.load(weights, mask=real, other=0.0), sums, PRECISION)
    sums = multiply(x1, tl.load(weights + ROW_SIZE, mask=real, other=0.0), sums, PRECISION)
    return multiply(x2, tl.load(weights + 2 * ROW_SIZE, mask=real, other=0.0), sums, PRECISION)


# Images come as the caller has them, and are read by the byte or number.
@triton.jit(
    do_not_specialize=["pixels", "height", "width"],
    do_not_specialize_on_alignment=["image_ptr"],
)
def stem_down(
    image_ptr,
    stem_ptr,
    strided_ptr,
    border_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    height,
    width,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BYTES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """BLOCK_M pixels at half resolution times all outputs; COLUMNS is OUTPUTS' power of two.

    stem_ptr is [2 sub-columns, 3 rows, 16, OUTPUTS], strided_ptr [5, 16, OUTPUTS], border_ptr
    [7, 16, OUTPUTS]: what the top border subtracts, what the left one does for each of five rows,
    and what the corner adds back; bias_ptr [4, OUTPUTS] likewise, everywhere first.
    """
    DTYPE: tl.constexpr = stem_ptr.dtype.element_ty
    ROW_SIZE: tl.constexpr = 16 * OUTPUTS
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, COLUMNS)
    k = tl.arange(0, 16)
    inside = m < pixels
    column = m % (width // 2)
    row = m // (width // 2) % (height // 2)
    batch = m // ((width // 2) * (height // 2))
    real = (n < OUTPUTS)[None, :]
    place = k[:, None] * OUTPUTS + n[None, :]

    # A row of a neighbourhood: five pixels, their channels side by side.
    pixel, channel = k // CHANNELS, k % CHANNELS
    at = (2 * column - 2)[:, None] + pixel[None, :]
    seen = inside[:, None] & (at >= 0) & (at < width) & (k < 5 * CHANNELS)[None, :]
    if BYTES:
        start = ((batch.to(tl.int64) * height + 2 * row - 2) * width + 2 * column - 2) * CHANNELS
        step = width * CHANNELS
        pixels_ptr = image_ptr + start[:, None] + k[None, :]
    else:
        start = (batch.to(tl.int64) * CHANNELS * height + 2 * row - 2) * width + 2 * column - 2
        step = width
        plane = channel.to(tl.int64) * height * width + pixel
        pixels_ptr = image_ptr + start[:, None] + plane[None, :]

    x0 = _image_row(pixels_ptr, seen, 0, row, height, step, BYTES, DTYPE)
    x1 = _image_row(pixels_ptr, seen, 1, row, height, step, BYTES, DTYPE)
    x2 = _image_row(pixels_ptr, seen, 2, row, height, step, BYTES, DTYPE)
    x3 = _image_row(pixels_ptr, seen, 3, row, height, step, BYTES, DTYPE)
    x4 = _image_row(pixels_ptr, seen, 4, row, height, step, BYTES, DTYPE)
    nothing = tl.full((BLOCK_M, COLUMNS), 0.0, tl.float32)
    # The stem at the pooling window's left and right pixels, upper and lower.
    at_left, at_right = stem_ptr + place, stem_ptr + 3 * ROW_SIZE + place
    best = _three_rows(nothing, x1, x2, x3, at_left, real, ROW_SIZE, PRECISION)
    best = tl.maximum(best, _three_rows(nothing, x2, x3, x4, at_left, real, ROW_SIZE, PRECISION))
    best = tl.maximum(best, _three_rows(nothing, x1, x2, x3, at_right, real, ROW_SIZE, PRECISION))
    best = tl.maximum(best, _three_rows(nothing, x2, x3, x4, at_right, real, ROW_SIZE, PRECISION))
    strided = strided_ptr + place
    sums = _three_rows(best, x0, x1, x2, strided, real, ROW_SIZE, PRECISION)
    weight = tl.load(strided + 3 * ROW_SIZE, mask=real, other=0.0)
    sums = multiply(x3, weight, sums, PRECISION)
    weight = tl.load(strided + 4 * ROW_SIZE, mask=real, other=0.0)
    sums = multiply(x4, weight, sums, PRECISION)
    sums += tl.load(bias_ptr + n, mask=n < OUTPUTS, other=0.0)[None, :]

    # Where the strided convolution sees padding, the 5x5 one saw the stem's extension.
    top = inside & (row == 0)
    left = inside & (column == 0)
    if tl.max((top | left).to(tl.int32), 0) > 0:
        for kind in tl.static_range(3):
            chosen = top
            if kind == 1:
                chosen = left
            if kind == 2:
                chosen = top & left
            bias = tl.load(bias_ptr + (kind + 1) * OUTPUTS + n, mask=n < OUTPUTS, other=0.0)
            sums += tl.where(chosen[:, None], bias[None, :], 0.0)
        for r in tl.static_range(7):
            chosen = left
            source = r - 1
            if r == 0:
                chosen = top
                source = 2
            if r == 6:
                chosen = top & left
                source = 2
            there = seen & chosen[:, None]
            x = _image_row(pixels_ptr, there, source, row, height, step, BYTES, DTYPE)
            weight = tl.load(border_ptr + r * ROW_SIZE + place, mask=real, other=0.0)
            sums = multiply(x, weight, sums, PRECISION)

    y = y_ptr + m.to(tl.int64)[:, None] * OUTPUTS + n[None, :]
    tl.store(y, rounded(sums, y_ptr.dtype.element_ty), mask=inside[:, None] & real)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def down(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    height,
    width,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """BLOCK_M output pixels times all channels; COLUMNS is CHANNELS' power of two.

    weight_ptr is [9, CHANNELS, CHANNELS]; height and width are the output's.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, COLUMNS)
    inside = m < pixels
    column = m % width
    line = (m // width).to(tl.int64)
    row = m // width % height
    real = n < CHANNELS
    centre = (2 * line * (2 * width) + 2 * column) * CHANNELS
    x_rows = x_ptr + centre[:, None] + n[None, :]
    weights = weight_ptr + n[:, None] * CHANNELS + n[None, :]
    both = real[:, None] & real[None, :]

    sums = tl.full((BLOCK_M, COLUMNS), 0.0, tl.float32)
    best = tl.full((BLOCK_M, COLUMNS), float("-inf"), tl.float32)
    for tap in tl.static_range(9):
        # Rows and columns after the last pair are never seen, those before the first are padding.
        seen = inside
        if tap < 3:
            seen = seen & (row > 0)
        if tap % 3 == 0:
            seen = seen & (column > 0)
        offset = ((tap // 3 - 1) * 2 * width + tap % 3 - 1) * CHANNELS
        x = tl.load(x_rows + offset, mask=seen[:, None] & real[None, :], other=0.0)
        weight = tl.load(weights + tap * CHANNELS * CHANNELS, mask=both, other=0.0)
        sums = multiply(x, weight, sums, PRECISION)
        if tap >= 4 and tap % 3 > 0:
            best = tl.maximum(best, x.to(tl.float32))
    sums += best + tl.load(bias_ptr + n, mask=real, other=0.0)[None, :]
    y = y_ptr + m.to(tl.int64)[:, None] * CHANNELS + n[None, :]
    tl.store(y, rounded(sums, y_ptr.dtype.element_ty), mask=inside[:, None] & real[None, :])


def _configs(y: Tensor) -> list[Config]:
    """Pixels and warps; in float32 there are registers for few pixels."""
    choices = ((16, 4), (32, 8)) if is_exact(y) else ((64, 4), (128, 8))
    return [Config({"BLOCK_M": m}, num_warps, 1) for m, num_warps in choices]


def launch_stem_down(
    image: Tensor,
    stem: Tensor,
    strided: Tensor,
    border: Tensor,
    bias: Tensor,
    y: Tensor,
    precision: str = "ieee",
) -> Launch:
    """Image to the first down-sampler's output.

    Args:
        image: uint8 [B, H, W, C], or normalised floats [B, C, H, W]; C 1 or 3; contiguous.
        stem: [2, 3, 16, outputs]; see `stem_down`.
        strided: [5, 16, outputs].
        border: [7, 16, outputs].
        bias: [4, outputs] float32.
        y: [B, H/2, W/2, outputs]; written.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, half_height, half_width, outputs = y.shape
    as_bytes = not image.is_floating_point()
    pixels = batch * half_height * half_width
    return Launch(
        stem_down,
        {
            "image_ptr": image,
            "stem_ptr": stem,
            "strided_ptr": strided,
            "border_ptr": border,
            "bias_ptr": bias,
            "y_ptr": y,
            "pixels": pixels,
            "height": 2 * half_height,
            "width": 2 * half_width,
        },
        {
            "CHANNELS": image.shape[3] if as_bytes else image.shape[1],
            "OUTPUTS": outputs,
            "COLUMNS": power_of_2(outputs),
            "BYTES": as_bytes,
            "PRECISION": precision,
        },
        _configs(y),
        lambda blocks: cdiv(pixels, blocks["BLOCK_M"]),
    )


def launch_down(
    x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, precision: str = "ieee"
) -> Launch:
    """One of the other down-samplers.

    Args:
        x: [B, 2h, 2w, channels].
        weight: [9, channels, channels], the dtype of `x`.
        bias: [channels] float32.
        y: [B, h, w, channels]; written.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, height, width, channels = y.shape
    pixels = batch * height * width
    return Launch(
        down,
        {
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "y_ptr": y,
            "pixels": pixels,
            "height": height,
            "width": width,
        },
        {
            "CHANNELS": channels,
            "COLUMNS": power_of_2(channels),
            "PRECISION": precision,
        },
        _configs(y),
        lambda blocks: cdiv(pixels, blocks["BLOCK_M"]),
    )
