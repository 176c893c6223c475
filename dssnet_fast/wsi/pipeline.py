"""Tiles through reading, network and measuring, at once and within bounds, in one process.

Readers decode the next tiles while the network computes one and its predecessors' nuclei are
measured. The network has the calling thread. As many tiles exist at a time as the queues hold,
whatever the size of the slides.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import Slide, UnreadableRegion, open_slide
from dssnet_fast.tiling import Box
from dssnet_fast.wsi import layout
from dssnet_fast.wsi.measure import OpticalDensity
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.tile_nuclei import find_tile_nuclei, to_bytes
from dssnet_fast.wsi.timing import Timing
from dssnet_fast.wsi.work import SlideWork, TileAnswer, TileTask

if TYPE_CHECKING:
    from pathlib import Path

# What cannot be read is looked for in parts down to this size, px of the analysed image.
_SMALLEST_PART_PX = layout.CELL_PX
_MOST_THREADS = 8


@dataclass(frozen=True)
class Threads:
    """How many of each kind, beside the network's own; `batch` tiles are one call of it."""

    readers: int
    analysts: int
    batch: int = 1

    @classmethod
    def for_cores(cls, cores: int | None = None, batch: int = 1) -> Threads:
        """A number for a machine with so many cores; this one's by default."""
        half = max(1, min(_MOST_THREADS, (cores or os.cpu_count() or 1) // 2))
        return cls(readers=half, analysts=half, batch=batch)


@dataclass(frozen=True)
class _Read:
    """A tile's pixels, uint8 [h, w, 3] of `box`, and where some are missing."""

    task: TileTask
    box: Box
    pixels: np.ndarray
    unreadable: tuple[Box, ...]


class Pipeline:
    """Computes tiles.

    Args:
        net: The network.
        threads: How many.
        timing: Where to count what took how long.
    """

    def __init__(self, net: Network, threads: Threads, timing: Timing) -> None:
        self._net = net
        self._threads = threads
        self._timing = timing
        # Each reader may be in a slide of its own; one more may have just been left.
        self._slides = _OpenSlides(threads.readers + 1)

    def run(self, tasks: Iterable[TileTask]) -> Iterator[TileAnswer]:
        """Answers in the order of the tasks, but errors at once; only interruptions are raised."""
        waiting = iter(tasks)
        reading: deque[tuple[TileTask, Future[_Read]]] = deque()
        measuring: deque[tuple[TileTask, Future[bytes]]] = deque()
        readers = ThreadPoolExecutor(self._threads.readers, "read")
        analysts = ThreadPoolExecutor(self._threads.analysts, "measure")
        try:
            while True:
                # One more than are read, so that a tile is there when the network has finished.
                while len(reading) < self._threads.readers + self._threads.batch:
                    task = next(waiting, None)
                    if task is None:
                        break
                    reading.append((task, readers.submit(self._read, task)))
                if not reading:
                    break
                batch, failed = self._next_batch(reading)
                for task, answer in self._predict(batch):
                    if isinstance(answer, Exception):
                        failed.append(TileAnswer(task, error=answer))
                    else:
                        measuring.append((task, analysts.submit(self._measure, *answer)))
                # A tile that failed keeps nobody waiting: its slide is told at once.
                yield from failed
                while len(measuring) > self._threads.analysts:
                    with self._timing.wait("measuring"):
                        answer = _answer(*measuring.popleft())
                    yield answer
            while measuring:
                yield _answer(*measuring.popleft())
        finally:
            for _, future in (*reading, *measuring):
                future.cancel()
            readers.shutdown()
            analysts.shutdown()
            self._slides.close()

    def _next_batch(self, reading: deque) -> tuple[list[_Read], list[TileAnswer]]:
        """The next tile, and those after it that have its shape; and what cannot be read."""
        batch: list[_Read] = []
        failed: list[TileAnswer] = []
        while reading and len(batch) < self._threads.batch:
            task, future = reading[0]
            try:
                with self._timing.wait("reading"):
                    one = future.result()
            except Exception as error:
                reading.popleft()
                failed.append(TileAnswer(task, error=error))
                continue
            if batch and _shape(batch[0]) != _shape(one):
                break
            reading.popleft()
            batch.append(one)
        return batch, failed

    def _predict(self, batch: list[_Read]) -> Iterator[tuple[TileTask, tuple | Exception]]:
        if not batch:
            return
        core, slide = batch[0].task.core, batch[0].task.slide
        inside = core.seen_from(batch[0].box)
        try:
            with self._timing.work("network", len(batch) * core.area):
                images = [with_channels(one.pixels, self._net.config.in_channels) for one in batch]
                # One is not copied to become a batch.
                stacked = images[0][None] if len(images) == 1 else np.stack(images)
                edges = slide.separation.needs_edges
                answers = self._net.decide(stacked, inside, edges)
        except Exception as error:
            for one in batch:
                yield one.task, error
            return
        for at, one in enumerate(batch):
            pixels = one.pixels[one.task.core.within(one.box)]
            yield one.task, (one, tuple(answer[at] for answer in answers), pixels)

    # --- on other threads ------------------------------------------------------------------------

    def _read(self, task: TileTask) -> _Read:
        image = self._slides.get(task.slide)
        box = task.core.around(task.slide.context, task.slide.image)
        with self._timing.work("reading", box.area) as stage:
            pixels = np.empty((box.height, box.width, 3), np.uint8)
            unreadable: list[UnreadableRegion] = []
            _read_parts(image, box, box, pixels, unreadable, task.slide.glass)
            stage.bytes = pixels.nbytes
        if unreadable and not task.slide.keep_going:
            raise unreadable[0]
        return _Read(task, box, pixels, tuple(one.box for one in unreadable))

    def _measure(self, read: _Read, answers: tuple[np.ndarray, ...], pixels: np.ndarray) -> bytes:
        task, slide = read.task, read.task.slide
        with self._timing.work("measuring", task.core.area) as stage:
            labels = _only_wanted(answers[0], task.core, slide.wanted)
            found = find_tile_nuclei(
                labels,
                answers[1],
                slide.separation.levels(labels, *answers[1:]),
                slide.separation.top,
                pixels,
                OpticalDensity(slide.glass),
                task.core,
                slide.image,
                slide.min_area,
            )
            data = to_bytes(replace(found, unreadable=_as_array(read.unreadable)))
            stage.bytes = len(data)
        return data


class _OpenSlides:
    """Slides that are being read, opened once; those not used for longest are closed first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, tuple[Slide, Resampled]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, work: SlideWork) -> Resampled:
        """The analysed image of a slide."""
        with self._lock:
            if work.path not in self._open:
                slide = open_slide(work.path)
                self._open[work.path] = slide, Resampled(slide, work.mpp, work.slide_mpp)
                # Nobody is in it: a slide's tasks come one after another.
                if len(self._open) > self._limit:
                    self._open.popitem(last=False)[1][0].close()
            self._open.move_to_end(work.path)
            return self._open[work.path][1]

    def close(self) -> None:
        with self._lock:
            for slide, _ in self._open.values():
                slide.close()
            self._open.clear()


def _read_parts(
    image: Resampled,
    part: Box,
    box: Box,
    pixels: np.ndarray,
    unreadable: list[UnreadableRegion],
    glass: tuple[float, ...],
) -> None:
    """Read `part` into the pixels of `box`; what cannot be read becomes glass, part by part."""
    try:
        pixels[part.within(box)] = image.read(part)
        return
    except UnreadableRegion as error:
        if max(part.height, part.width) <= _SMALLEST_PART_PX:
            unreadable.append(error)
            pixels[part.within(box)] = np.rint(glass).astype(np.uint8)
            return
    middle_row = part.top + _half(part.height)
    middle_column = part.left + _half(part.width)
    for top, bottom in ((part.top, middle_row), (middle_row, part.bottom)):
        for left, right in ((part.left, middle_column), (middle_column, part.right)):
            if top < bottom and left < right:
                smaller = Box(top, left, bottom, right)
                _read_parts(image, smaller, box, pixels, unreadable, glass)


def _half(length: int) -> int:
    return length if length <= _SMALLEST_PART_PX else -(-length // 2)


def _only_wanted(labels: np.ndarray, core: Box, wanted: np.ndarray) -> np.ndarray:
    """Background in cells that nobody looks at, so that results do not depend on tiles."""
    rows = np.arange(core.top, core.bottom) // layout.CELL_PX
    columns = np.arange(core.left, core.right) // layout.CELL_PX
    mine = wanted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if mine.all():
        return labels
    labels = labels.copy()
    for row, column in zip(*(~mine).nonzero(), strict=True):
        top, bottom = np.searchsorted(rows, rows[0] + np.array([row, row + 1]))
        left, right = np.searchsorted(columns, columns[0] + np.array([column, column + 1]))
        labels[top:bottom, left:right] = 0
    return labels


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """RGB as a network for 3 channels or, as gray by ITU-R 601, for 1 takes it."""
    if channels == 3:
        return pixels
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]


def _shape(read: _Read) -> tuple[int, ...]:
    core = read.task.core.seen_from(read.box)
    return (*read.pixels.shape, core.top, core.left, core.bottom, core.right)


def _as_array(boxes: tuple[Box, ...]) -> np.ndarray:
    rows = [(box.left, box.top, box.right, box.bottom) for box in boxes]
    return np.array(rows, np.int64).reshape(-1, 4)


def _answer(task: TileTask, future: Future[bytes]) -> TileAnswer:
    try:
        return TileAnswer(task, data=future.result())
    except Exception as error:
        return TileAnswer(task, error=error)
