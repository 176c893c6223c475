"""The exact algebra behind the inference path, as pure tensor functions.

Every function here rewrites layers of the network into fewer or cheaper ones that compute the same
numbers, image borders included. `tests/test_fold.py` holds each against the layers it replaces in
float64. Convolutions are cross-correlations as in `torch.nn.functional.conv2d`; 3x3 ones pad one
zero. Weights are [outputs, inputs, rows, columns], maps [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

CELL = 4  # sub-pixels a side of one 1/8-resolution cell at 1/2 resolution
VALUES = 3  # distinct values a side of such a cell after a 3x3 convolution
PRODUCTS = VALUES * VALUES
# Which of a cell's three values a, b, c each of its sub-rows shows.
_SHOWN = (0, 1, 1, 2)


def weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Plain weights of a weight-normalised layer: g * v / |v|, the norm per output channel.

    Args:
        g: [O, 1, 1, 1] magnitudes.
        v: [O, I, k, k] directions.
    """
    return v * (g / v.flatten(1).norm(dim=1).view_as(g))


def project(
    first: Tensor, first_bias: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One convolution for a convolution followed by a 1x1 convolution.

    A 1x1 convolution pads nothing, so this is exact at borders and for any stride of the first.

    Args:
        first: [M, I, k, k] weights of the first, with bias [M].
        first_bias: [M].
        weight: [O, M, 1, 1] weights of the 1x1 convolution, with bias [O].
        bias: [O].

    Returns:
        Weights [O, I, k, k] and bias [O].
    """
    matrix = weight[:, :, 0, 0]
    return torch.einsum("om,mikl->oikl", matrix, first), matrix @ first_bias + bias


def compose(
    first: Tensor, first_bias: Tensor, second: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One 5x5 convolution for two 3x3 convolutions with nothing between them.

    Exact wherever the second sees no zero padding; `border_excess` gives the difference elsewhere.
    The second may have any stride; the 5x5 convolution then has the same stride.

    Args:
        first: [M, I, 3, 3], with bias [M].
        first_bias: [M].
        second: [O, M, 3, 3], with bias [O].
        bias: [O].

    Returns:
        Weights [O, I, 5, 5] (padding 2) and bias [O].
    """
    weight = F.conv2d(second, first.flip(2, 3).transpose(0, 1), padding=2)
    return weight, bias + second.sum((2, 3)) @ first_bias


def outermost(x: Tensor, scale: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top and bottom rows, left and right columns of a map up-sampled by nearest neighbour.

    Args:
        x: [B, C, H, W].
        scale: Of the up-sampling; 1 for the map itself.

    Returns:
        [B, C, scale * W] twice and [B, C, scale * H] twice.
    """
    lines = (x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1])
    if scale > 1:
        lines = tuple(line.repeat_interleave(scale, dim=2) for line in lines)
    return lines


def subtract_border_excess(
    composed: Tensor,
    border: tuple[Tensor, Tensor, Tensor, Tensor],
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    stride: int = 1,
) -> Tensor:
    """Make the output of a composed convolution exact on its outermost ring, in place.

    The second convolution pads the first one's output with zeros; the composed one sees what the
    first would have computed one pixel outside the image. That ring, run through the second, is
    the excess: it needs only the outermost rows and columns of the input.

    Args:
        composed: [B, O, H', W'], the composed convolution's output (see `compose`).
        border: `outermost` of its input [B, I, H, W].
        first: [M, I, 3, 3] weights of the first convolution.
        first_bias: [M].
        second: [O, M, 3, 3] weights of the second.
        stride: Of the second.

    Returns:
        `composed`, changed in place.
    """

    def excess(line: Tensor, first_line: Tensor, second_line: Tensor, corners: bool) -> Tensor:
        # `line` is an outermost row or column; the ring beside it has corners or leaves them out.
        ring = F.conv1d(line, first_line, first_bias, padding=2 if corners else 1)
        return F.conv1d(ring, second_line, padding=0 if corners else 1, stride=stride)

    # Corners belong to the rows above and below; they must not be counted twice.
    top, bottom, left, right = border
    width, height = top.shape[2], left.shape[2]
    composed[:, :, 0] -= excess(top, first[:, :, 2], second[:, :, 0], corners=True)
    composed[:, :, :, 0] -= excess(left, first[..., 2], second[..., 0], corners=False)
    # With a stride the last output may end before the padding at the far side.
    if (height - 1) % stride == 0:
        composed[:, :, -1] -= excess(bottom, first[:, :, 0], second[:, :, 2], corners=True)
    if (width - 1) % stride == 0:
        composed[..., -1] -= excess(right, first[..., 0], second[..., 2], corners=False)
    return composed


def subpixel(weight: Tensor, scale: int) -> Tensor:
    """The sub-pixel form of a convolution over a nearest-neighbour up-sampled map.

    `conv2d(nearest(x, scale), weight, padding=k // 2)` equals
    `pixel_shuffle(conv2d(x, subpixel(weight, scale), padding=1), scale)`, borders included. A bias
    is repeated `scale ** 2` times per output.

    Args:
        weight: [O, I, k, k], k odd and at most 2 * scale + 1.
        scale: Of the up-sampling.

    Returns:
        [O * scale**2, I, 3, 3], in the channel order of `pixel_shuffle`.
    """
    outputs, inputs, size, _ = weight.shape
    reach = size // 2
    folded = weight.new_zeros(outputs, scale, scale, inputs, 3, 3)
    # Sub-row `i` of a cell reads, at tap `k`, a sub-row that lies in cell -1, 0 or 1.
    taps = [[(i + k - reach) // scale + 1 for k in range(size)] for i in range(scale)]
    for i in range(scale):
        for j in range(scale):
            for k in range(size):
                for m in range(size):
                    folded[:, i, j, :, taps[i][k], taps[j][m]] += weight[:, :, k, m]
    return folded.reshape(outputs * scale * scale, inputs, 3, 3)


def cell_products(weight: Tensor) -> Tensor:
    """The nine 1x1 convolutions from which a 3x3 convolution over a nearest-x4 map is made.

    In each axis a cell's four sub-rows take three values a, b, b, c. They come from three sums of
    the kernel's rows: m = w[-1], s = w[-1] + w[0] + w[+1], p = w[+1] (see `combine_products`).

    Args:
        weight: [O, I, 3, 3].

    Returns:
        [9 * O, I, 1, 1]: row sum (m, s, p) slowest, then column sum, then output.
    """
    sums = weight.new_tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]])
    products = torch.einsum("rk,cl,oikl->rcoi", sums, sums, weight)
    return products.reshape(-1, weight.shape[1], 1, 1)


def cell_differences(weight: Tensor) -> Tensor:
    """The nine products of `cell_products` with differences of cells as factors.

    Per axis a = s of the cell + m of the difference to the cell before, c = s + p of that to the
    cell after. Differences are halved, and the weights of each doubled, along each axis: no
    difference is then larger than the values are.

    Args:
        weight: [O, I, 3, 3].

    Returns:
        [9, I, O]: row factor (cell, before, after) slowest, then column factor.
    """
    sums = weight.new_tensor([[1, 1, 1], [2, 0, 0], [0, 0, 2]])
    return torch.einsum("rk,cl,oikl->rcio", sums, sums, weight).flatten(0, 1)


def cell_factors(x: Tensor) -> Tensor:
    """What the nine products of `cell_differences` multiply.

    Args:
        x: [B, I, h, w].

    Returns:
        [9, B, I, h, w]: row factor (cell, half the difference to the cell before, to that after)
        slowest, then column factor; zero counts as what lies outside the image.
    """

    def factors(values: Tensor, dim: int) -> list[Tensor]:
        length = values.shape[dim]
        nothing = torch.zeros_like(values.narrow(dim, 0, 1))
        before = torch.cat([nothing, values.narrow(dim, 0, length - 1)], dim)
        after = torch.cat([values.narrow(dim, 1, length - 1), nothing], dim)
        return [values, (before - values) / 2, (after - values) / 2]

    return torch.stack([both for rows in factors(x, 2) for both in factors(rows, 3)])


def cell_taps(weight: Tensor) -> Tensor:
    """Sums of taps that meet the same of a cell's values, for `convolve_cells` in a kernel.

    Args:
        weight: [O, I, 3, 3].

    Returns:
        [5, 5, I, O], along rows and columns: taps -, 0, +, 0 and +, - and 0.
    """
    sums = weight.new_tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 1, 0]])
    return torch.einsum("rk,cl,oikl->rcio", sums, sums, weight)


def combine_products(products: Tensor) -> Tensor:
    """Each cell's 3x3 distinct values from its products and those of its neighbours.

    Per axis: a = s - m + m of the cell before, b = s, c = s - p + p of the cell after; outside the
    image every product is zero.

    Args:
        products: [B, h, w, 3, 3, O], channels last: the convolution `cell_products` applied to the
            low-resolution map, split into row sums, column sums and outputs.

    Returns:
        [B, 3h, 3w, O], without bias.
    """
    batch, h, w, _, _, outputs = products.shape
    rows = _combine_axis(*products.unbind(3)).reshape(batch * VALUES * h, w, 3, outputs)
    return _combine_axis(*rows.unbind(2)).reshape(batch, VALUES * h, VALUES * w, outputs)


def _combine_axis(m: Tensor, s: Tensor, p: Tensor) -> Tensor:
    """a, b, c stacked in dimension 2, from sums whose neighbouring cells differ in dimension 1."""
    nothing = torch.zeros_like(m[:, :1])
    before = torch.cat([nothing, m[:, :-1]], dim=1)
    after = torch.cat([p[:, 1:], nothing], dim=1)
    return torch.stack([s - m + before, s, s - p + after], dim=2)


def cell_kernels(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The convolutions that give a cell's 3x3 distinct values directly, without differences.

    Per axis a = m of the cell before + (s - m), b = s, c = (s - p) + p of the cell after: 25
    products a cell instead of 9, but nothing to subtract, so nothing is lost in low precision, and
    no pass over intermediate products. See `cell_values`.

    Args:
        weight: [O, I, 3, 3].

    Returns:
        Weights for the four corner values (aa, ac, ca, cc) [4 * O, I, 2, 2], for ab and cb
        [2 * O, I, 2, 1], for ba and bc [2 * O, I, 1, 2] and for bb [O, I, 1, 1].
    """
    kernels = [_axis_kernels(rows, dim=3) for rows in _axis_kernels(weight, dim=2)]
    (aa, ab, ac), (ba, bb, bc), (ca, cb, cc) = kernels
    return torch.cat([aa, ac, ca, cc]), torch.cat([ab, cb]), torch.cat([ba, bc]), bb


def _axis_kernels(weight: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    before, here, after = weight.unbind(dim)
    a = torch.stack([before, here + after], dim)
    c = torch.stack([before + here, after], dim)
    return a, weight.sum(dim, keepdim=True), c


def cell_values(
    x: Tensor,
    kernels: tuple[Tensor, Tensor, Tensor, Tensor],
    bias: Tensor,
    activation: Callable[[Tensor], Tensor],
) -> list[list[Tensor]]:
    """Nearest x4, a 3x3 convolution and an activation, on the values that differ.

    Args:
        x: [B, I, h, w].
        kernels: `cell_kernels` of the convolution.
        bias: [O].
        activation: Of single values; may work in place.

    Returns:
        Values [row a, b, c][column a, b, c], each [B, h, w, O]; see `lay_out_cells`.
    """
    outputs = bias.shape[0]

    def parts(kernel: Tensor) -> tuple[Tensor, ...]:
        count = kernel.shape[0] // outputs
        padding = (kernel.shape[2] - 1, kernel.shape[3] - 1)
        y = activation(F.conv2d(x, kernel, bias.repeat(count), padding=padding))
        return y.permute(0, 2, 3, 1).unflatten(3, (count, outputs)).unbind(3)

    (aa, ac, ca, cc), (ab, cb), (ba, bc), (bb,) = map(parts, kernels)
    # With two taps and padding 1, output i reads cells i - 1 and i: a of cell i, c of cell i - 1.
    return [
        [aa[:, :-1, :-1], ab[:, :-1], ac[:, :-1, 1:]],
        [ba[:, :, :-1], bb, bc[:, :, 1:]],
        [ca[:, 1:, :-1], cb[:, 1:], cc[:, 1:, 1:]],
    ]


def lay_out_cells(values: list[list[Tensor]]) -> Tensor:
    """The map that cell values stand for: [row][column] of [B, h, w, C] -> [B, 4h, 4w, C]."""
    rows = [torch.stack([row[i] for i in _SHOWN], dim=3) for row in values]
    return torch.stack([rows[i] for i in _SHOWN], dim=2).flatten(3, 4).flatten(1, 2)


def expand_cells(values: Tensor) -> Tensor:
    """The map that a cell's 3x3 values stand for: each shown as a, b, b, c in both axes.

    Args:
        values: [B, 3h, 3w, C], channels last.

    Returns:
        [B, 4h, 4w, C].
    """
    batch, height, width, channels = values.shape
    h, w = height // VALUES, width // VALUES
    shown = values.new_tensor(_SHOWN, dtype=torch.long)
    cells = values.view(batch, h, VALUES, w, VALUES, channels)
    cells = cells.index_select(2, shown).index_select(4, shown)
    return cells.reshape(batch, CELL * h, CELL * w, channels)


def convolve_cells(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution over the map of `expand_cells`, without making that map.

    Per axis the four sub-rows need 3, 2, 2 and 3 of the values (c of the cell before, a, b, c, a of
    the cell after), where taps that meet the same value are added up first: 100 taps a cell
    instead of 144.

    Args:
        values: [B, C, 3h, 3w].
        weight: [O, C, 3, 3].
        bias: [O].

    Returns:
        [B, O, 4h, 4w].
    """
    batch, _, height, width = values.shape
    h, w = height // VALUES, width // VALUES
    padded = F.pad(values, (1, 1, 1, 1))
    output = values.new_empty(batch, weight.shape[0], h, CELL, w, CELL)
    for i, (row, rows) in enumerate(_CELL_TAPS):
        for j, (column, columns) in enumerate(_CELL_TAPS):
            taps = torch.einsum(
                "rk,cl,oikl->oirc", weight.new_tensor(rows), weight.new_tensor(columns), weight
            )
            window = padded[:, :, row:, column:]
            part = F.conv2d(window, taps, bias, stride=VALUES)
            output[:, :, :, i, :, j] = part[:, :, :h, :w]
    return output.reshape(batch, -1, CELL * h, CELL * w)


# For each sub-row: the first value it reads (0: c of the cell before, 1: a, 2: b, 3: c), and for
# each value read which taps of the kernel (-1, 0, +1) meet it.
_CELL_TAPS = (
    (0, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))),
    (1, ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0))),
    (2, ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))),
    (2, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))),
)
