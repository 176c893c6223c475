"""Convolutions of stride 1 as implicit matrix products: what the stages share.

Maps are [B, h, w, pitch], channels last, of which a kernel reads and writes the first `inputs` or
`outputs`, a multiple of 16. Channels beyond a layer's own are zero, because their weights are.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import multiply, prelu, rounded
from .launch import Config, Launch, cdiv, is_exact, power_of_2

MANY = 1 << 15  # pixels: enough for hundreds of programs of the larger kind


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def convolution(
    x_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    residual_ptr,
    y_ptr,
    pixels,
    height,
    width,
    x_pitch,
    residual_pitch,
    y_pitch,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIZE: tl.constexpr,
    POINTWISE: tl.constexpr,
    ACTIVATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHUFFLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_M pixels times BLOCK_N outputs.

    weight_ptr is [SIZE * SIZE, INPUTS, OUTPUTS]; of the first POINTWISE outputs only the centre
    tap counts. With SHUFFLE, outputs are [SHUFFLE, SHUFFLE, channels] and go to as many pixels.
    """
    blocks_n = tl.cdiv(OUTPUTS, BLOCK_N)
    program = tl.program_id(0)
    m = program // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    first_n = program % blocks_n * BLOCK_N
    n = first_n + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = m < pixels
    row = m // width % height
    column = m % width
    # Maps may have more than 2^31 numbers, though not as many pixels.
    x_rows = x_ptr + m.to(tl.int64) * x_pitch

    chunks = INPUTS // BLOCK_K
    first, last = 0, SIZE * SIZE * chunks
    if first_n < POINTWISE:
        first = SIZE * SIZE // 2 * chunks
        last = first + chunks
    sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for step in range(first, last):
        tap = step // chunks
        dy = tap // SIZE - SIZE // 2
        dx = tap % SIZE - SIZE // 2
        seen = inside & (row + dy >= 0) & (row + dy < height)
        seen = seen & (column + dx >= 0) & (column + dx < width)
        offset = (dy * width + dx) * x_pitch + step % chunks * BLOCK_K
        x = tl.load(x_rows[:, None] + (offset + k)[None, :], mask=seen[:, None], other=0.0)
        weight_rows = weight_ptr + (step * BLOCK_K + k) * OUTPUTS
        weight = tl.load(weight_rows[:, None] + n[None, :], mask=(n < OUTPUTS)[None, :], other=0.0)
        sums = multiply(x, weight, sums, PRECISION)

    sums += tl.load(bias_ptr + n, mask=n < OUTPUTS, other=0.0)[None, :]
    wanted = inside[:, None] & (n < OUTPUTS)[None, :]
    if RESIDUAL:
        residual_rows = residual_ptr + m.to(tl.int64) * residual_pitch
        residual = tl.load(residual_rows[:, None] + n[None, :], mask=wanted, other=0.0)
        sums += residual.to(tl.float32)
    if ACTIVATE:
        sums = prelu(sums, tl.load(slope_ptr))
    target, channel = m.to(tl.int64), n
    if SHUFFLE > 1:
        # A block of outputs belongs to one sub-pixel.
        channels = OUTPUTS // (SHUFFLE * SHUFFLE)
        sub_pixel = first_n // channels
        image_row = (m // width).to(tl.int64) * SHUFFLE + sub_pixel // SHUFFLE
        target = (image_row * width + column) * SHUFFLE + sub_pixel % SHUFFLE
        channel = n % channels
    y_rows = y_ptr + target * y_pitch
    y = rounded(sums, y_ptr.dtype.element_ty)
    tl.store(y_rows[:, None] + channel[None, :], y, mask=wanted)


def step_of(channels: int, largest: int = 64) -> int:
    """The largest power of two that divides `channels`, at most `largest`."""
    return min(channels & -channels, largest)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    slope: Tensor | None = None,
    residual: Tensor | None = None,
    pointwise: int = 0,
    shuffle: int = 1,
    precision: str = "ieee",
) -> Launch:
    """A convolution of stride 1 with padding, and what may follow it.

    Args:
        x: [B, h, w, inputs or more].
        weight: [taps, inputs, outputs], taps 1 or 9; the dtype of `x`.
        bias: [outputs] float32.
        y: [B, h, w, outputs or more], or [B, shuffle * h, shuffle * w, outputs / shuffle**2 or
            more]; written.
        slope: [1] float32: a PReLU follows.
        residual: [B, h, w, outputs or more]: added before it.
        pointwise: So many of the outputs see the centre tap only.
        shuffle: Outputs are [shuffle, shuffle, channels], dealt to as many pixels.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, height, width, _ = x.shape
    pixels = batch * height * width
    taps, inputs, outputs = weight.shape
    # A block has one sub-pixel, and sees either one tap or all.
    parts = pointwise or (outputs // shuffle**2 if shuffle > 1 else 64)
    block_n = min(power_of_2(outputs), step_of(parts))
    block_k = step_of(inputs, 32 if is_exact(x) else 64)

    def config(block_m: int, num_warps: int, num_stages: int) -> Config:
        blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
        return Config(blocks, num_warps, num_stages)

    # 64 pixels make the most programs, 128 use a weight twice as often.
    if is_exact(x):
        configs = [config(64, 4, 2)]
    else:
        configs = [config(64, 4, 3), config(128, 4, 2)]
        if pixels >= MANY:
            configs.reverse()
    return Launch(
        convolution,
        {
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "slope_ptr": slope,
            "residual_ptr": residual,
            "y_ptr": y,
            "pixels": pixels,
            "height": height,
            "width": width,
            "x_pitch": x.stride(2),
            "residual_pitch": 0 if residual is None else residual.stride(2),
            "y_pitch": y.stride(2),
        },
        {
            "INPUTS": inputs,
            "OUTPUTS": outputs,
            "SIZE": 3 if taps == 9 else 1,
            "POINTWISE": pointwise,
            "ACTIVATE": slope is not None,
            "RESIDUAL": residual is not None,
            "SHUFFLE": shuffle,
            "PRECISION": precision,
        },
        configs,
        lambda blocks: cdiv(pixels, blocks["BLOCK_M"]) * cdiv(outputs, block_n),
    )
