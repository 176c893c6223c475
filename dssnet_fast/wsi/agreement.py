"""How much less context than the network sees changes of the labels."""

from __future__ import annotations

import numpy as np

from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import UnreadableRegion, open_slide
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.pipeline import with_channels
from dssnet_fast.wsi.work import SlideWork

_SAMPLES = 4  # tiles that are computed both ways


def agreement(work: SlideWork, cores: list, net: Network) -> float | None:
    """Share of labels that are those of the exact computation, in tiles spread over the slide.

    Args:
        work: A slide, with less context than is exact.
        cores: Its tiles.
        net: The network.

    Returns:
        0 to 1; None where there are no tiles, or none of those can be read.
    """
    equal = pixels = 0
    slide = open_slide(work.path)
    try:
        image = Resampled(slide, work.mpp, work.slide_mpp)
        step = max(len(cores) // _SAMPLES, 1)
        for core in cores[step // 2 :: step][:_SAMPLES]:
            found = []
            for context in (work.context, net.context_px):
                box = core.around(context, work.image)
                try:
                    seen = with_channels(image.read(box), net.config.in_channels)
                except UnreadableRegion:
                    break
                found.append(net.decide(seen, core.seen_from(box))[0])
            else:
                equal += int(np.count_nonzero(found[0] == found[1]))
                pixels += core.area
    finally:
        slide.close()
    return equal / pixels if pixels else None
