"""Each rewriting of `dssnet_fast.fold` against the layers it replaces, in float64."""

import pytest
import torch
from torch.nn import functional as F

from dssnet_fast import fold

# One pixel, one row, odd, unlike sides: borders are where these identities can go wrong.
SIZES = [(1, 1), (1, 5), (2, 2), (3, 7), (8, 5), (9, 12)]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_equal(actual, expected):
    assert actual.shape == expected.shape
    scale = expected.abs().max()
    assert (actual - expected).abs().max() <= 1e-12 * max(scale, 1)


def test_weight_norm_equals_torch():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(5, 7, 3).double())
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.7)
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert_equal(fold.weight_norm(g.detach(), v.detach()), layer.weight.detach())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_project_equals_two_convolutions(size, stride):
    x, first, first_bias = random(2, 5, *size), random(6, 5, 3, 3), random(6)
    weight, bias = random(4, 6, 1, 1), random(4, seed=1)
    expected = F.conv2d(F.conv2d(x, first, first_bias, stride, padding=1), weight, bias)
    folded = fold.project(first, first_bias, weight, bias)
    assert_equal(F.conv2d(x, *folded, stride, padding=1), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_composed_convolution_is_exact_with_its_border(size, stride):
    """Stride 2 is the stem with the first down-sampler, stride 1 the edge head's linear tail."""
    x, first, first_bias = random(2, 3, *size), random(6, 3, 3, 3), random(6)
    second, bias = random(4, 6, 3, 3), random(4, seed=1)
    expected = F.conv2d(F.conv2d(x, first, first_bias, padding=1), second, bias, stride, padding=1)
    composed = F.conv2d(x, *fold.compose(first, first_bias, second, bias), stride, padding=2)
    exact = fold.subtract_border_excess(
        composed, fold.outermost(x), first, first_bias, second, stride
    )
    assert_equal(exact, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "scale"), [(3, 4), (5, 2), (3, 2), (1, 4)])
