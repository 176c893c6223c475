"""W-NECK blocks of narrow networks: one kernel squeezes, one restores.

The 252 expanded channels of a cell never leave its multiprocessor. Triton gives a kernel no memory
that its programs could index, so a neighbour's expanded channels are out of reach; but what a cell
gives to its nine neighbours is a product of its own channels. `squeeze` computes the nine products
of a tile's cells and moves them to where they belong by rotating the tile, along x and then along
y. What a rotation carries over the tile's edge belongs to a neighbouring tile: it goes to maps of
its own, of which each has one writer, and `restore` adds them up. They are

    0  from the cell's own tile            1  from the tile beside it (left or right)
    2  from the tile above or below        3  from the tile across the corner

Whether `restore` could be fused, too: its 3x3 neighbourhood would have to be exchanged once more,
through memory and a barrier among all programs, which is a new launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import multiply, prelu, rounded
from .convolution import step_of
from .launch import Config, Launch, cdiv, power_of_2

MAPS = 4  # of partial sums
TILE = 8  # cells a side of a tile: rows and columns
# What fits in the registers of a program of 64 cells.
LARGEST_EXPANDED, LARGEST_SQUEEZED = 128, 32


@triton.jit(do_not_specialize=["cells", "height", "width"])
def squeeze(
    x_ptr,
    expand1_ptr,
    expand3_ptr,
    expand_bias_ptr,
    slope_ptr,
    squeeze_ptr,
    squeeze_bias_ptr,
    sums_ptr,
    cells,
    height,
    width,
    x_pitch,
    FEATURES: tl.constexpr,
    EXPANDED: tl.constexpr,
    SQUEEZED: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile: expand both branches, PReLU, squeeze.

    expand1_ptr is [FEATURES, EXPANDED], expand3_ptr [9, FEATURES, EXPANDED], expand_bias_ptr
    [2, EXPANDED], squeeze_ptr [9, 2, EXPANDED, SQUEEZED]; sums_ptr [4, cells, SQUEEZED] float32 is
    written. STAGES rows of squeezing weights are in flight.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    tiles_x = tl.cdiv(width, TILE)
    tiles_y = tl.cdiv(height, TILE)
    program = tl.program_id(0)
    batch = program // (tiles_x * tiles_y)
    first_row = program // tiles_x % tiles_y * TILE
    first_column = program % tiles_x * TILE

    m = tl.arange(0, TILE * TILE)
    row = first_row + m // TILE
    column = first_column + m % TILE
    inside = (row < height) & (column < width)
    cell = (batch * height + row) * width + column
    x_rows = x_ptr + cell.to(tl.int64) * x_pitch
    k = tl.arange(0, BLOCK_K)
    e = tl.arange(0, EXPANDED)
    slope = tl.load(slope_ptr)
    chunks: tl.constexpr = FEATURES // BLOCK_K

    wide = tl.full((TILE * TILE, EXPANDED), 0.0, tl.float32)
    for tap in range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        seen = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        seen = (seen & inside)[:, None]
        there = x_rows + (dy * width + dx) * x_pitch
        weight_rows = expand3_ptr + tap * FEATURES * EXPANDED
        for chunk in tl.static_range(chunks):
            at = chunk * BLOCK_K + k
            x = tl.load(there[:, None] + at[None, :], mask=seen, other=0.0)
            weight = tl.load(weight_rows + at[:, None] * EXPANDED + e[None, :])
            wide = multiply(x, weight, wide, PRECISION)
    wide = prelu(wide + tl.load(expand_bias_ptr + EXPANDED + e)[None, :], slope)
    # Outside the image nothing is given to anybody.
    wide3 = rounded(tl.where(inside[:, None], wide, 0.0), DTYPE)

    wide = tl.full((TILE * TILE, EXPANDED), 0.0, tl.float32)
    for chunk in tl.static_range(chunks):
        at = chunk * BLOCK_K + k
        x = tl.load(x_rows[:, None] + at[None, :], mask=inside[:, None], other=0.0)
        weight = tl.load(expand1_ptr + at[:, None] * EXPANDED + e[None, :])
        wide = multiply(x, weight, wide, PRECISION)
    wide = prelu(wide + tl.load(expand_bias_ptr + e)[None, :], slope)
    wide1 = rounded(tl.where(inside[:, None], wide, 0.0), DTYPE)

    s = tl.arange(0, SQUEEZED)
    weights = squeeze_ptr + e[:, None] * SQUEEZED + s[None, :]
    y3 = tl.arange(0, TILE)[:, None, None]
    x3 = tl.arange(0, TILE)[None, :, None]
    SHAPE: tl.constexpr = (TILE, TILE, SQUEEZED)
    own = tl.broadcast_to(tl.load(squeeze_bias_ptr + s)[None, None, :], SHAPE)
    beside = tl.full(SHAPE, 0.0, tl.float32)
    across = tl.full(SHAPE, 0.0, tl.float32)
    corner = tl.full(SHAPE, 0.0, tl.float32)
    nothing = tl.full((TILE * TILE, SQUEEZED), 0.0, tl.float32)
    for dy in tl.range(-1, 2, num_stages=STAGES):
        stay = tl.full(SHAPE, 0.0, tl.float32)
        leave = tl.full(SHAPE, 0.0, tl.float32)
        for dx in tl.static_range(-1, 2):
            weight1 = weights + ((dy + 1) * 3 + dx + 1) * (2 * EXPANDED * SQUEEZED)
            product = multiply(wide1, tl.load(weight1), nothing, PRECISION)
            weight3 = tl.load(weight1 + EXPANDED * SQUEEZED)
            product = multiply(wide3, weight3, product, PRECISION)
            product = tl.reshape(product, SHAPE)
            if dx == 0:
                stay += product
            else:
                # The output at x sees the cell at x + dx.
                source = tl.broadcast_to((x3 + dx) & (TILE - 1), SHAPE)
                product = tl.gather(product, source, 1)
                kept = (x3 + dx >= 0) & (x3 + dx < TILE)
                stay += tl.where(kept, product, 0.0)
                leave += tl.where(kept, 0.0, product)
        source = tl.broadcast_to((y3 + dy) & (TILE - 1), SHAPE)
        kept = (y3 + dy >= 0) & (y3 + dy < TILE)
        stay = tl.gather(stay, source, 0)
        own += tl.where(kept, stay, 0.0)
        across += tl.where(kept, 0.0, stay)
        leave = tl.gather(leave, source, 0)
        beside += tl.where(kept, leave, 0.0)
        corner += tl.where(kept, 0.0, leave)

    # Slot 0 of a rotated axis is the cell after the tile, the last slot the cell before it.
    row_in, column_in = first_row + y3, first_column + x3
    row_out = first_row + tl.where(y3 == 0, TILE, -1)
    column_out = first_column + tl.where(x3 == 0, TILE, -1)
    y_edge = ((y3 == 0) | (y3 == TILE - 1)) & (row_out >= 0) & (row_out < height)
    x_edge = ((x3 == 0) | (x3 == TILE - 1)) & (column_out >= 0) & (column_out < width)
    y_in, x_in = row_in < height, column_in < width
    s3 = s[None, None, :]
    image = batch.to(tl.int64) * height
    plane = cells.to(tl.int64) * SQUEEZED
    to = sums_ptr + ((image + row_in) * width + column_in) * SQUEEZED + s3
    tl.store(to, own, mask=tl.broadcast_to(y_in & x_in, SHAPE))
    to = sums_ptr + plane + ((image + row_in) * width + column_out) * SQUEEZED + s3
    tl.store(to, beside, mask=tl.broadcast_to(y_in & x_edge, SHAPE))
    to = sums_ptr + 2 * plane + ((image + row_out) * width + column_in) * SQUEEZED + s3
    tl.store(to, across, mask=tl.broadcast_to(y_edge & x_in, SHAPE))
    to = sums_ptr + 3 * plane + ((image + row_out) * width + column_out) * SQUEEZED + s3
    tl.store(to, corner, mask=tl.broadcast_to(y_edge & x_edge, SHAPE))


@triton.jit
def _at_edge(position, size, TILE: tl.constexpr):
    """Whether another tile lies beside this row or column of a tile."""
    before = (position % TILE == 0) & (position > 0)
    after = (position % TILE == TILE - 1) & (position + 1 < size)
    return before | after


@triton.jit(do_not_specialize=["cells", "height", "width"])
def restore(
    sums_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    y_ptr,
    cells,
    height,
    width,
    x_pitch,
    y_pitch,
    SQUEEZED: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """BLOCK_M cells: y = x + a 3x3 convolution of the sums; COLUMNS is FEATURES' power of two.

    sums_ptr is [4, cells, SQUEEZED] as `squeeze` wrote it, weight_ptr [9, SQUEEZED, FEATURES].
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, COLUMNS)
    k = tl.arange(0, SQUEEZED)
    inside = m < cells
    real = n < FEATURES
    row = m // width % height
    column = m % width
    plane = cells.to(tl.int64) * SQUEEZED
    sums_rows = sums_ptr + m.to(tl.int64)[:, None] * SQUEEZED + k[None, :]

    sums = tl.full((BLOCK_M, COLUMNS), 0.0, tl.float32)
    for tap in range(9):
        y, x = row + tap // 3 - 1, column + tap % 3 - 1
        seen = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        beside, across = _at_edge(x, width, TILE), _at_edge(y, height, TILE)
        at = sums_rows + ((tap // 3 - 1) * width + tap % 3 - 1) * SQUEEZED
        # One order of additions wherever the cell lies, so that equal sums are equal numbers.
        squeezed = tl.full((BLOCK_M, SQUEEZED), 0.0, tl.float32)
        for part in range(4):
            there = seen & (beside | (part % 2 == 0)) & (across | (part < 2))
            squeezed += tl.load(at + part * plane, mask=there[:, None], other=0.0)
        weight_rows = weight_ptr + (tap * SQUEEZED + k) * FEATURES
        weight = tl.load(weight_rows[:, None] + n[None, :], mask=real[None, :], other=0.0)
        squeezed = rounded(squeezed, weight_ptr.dtype.element_ty)
        sums = multiply(squeezed, weight, sums, PRECISION)

    wanted = inside[:, None] & real[None, :]
    x_rows = x_ptr + m.to(tl.int64) * x_pitch
    sums += tl.load(bias_ptr + n, mask=real, other=0.0)[None, :]
    sums += tl.load(x_rows[:, None] + n[None, :], mask=wanted, other=0.0).to(tl.float32)
    y_rows = y_ptr + m.to(tl.int64) * y_pitch
    tl.store(y_rows[:, None] + n[None, :], rounded(sums, y_ptr.dtype.element_ty), mask=wanted)


def launch_squeeze(
    x: Tensor,
    expand1: Tensor,
    expand3: Tensor,
    expand_bias: Tensor,
    slope: Tensor,
    squeezing: Tensor,
    squeeze_bias: Tensor,
    sums: Tensor,
    precision: str = "ieee",
) -> Launch:
    """Expand, PReLU and squeeze.

    Args:
        x: [B, h, w, features or more].
        expand1: [features, expanded], expanded a power of two up to `LARGEST_EXPANDED`.
        expand3: [9, features, expanded].
        expand_bias: [2, expanded] float32.
        slope: [1] float32.
        squeezing: [9, 2, expanded, squeezed], squeezed a power of two up to `LARGEST_SQUEEZED`.
        squeeze_bias: [squeezed] float32.
        sums: [4, B, h, w, squeezed] float32; written where somebody reads it.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, height, width, _ = x.shape
    features, expanded = expand1.shape
    return Launch(
        squeeze,
        {
            "x_ptr": x,
            "expand1_ptr": expand1,
            "expand3_ptr": expand3,
            "expand_bias_ptr": expand_bias,
            "slope_ptr": slope,
            "squeeze_ptr": squeezing,
            "squeeze_bias_ptr": squeeze_bias,
            "sums_ptr": sums,
            "cells": batch * height * width,
            "height": height,
            "width": width,
            "x_pitch": x.stride(2),
        },
        {
            "FEATURES": features,
            "EXPANDED": expanded,
            "SQUEEZED": sums.shape[-1],
            "TILE": TILE,
            "PRECISION": precision,
        },
        # Four warps have 16 cells each and find their neighbours in x in their own registers.
        # The last one is for GPUs with little shared memory.
        [
            Config({"BLOCK_K": step_of(features), "STAGES": rows}, 4, stages)
            for rows, stages in ((2, 3), (2, 2), (2, 4), (1, 2))
        ],
        lambda _: batch * cdiv(height, TILE) * cdiv(width, TILE),
    )


def launch_restore(
    sums: Tensor, weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, precision: str = "ieee"
) -> Launch:
    """Add up the squeezed sums, restore, add the residual.

    Args:
        sums: [4, B, h, w, squeezed] float32, of `launch_squeeze`.
        weight: [9, squeezed, features].
        bias: [features] float32.
        x: [B, h, w, features or more], the block's input.
        y: [B, h, w, features or more]; written.
        precision: How float32 is multiplied; see `launch.PRECISIONS`.
    """
    batch, height, width, _ = x.shape
    cells, features = batch * height * width, weight.shape[2]
    return Launch(
        restore,
        {
            "sums_ptr": sums,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "x_ptr": x,
            "y_ptr": y,
            "cells": cells,
            "height": height,
            "width": width,
            "x_pitch": x.stride(2),
            "y_pitch": y.stride(2),
        },
        {
            "SQUEEZED": sums.shape[-1],
            "FEATURES": features,
            "COLUMNS": power_of_2(features),
            "TILE": TILE,
            "PRECISION": precision,
        },
        [Config({"BLOCK_M": 64}, 4, 2), Config({"BLOCK_M": 32}, 2, 2)],
        lambda blocks: cdiv(cells, blocks["BLOCK_M"]),
    )
