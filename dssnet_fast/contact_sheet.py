"""Images with truth, answer and what differs, many on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.accuracy import Contender, ImageCounts, answer_objects, truth_objects
from dssnet_fast.outputs import draw_outlines
from dssnet_fast.python_ref.data import Labelling, read_pair
from dssnet_fast.python_ref.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

PANEL_PX = 256
_GAP_PX, _LINE_PX, _TEXT_PX = 8, 18, 13
# Told apart by every kind of colour vision: gray, orange, blue, yellow on black.
RIGHT, MISSED, EXTRA, MISTAKEN = (170, 170, 170), (230, 120, 0), (60, 140, 255), (250, 230, 60)
LEGEND = "differences: gray both, orange only the first, blue only the second, yellow other class"


@dataclass(frozen=True)
class Row:
    """A line of text above pictures, uint8 [h, w, 3] of equal sizes, each with its caption."""

    title: str
    pictures: tuple[tuple[str, np.ndarray], ...]


def draw_worst(
    contenders: Sequence[Contender],
    images: Sequence[ImageCounts],
    labelling: Labelling,
    tile: int = 2048,
    min_area: int = 15,
) -> np.ndarray:
    """A sheet of images: truth, the first network's answer, and where they differ.

    For each other network follows where its answer differs from the first network's; for the first
    network with its nuclei told apart in another way, these nuclei. The networks run again, so that
    nothing must be kept of images that are not drawn.

    Args:
        contenders: As for `accuracy.evaluate`.
        images: What `accuracy.worst` chose.
        labelling: As for `accuracy.evaluate`, as what follows.
        tile: See there.
        min_area: See there.

    Returns:
        uint8 [h, w, 3].

    Raises:
        InputError: There is no image, or one cannot be read any more.
    """
    if not images:
        raise InputError("no image has a labelled pixel; there is nothing to draw")
    rows = []
    for image in images:
        pixels, labels = read_pair(image.pair, contenders[0].net.config.in_channels, labelling)
        truth = truth_objects(labels, labelling)
        first, *others = answer_objects(contenders, pixels, tile, min_area)
        counts = image.counts[0]
        rows.append(
            Row(
                f"{image.pair.image.name}   {image.kind}   mean IoU "
                f"{counts.pixels.mean_iou:.3f}   AP 0.5 {counts.instances.ap():.3f}",
                (
                    ("image", draw_outlines(pixels, np.zeros_like(labels), truth.class_index)),
                    (
                        f"truth: {counts.instances.truths} nuclei",
                        draw_outlines(pixels, truth.instances, truth.class_index),
                    ),
                    (
                        f"{contenders[0].name}: {counts.instances.answers} nuclei",
                        draw_outlines(pixels, first.instances, first.class_index),
                    ),
                    ("truth, answer", draw_difference(truth.labels, first.labels)),
                    *(
                        (
                            f"{other.name}: {counted.instances.answers} nuclei",
                            draw_outlines(pixels, answer.instances, answer.class_index),
                        )
                        if other.net is contenders[0].net
                        else (
                            f"{contenders[0].name}, {other.name}",
                            draw_difference(first.labels, answer.labels),
                        )
                        for other, answer, counted in zip(
                            contenders[1:], others, image.counts[1:], strict=True
                        )
                    ),
                ),
            )
        )
    return draw_sheet(rows)


def draw_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where two class maps differ, uint8 [H, W, 3].

    Args:
        first: integer [H, W], 0 for background; negative where nobody knows, shown as background.
        second: The same.
    """
    made = np.zeros((*first.shape, 3), np.uint8)
    made[(first > 0) & (first == second)] = RIGHT
    made[(first > 0) & (second == 0)] = MISSED
    made[(first == 0) & (second > 0)] = EXTRA
    made[(first > 0) & (second > 0) & (first != second)] = MISTAKEN
    return made


def draw_sheet(rows: Sequence[Row]) -> np.ndarray:
    """Rows below each other under a legend, uint8 [h, w, 3].

    Pictures larger than `PANEL_PX` are reduced to fit, small ones are enlarged by a whole factor.

    Args:
        rows: One or more.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT_PX)
    fitted = [[_fitted(Image.fromarray(picture)) for _, picture in row.pictures] for row in rows]
    step = PANEL_PX + _GAP_PX
    # Room for the legend, however few columns there are.
    columns = max(map(len, fitted)) * step + _GAP_PX
    width = max(columns, 2 * _GAP_PX + int(font.getlength(LEGEND)))
    heights = [2 * _LINE_PX + max(p.height for p in pictures) + _GAP_PX for pictures in fitted]
    top = 2 * _GAP_PX + _LINE_PX
    sheet = Image.new("RGB", (width, top + sum(heights)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP_PX, _GAP_PX), LEGEND, fill=(0, 0, 0), font=font)
    for row, pictures, height in zip(rows, fitted, heights, strict=True):
        pen.text((_GAP_PX, top), row.title, fill=(0, 0, 0), font=font)
        for number, picture in enumerate(pictures):
            place = (_GAP_PX + number * step, top + _LINE_PX)
            pen.text(place, row.pictures[number][0], fill=(90, 90, 90), font=font)
            sheet.paste(picture, (place[0], place[1] + _LINE_PX))
        top += height
    return np.asarray(sheet)


def _fitted(picture: Image.Image) -> Image.Image:
    from PIL import Image

    longest = max(picture.size)
    if longest > PANEL_PX:
        size = tuple(max(round(side * PANEL_PX / longest), 1) for side in picture.size)
        return picture.resize(size, Image.Resampling.BOX)
    factor = PANEL_PX // longest
    return picture.resize(tuple(side * factor for side in picture.size), Image.Resampling.NEAREST)