def test_subpixel_equals_convolution_over_nearest(size, kernel, scale):
    x, weight, bias = random(2, 3, *size), random(4, 3, kernel, kernel), random(4)
    upsampled = F.interpolate(x, scale_factor=scale, mode="nearest")
    expected = F.conv2d(upsampled, weight, bias, padding=kernel // 2)
    low = F.conv2d(x, fold.subpixel(weight, scale), bias.repeat_interleave(scale**2), padding=1)
    assert_equal(F.pixel_shuffle(low, scale), expected)


@pytest.mark.parametrize("size", SIZES)
def test_linear_tail_is_one_subpixel_convolution(size):
    """The last two convolutions of the segmentation head, over a nearest-x2 map."""
    x = random(2, 5, *size)
    inner, inner_bias, outer, outer_bias = (
        random(6, 5, 3, 3),
        random(6),
        random(3, 6, 3, 3),
        random(3),
    )
    z = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = F.conv2d(F.conv2d(z, inner, inner_bias, padding=1), outer, outer_bias, padding=1)
    weight, bias = fold.compose(inner, inner_bias, outer, outer_bias)
    low = F.conv2d(x, fold.subpixel(weight, 2), bias.repeat_interleave(4), padding=1)
    composed = F.pixel_shuffle(low, 2)
    assert_equal(
        fold.subtract_border_excess(composed, fold.outermost(x, 2), inner, inner_bias, outer),
        expected,
    )


@pytest.mark.parametrize("size", SIZES)
def test_pointwise_layers_commute_with_nearest(size):
    x, weight, bias, slope = random(2, 5, *size), random(4, 5, 1, 1), random(4), random(1)
    expected = F.prelu(F.conv2d(F.interpolate(x, scale_factor=4), weight, bias), slope)
    assert_equal(F.interpolate(F.prelu(F.conv2d(x, weight, bias), slope), scale_factor=4), expected)


@pytest.mark.parametrize("size", SIZES)
def test_prelu_commutes_with_pixel_shuffle(size):
    """The learned FFM: its activation may run before the shuffle."""
    x, slope = random(2, 32, *size), random(1)
    expected = F.prelu(F.pixel_shuffle(x, 4), slope)
    assert_equal(F.pixel_shuffle(F.prelu(x, slope), 4), expected)


def cells(x, weight, bias):
    """The nine-product form of a 3x3 convolution over the nearest-x4 map of `x`, channels last."""
    outputs = weight.shape[0]
    products = F.conv2d(x, fold.cell_products(weight)).permute(0, 2, 3, 1)
    return fold.combine_products(products.unflatten(3, (3, 3, outputs))) + bias


@pytest.mark.parametrize("size", SIZES)
def test_nine_products_equal_convolution_over_nearest(size):
    x, weight, bias = random(2, 5, *size), random(4, 5, 3, 3), random(4)
    expected = F.conv2d(F.interpolate(x, scale_factor=4), weight, bias, padding=1)
    assert_equal(fold.expand_cells(cells(x, weight, bias)).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("size", SIZES)
def test_nine_products_with_differences_as_factors(size):
    """No factor is larger than the values are, and per axis a, b, c are sums of one or two."""
    x, weight = random(2, 5, *size), random(4, 5, 3, 3)
    factors, kernels = fold.cell_factors(x), fold.cell_differences(weight)
    assert factors.abs().max() <= x.abs().max()
    products = torch.einsum("pbihw,pio->phwbo", factors, kernels).unflatten(0, (3, 3))
    used = ((0, 1), (0,), (0, 2))
    values = torch.stack(
        [sum(products[i, j] for i in row for j in column) for row in used for column in used]
    )
    # [3, 3, h, w, B, O] -> [B, 3h, 3w, O]
    values = values.unflatten(0, (3, 3)).permute(4, 2, 0, 3, 1, 5).flatten(3, 4).flatten(1, 2)
    assert_equal(values, cells(x, weight, torch.zeros(4, dtype=x.dtype)))


@pytest.mark.parametrize("size", SIZES)
def test_direct_cell_values_equal_convolution_over_nearest(size):
    x, weight, bias, slope = random(2, 5, *size), random(4, 5, 3, 3), random(4), random(1)
    expected = F.conv2d(F.interpolate(x, scale_factor=4), weight, bias, padding=1)
    values = fold.cell_values(
        x, fold.cell_kernels(weight), bias, lambda y: F.leaky_relu(y, slope.item())
    )
    assert_equal(fold.lay_out_cells(values).permute(0, 3, 1, 2), F.prelu(expected, slope))


@pytest.mark.parametrize("size", SIZES)
def test_hundred_taps_equal_convolution_over_expanded_cells(size):
    values, weight, bias = random(2, 5, 3 * size[0], 3 * size[1]), random(4, 5, 3, 3), random(4)
    expanded = fold.expand_cells(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = F.conv2d(expanded, weight, bias, padding=1)
    assert_equal(fold.convolve_cells(values, weight, bias), expected)


@pytest.mark.parametrize("size", SIZES)
def test_whole_ffm_and_reduction(size):
    """Nearest FFM, its activation and the 84 -> 32 convolution, in cells throughout."""
    x = random(2, 5, *size)
    weight, bias, slope = random(6, 5, 3, 3), random(6), random(1)
    reduce, reduce_bias = random(4, 6, 3, 3), random(4, seed=1)
    smooth = F.prelu(F.conv2d(F.interpolate(x, scale_factor=4), weight, bias, padding=1), slope)
    expected = F.conv2d(smooth, reduce, reduce_bias, padding=1)
    values = F.prelu(cells(x, weight, bias).permute(0, 3, 1, 2), slope)
    assert_equal(fold.convolve_cells(values, reduce, reduce_bias), expected)


@pytest.mark.parametrize("size", [(2, 2), (3, 7), (9, 12)])
def test_edge_head_folds(size):
    """Its last three convolutions are linear: 84 -> 84 -> 1 is one 5x5 convolution."""
    x = random(2, 6, *size)
    first, first_bias, second, second_bias = (
        random(6, 6, 3, 3),
        random(6),
        random(1, 6, 3, 3),
        random(1),
    )
    last, last_bias = random(1, 1, 3, 3), random(1, seed=1)
    y = F.conv2d(F.conv2d(x, first, first_bias, padding=1), second, second_bias, padding=1)
    expected = F.conv2d(y, last, last_bias, padding=1)
    composed = F.conv2d(x, *fold.compose(first, first_bias, second, second_bias), padding=2)
    y = fold.subtract_border_excess(composed, fold.outermost(x), first, first_bias, second)
    assert_equal(F.conv2d(y, last, last_bias, padding=1), expected)
