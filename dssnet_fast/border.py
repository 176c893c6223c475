"""Composed convolutions that are exact at the image's border, as terms to add up.

Where one convolution stands for two, it sees the first one's extension where the second one sees
zero padding (`dssnet_fast.fold.compose`). The difference is again a convolution of the same input,
of few taps: a kernel adds it for pixels at the border. Each term is a pair of weights and bias, its
sign included; a pixel's value is the sum of the terms that apply to it.
"""

from __future__ import annotations

from torch import Tensor

from dssnet_fast import fold

Term = tuple[Tensor, Tensor]

# Row and column of an image's sides and corners: 0 the first, 1 the last, None all.
SIDES = [(0, None), (1, None), (None, 0), (None, 1)]
CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def stem_terms(stem: Tensor, stem_bias: Tensor, strided: Tensor, bias: Tensor) -> list[Term]:
    """The stem and a 3x3 convolution of stride 2 after it, as 5x5 convolutions of stride 2.

    Sides of the image are even, so the bottom and the right border are never seen.

    Args:
        stem: [M, I, 3, 3], with bias [M].
        stem_bias: [M].
        strided: [O, M, 3, 3], with bias [O].
        bias: [O].

    Returns:
        Weights [O, I, 5, 5] and bias [O] for all pixels, the top row (only row 2 is not zero), the
        left column (only column 2), and the corner between them (only their crossing).
    """
    return [
        fold.compose(stem, stem_bias, strided, bias),
        *(_excess(stem, stem_bias, strided, *side) for side in ((0, None), (None, 0), (0, 0))),
    ]


def tail_terms(inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor) -> list[Term]:
    """Two 3x3 convolutions over a nearest-x2 map, as sub-pixel convolutions below it.

    Args:
        inner: [M, I, 3, 3], with bias [M].
        inner_bias: [M].
        outer: [O, M, 3, 3], with bias [O].
        outer_bias: [O].

    Returns:
        For all pixels weights [2, 2, O, I, 3, 3] (sub-row, sub-column, output) and bias [2, 2, O];
        then for pixels at the top, bottom, left and right, with 1x3 or 3x1 taps along that side;
        then for those in the corners top left, top right, bottom left and bottom right, 1x1.
    """

    def sub_pixels(kernel: Tensor, bias: Tensor) -> Term:
        # [2, 2, outputs, ...]: sub-row, sub-column, output.
        split = fold.subpixel(kernel, 2).unflatten(0, (-1, 2, 2)).movedim(0, 2)
        return split, bias.expand(2, 2, -1)

    terms = [sub_pixels(*fold.compose(inner, inner_bias, outer, outer_bias))]
    for row, column in SIDES + CORNERS:
        split, bias = sub_pixels(*_excess(inner, inner_bias, outer, row, column))
        # Of the sub-pixels those at the border.
        there = split.new_zeros(2, 2)
        there[_place(row), _place(column)] = 1
        # A side depends on three pixels along it, a corner on one.
        taps = split[..., _centre(row), _centre(column)]
        terms.append((taps * there.view(2, 2, 1, 1, 1, 1), bias * there.view(2, 2, 1)))
    return terms


def composed_terms(
    inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor
) -> list[Term]:
    """Two 3x3 convolutions as one 5x5 convolution.

    Args:
        inner: [M, I, 3, 3], with bias [M].
        inner_bias: [M].
        outer: [O, M, 3, 3], with bias [O].
        outer_bias: [O].

    Returns:
        Weights [O, I, 5, 5] and bias [O] for all pixels; then for pixels at the top, bottom, left
        and right, with 1x5 or 5x1 taps along that side; then for those in the corners top left, top
        right, bottom left and bottom right, 1x1.
    """
    terms = [fold.compose(inner, inner_bias, outer, outer_bias)]
    for row, column in SIDES + CORNERS:
        weight, bias = _excess(inner, inner_bias, outer, row, column)
        terms.append((weight[..., _middle(row), _middle(column)], bias))
    return terms


def _excess(
    first: Tensor, first_bias: Tensor, second: Tensor, row: int | None, column: int | None
) -> Term:
    """What `fold.compose` of two 3x3 convolutions counts too much at a side, to be added up.

    Row or column -1 of the first convolution, seen by row or column 0 of the second one's kernel,
    comes from its own last row or column over the outermost pixels; and so on around the image. The
    two sides that meet in a corner both count it, so a corner's term gives it back.

    Args:
        first: [M, I, 3, 3].
        first_bias: [M].
        second: [O, M, 3, 3].
        row: One of `SIDES` or `CORNERS`.
        column: Likewise.

    Returns:
        Weights [O, I, 5, 5] and bias [O], their sign included.
    """
    # 0 and 1, the first and the last row or column, are seen at taps 0 and 2.
    row_tap, column_tap = _tap(row), _tap(column)
    weight, bias = fold.compose(
        only(first, _opposite(row_tap), _opposite(column_tap)),
        first_bias,
        only(second, row_tap, column_tap),
        first_bias.new_zeros(len(second)),
    )
    sign = -1 if None in (row, column) else 1
    return sign * weight, sign * bias


def only(weight: Tensor, row: int | None = None, column: int | None = None) -> Tensor:
    """The kernel with all taps zero but those of one row, one column or both."""
    kept = weight.new_zeros(weight.shape)
    rows = slice(None) if row is None else row
    columns = slice(None) if column is None else column
    kept[:, :, rows, columns] = weight[:, :, rows, columns]
    return kept


def _opposite(tap: int | None) -> int | None:
    return None if tap is None else 2 - tap


def _tap(side: int | None) -> int | None:
    return None if side is None else 2 * side


def _place(side: int | None) -> slice | int:
    return slice(None) if side is None else side


def _centre(side: int | None) -> slice:
    return slice(None) if side is None else slice(1, 2)


def _middle(side: int | None) -> slice:
    return slice(None) if side is None else slice(2, 3)
