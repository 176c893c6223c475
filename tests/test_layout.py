"""Which rectangles of a slide go through the network."""

import numpy as np
import pytest

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.tiling import Box
from dssnet_fast.wsi.layout import CELL_PX, cut

CONTEXT = 264


def covered(boxes, height, width):
    count = np.zeros((height, width), int)
    for box in boxes:
        count[box.within(Box(0, 0, height, width))] += 1
    return count


def wanted_px(wanted, height, width):
    return wanted.repeat(CELL_PX, 0).repeat(CELL_PX, 1)[:height, :width]


def cost(boxes):
    return sum((box.height + 2 * CONTEXT) * (box.width + 2 * CONTEXT) for box in boxes)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.7, 1])
def test_rectangles_cover_what_is_wanted_once_and_begin_on_the_grid(share):
    random = np.random.default_rng(int(share * 100))
    height, width = 5300, 7001
    wanted = random.random((-(-height // CELL_PX), -(-width // CELL_PX))) < share
    boxes = cut(wanted, height, width, (1536, 2048), CONTEXT)
    count = covered(boxes, height, width)
    assert count.max() == 1
    assert (count >= wanted_px(wanted, height, width)).all()
    for box in boxes:
        assert box.top % CELL_PX == box.left % CELL_PX == 0
        assert box.bottom % CELL_PX == 0 or box.bottom == height
        assert box.right % CELL_PX == 0 or box.right == width
        assert box.height <= 1536
        assert box.width <= 2048
    if share == 1:
        assert count.min() == 1


def test_what_lies_far_apart_is_cut_apart_and_what_lies_close_is_not():
    wanted = np.zeros((16, 16), bool)
    wanted[0:3, 0:3] = wanted[12:15, 12:15] = True
    boxes = cut(wanted, 4096, 4096, (4096, 4096), CONTEXT)
    assert sorted((box.top, box.left, box.bottom, box.right) for box in boxes) == [
        (0, 0, 768, 768),
        (3072, 3072, 3840, 3840),
    ]
    wanted[:] = False
    wanted[0:3, 0:3] = wanted[1:4, 3:6] = True
    assert len(cut(wanted, 4096, 4096, (4096, 4096), CONTEXT)) == 1


def test_cutting_is_never_dearer_than_whole_blocks():
    random = np.random.default_rng(0)
    for share in (0.01, 0.05, 0.3):
        wanted = random.random((16, 16)) < share
        boxes = cut(wanted, 4096, 4096, (4096, 4096), CONTEXT)
        assert cost(boxes) <= cost([Box(0, 0, 4096, 4096)])


def test_nothing_wanted_is_no_rectangle_and_odd_tiles_are_refused():
    assert cut(np.zeros((2, 3), bool), 400, 700, (512, 512), CONTEXT) == []
    with pytest.raises(InputError, match="multiples of 256"):
        cut(np.ones((2, 3), bool), 400, 700, (512, 500), CONTEXT)
