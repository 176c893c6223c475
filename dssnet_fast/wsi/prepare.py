"""From a slide's file to its tiles: resolution, region, empty glass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dssnet_fast.jobs import Job
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides.cells import grid
from dssnet_fast.slides.glass import Overview, overview
from dssnet_fast.slides.region import Region, make_region
from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import Slide, open_slide
from dssnet_fast.tiling import Box
from dssnet_fast.wsi import layout
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.options import Options
from dssnet_fast.wsi.results import Frame
from dssnet_fast.wsi.work import SlideWork

# Contexts are multiples of this. Maps have cells of 8 px, and the kernels of backend `cpu` compute
# rows of them in groups of four in fp32; with equal groups only last digits are not the slide's.
_GRID_PX = 32


@dataclass(frozen=True)
class Prepared:
    """A slide that can be computed.

    Attributes:
        job: The slide.
        work: What its tiles need.
        cores: Its tiles, px of the analysed image.
        frame: Where the analysed image lies.
        region: What was asked for.
        overview: The slide from afar.
        about: What summary and provenance say of the slide, as JSON knows it.
    """

    job: Job
    work: SlideWork
    cores: Sequence[Box]
    frame: Frame
    region: Region
    overview: Overview
    about: dict[str, object]


def prepare(job: Job, net: Network, options: Options) -> Prepared:
    """Open a slide and decide what is computed of it.

    Raises:
        InputError: It is no slide, nobody knows how large its pixels are, or the region does not
            fit.
    """
    slide = open_slide(job.path)
    try:
        return _prepare(job, slide, net, options)
    finally:
        slide.close()


def _prepare(job: Job, slide: Slide, net: Network, options: Options) -> Prepared:
    model_mpp = options.model_mpp or net.mpp
    if model_mpp is None:
        raise InputError(
            "the weight file does not say how many micrometres a px of its images has; give "
            "--model-mpp, or store it with: python -m dssnet_fast.convert FILE --mpp 0.5"
        )
    slide_mpp, source = _resolution(job, slide, options)
    image = Resampled(slide, model_mpp, slide_mpp)
    whole = Box(0, 0, image.height, image.width)
    bounds = slide.bounds if options.origin == "bounds" else None
    shown_from = (slide.bounds.left, slide.bounds.top) if slide.bounds else (0, 0)
    frame = Frame(
        width=image.width,
        height=image.height,
        mpp=image.mpp,
        scale=image.scale,
        origin=(bounds.left, bounds.top) if bounds else (0, 0),
    )
    finest = slide.levels[0]
    region = make_region(options.region, origin=shown_from)
    region.check(job.path, finest.width, finest.height)
    glance = overview(image, layout.CELL_PX)
    rows, columns = grid(image.width, image.height, layout.CELL_PX)
    wanted = region.cells(image.scale, rows, columns, layout.CELL_PX)
    in_region = int(wanted.sum())
    if options.skip:
        wanted = wanted & glance.occupied
    separation = options.separation(net)
    seen = net.edge_context_px if separation.needs_edges else net.context_px
    context = seen if options.context is None else options.context
    context = -(-context // _GRID_PX) * _GRID_PX
    tile = options.tile or layout.tile_for(net.device.type)
    work = SlideWork(
        path=job.path,
        mpp=model_mpp,
        slide_mpp=slide_mpp,
        image=whole,
        context=context,
        glass=glance.glass,
        separation=separation,
        min_area=max(math.ceil(options.min_area / image.mpp**2), 1),
        wanted=wanted,
        keep_going=options.keep_going,
    )
    return Prepared(
        job=job,
        work=work,
        cores=layout.cut(wanted, image.height, image.width, tile, context),
        frame=frame,
        region=region,
        overview=glance,
        about={
            "reader": slide.format,
            "slide_size": [finest.width, finest.height],
            "slide_mpp": slide_mpp,
            "mpp_source": source,
            "fingerprint": slide.fingerprint,
            "level": image.level,
            "context_px": context,
            "exact": context >= seen,
            "all_cells_because": glance.all_because,
            "cells": {
                "px": layout.CELL_PX,
                "in_region": in_region,
                "analysed": int(wanted.sum()),
                "sha256": hashlib.sha256(np.packbits(wanted).tobytes()).hexdigest(),
            },
        },
    )


def _resolution(job: Job, slide: Slide, options: Options) -> tuple[float, str]:
    if options.mpp is not None:
        return options.mpp, "--mpp"
    if slide.mpp is not None:
        return slide.mpp, slide.mpp_source
    if options.assume_mpp is not None:
        return options.assume_mpp, "--assume-mpp"
    raise InputError(
        f"{job.path}: does not say how many micrometres a pixel has; give --assume-mpp M for "
        "slides that do not say, or --mpp M for all (0.25 is usual at 40x, 0.5 at 20x)"
    )
