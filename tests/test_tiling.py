"""Tile geometry by itself, and tiled results against those of whole images."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.tiled import predict_tiled
from dssnet_fast.tiling import Box, plan

CELL = 8


def check_plan(height, width, tile, context):
    tiles = plan(height, width, tile, context)
    times = np.zeros((height, width), np.uint8)
    for part in tiles:
        core, read = part.core, part.read
        times[core.top : core.bottom, core.left : core.right] += 1
        for near, far, read_near, read_far, end in (
            (core.top, core.bottom, read.top, read.bottom, height),
            (core.left, core.right, read.left, read.right, width),
        ):
            assert 0 <= read_near <= near < far <= read_far <= end
            assert far - near <= tile
            assert near % CELL == 0
            assert read_near % CELL == 0
            assert far % CELL == 0 or far == end
            assert read_far % CELL == 0 or read_far == end
            # All the context that the image has, and no more than rounding asks for.
            assert read_near == 0 or context <= near - read_near < context + CELL
            assert read_far == end or context <= read_far - far < context + CELL
    assert (times == 1).all()
    return tiles


def test_plans_of_hundreds_of_sizes():
    random = np.random.default_rng(1)
    for _ in range(600):
        height, width = random.integers(1, 400, 2).tolist()
        tile = 8 * int(random.integers(1, 30))
        check_plan(height, width, tile, int(random.integers(0, 80)))


@pytest.mark.parametrize("side", [1, 7, 8, 9, 63, 64, 65, 127, 128, 129])
def test_plans_around_the_tile(side):
    for other in (1, 64, 200):
        tiles = check_plan(side, other, 64, 24)
        assert len(tiles) == -(-side // 64) * -(-other // 64)


def test_a_small_image_is_one_piece():
    (only,) = plan(100, 64, 104, 264)
    assert only.core == only.read == Box(0, 0, 100, 64)


def test_tiles_are_about_equal():
    sides = sorted({part.core.height for part in plan(2100, 8, 2048, 264)})
    assert sides == [1044, 1056]


def test_within_gives_the_place_in_an_array():
    array = np.arange(200).reshape(10, 20)
    outer, inner = Box(2, 3, 9, 15), Box(4, 5, 6, 11)
    cut = array[2:9, 3:15]
    np.testing.assert_array_equal(cut[inner.within(outer)], array[4:6, 5:11])
    assert (inner.height, inner.width) == (2, 6)


def test_boxes_grow_round_and_move():
    outer, box = Box(2, 3, 40, 50), Box(9, 17, 24, 31)
    assert box.around(5, outer) == Box(4, 12, 29, 36)
    assert box.around(15, outer) == Box(2, 3, 39, 46)
    assert box.around(30, outer) == outer
    assert box.rounded_out(8) == Box(8, 16, 24, 32)
    assert Box(8, 16, 24, 32).rounded_out(8) == Box(8, 16, 24, 32)
    assert box.moved(1, -2) == Box(10, 15, 25, 29)
    assert box.seen_from(outer) == Box(7, 14, 22, 28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height must be a whole number of at least 1, got 0"),
        ({"width": -3}, "width must be"),
        ({"tile": 0}, "tile must be"),
        ({"tile": 20}, "tile must be a multiple of 8, got 20"),
        ({"context": -1}, "context must be a whole number of at least 0"),
        ({"width": 2.0}, "width must be a whole number"),
        ({"height": True}, "height must be a whole number"),
        ({"multiple": 0}, "multiple must be"),
    ],
)
def test_plan_refuses_nonsense(change, message):
    with pytest.raises(InputError, match=message):
        plan(**{"height": 10, "width": 10, "tile": 16, "context": 8, **change})


class CellNet:
    """Like DSSNet in what matters for tiles: pads to cells with 128, computes on cells, and looks
    `context_px` far, for edges `edge_context_px`, and no farther.
    """

    def __init__(self, radius_cells=2, classes=3):
        self.radius_cells = radius_cells
        self.context_px = CELL * (radius_cells + 1)
        self.edge_context_px = self.context_px + 2 * CELL
        self.classes = classes
        self.largest = 0

    def decide(self, image, core=None, edges=False):
        height, width = image.shape[:2]
        at = (core or Box(0, 0, height, width)).within(Box(0, 0, height, width))
        logits = self.logits(image)[at].astype(np.float64)
        softmax = np.exp(logits - logits.max(axis=2, keepdims=True))
        softmax /= softmax.sum(axis=2, keepdims=True)
        decided = logits.argmax(axis=2).astype(np.uint8), softmax.max(axis=2).astype(np.float32)
        if not edges:
            return decided
        return (*decided, self.logits(image, self.radius_cells + 2)[at][:, :, 0])

    def logits(self, image, radius_cells=None):
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        height, width = image.shape[:2]
        self.largest = max(self.largest, height * width)
        padding = ((0, -height % CELL), (0, -width % CELL), (0, 0))
        x = np.pad(image.astype(np.float64) - 128, padding, constant_values=0).sum(axis=2)
        cells = x.reshape(x.shape[0] // CELL, CELL, x.shape[1] // CELL, CELL).mean(axis=(1, 3))
        # Whole numbers, so that sums do not depend on where the tile lies.
        size = 2 * (radius_cells or self.radius_cells) + 1
        cells = np.rint(uniform_filter(cells, size, mode="constant") * 64)
        full = np.kron(cells, np.ones((CELL, CELL)))[:height, :width]
        x = x[:height, :width]
        return np.stack([full, x, full - x], axis=2)[:, :, : self.classes].astype(np.float32) / 64


def test_tiled_equals_whole():
    random = np.random.default_rng(5)
    for _ in range(60):
        height, width = random.integers(1, 150, 2).tolist()
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        net = CellNet()
        tile = 8 * int(random.integers(1, 9))
        for edges in (False, True):
            found = predict_tiled(net, image, tile, edges)
            assert [answer.dtype for answer in found] == [np.uint8, np.float32, np.float32][
                : 2 + edges
            ]
            for answer, whole in zip(found, net.decide(image, edges=edges), strict=True):
                np.testing.assert_array_equal(answer, whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiled_equals_whole_for_the_network_itself(channels):
    torch = pytest.importorskip("torch")
    from dssnet_fast import DSSNetConfig, FastDSSNet
    from dssnet_fast.python_ref.network import DSSNet

    torch.manual_seed(0)
    config = DSSNetConfig(in_channels=channels, classes=3, width=9, features=8, blocks=1)
    net = FastDSSNet.from_reference(DSSNet(config), device="cpu", precision="fp32")
    random = np.random.default_rng(9)
    noise = random.normal(size=(157, 203, channels))
    image = (np.clip(uniform_filter(noise, (5, 5, 1)) * 200 + 128, 0, 255)).astype(np.uint8)
    labels, probability = predict_tiled(net, image, tile=40)
    np.testing.assert_allclose(
        probability, net.predict(image, "probabilities").max(axis=2), rtol=2e-5
    )
    # Where two classes are equal to the last digit, either may win.
    sure = np.ptp(np.sort(net.predict(image, "logits"), axis=2)[:, :, 1:], axis=2) > 1e-5
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(labels[sure], net.predict(image)[sure])
    np.testing.assert_array_equal(predict_tiled(net, image)[0], net.predict(image))


def test_the_comparison_notices_missing_context():
    image = np.random.default_rng(6).integers(0, 256, (130, 140, 3), dtype=np.uint8)
    net = CellNet()
    whole = predict_tiled(net, image, 256)[1]
    np.testing.assert_array_equal(predict_tiled(net, image, 32)[1], whole)
    edges = predict_tiled(net, image, 256, edges=True)[2]
    np.testing.assert_array_equal(predict_tiled(net, image, 32, edges=True)[2], edges)
    net.edge_context_px = net.context_px
    assert (predict_tiled(net, image, 32, edges=True)[2] != edges).any()
    net.context_px = CELL
    assert (predict_tiled(net, image, 32)[1] != whole).any()


def test_no_piece_is_larger_than_a_tile_with_its_context():
    net = CellNet(radius_cells=1)
    predict_tiled(net, np.zeros((700, 500, 3), np.uint8), tile=64)
    assert net.largest <= (64 + 2 * net.context_px) ** 2
