"""How fast whole slides go, beside what reading and network alone would allow."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dssnet_fast.jobs import Job
from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import open_slide
from dssnet_fast.tiling import Box
from dssnet_fast.wsi.account import LAST_STAGES
from dssnet_fast.wsi.analysis import analyse
from dssnet_fast.wsi.options import Options
from dssnet_fast.wsi.pipeline import Threads, with_channels
from dssnet_fast.wsi.prepare import prepare

if TYPE_CHECKING:
    from torch import nn

    from dssnet_fast.model import FastDSSNet

# The script that the network was released with reads windows of 700 px at steps of 640 and shrinks
# them to 256 px, six at a time; so 234 px of each are new.
_WINDOW_PX, _STEP_PX, _WINDOWS = 256, 234, 6
_EAGER_SIDE_PX = 1024  # of what the eager network is timed on: it is slow
_SAMPLES = 4  # tiles on which reading and network are timed alone


@dataclass(frozen=True)
class Row:
    """Something that was timed: `seconds` for a gigapixel of the analysed image, a round each."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds a gigapixel."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class SlideSpeed:
    """What `measure` found.

    Attributes:
        end_to_end: A whole run, from the slide's file to all its outputs.
        reading: The tiles with their context, read and resampled, by as many threads.
        network: Labels of images as large as tiles, without context.
        cores: The same with a tile's context around, computed for the tile only.
        whole: The same, computed for all that is read.
        eager: The reference network in PyTorch, in the windows of the released script; the network
            alone.
        after: Share of a run's time (on all cores) that measuring, joining and writing take.
    """

    end_to_end: Row
    reading: Row
    network: Row
    cores: Row
    whole: Row
    eager: Row | None
    after: float

    def share_of(self, network: Row) -> float:
        """The run's speed as a share of the lower of what reading and that network would do."""
        return max(self.reading.median, network.median) / self.end_to_end.median


def measure(
    net: FastDSSNet,
    reference: nn.Module | None,
    path: Path,
    options: Options,
    rounds: int,
) -> SlideSpeed:
    """Time a slide end to end, and parts of it alone, in turns.

    Args:
        net: The network.
        reference: The same network in PyTorch, or None to leave it out.
        path: A slide.
        options: How it is analysed.
        rounds: How often.
    """
    prepared = prepare(Job(path, path.name, path.stem), net, options)
    work = prepared.work
    # Those with context on all sides, if there are any.
    by_size = sorted(prepared.cores, key=lambda core: -core.around(work.context, work.image).area)
    cores = by_size[:_SAMPLES]
    slide = open_slide(path)
    try:
        image = Resampled(slide, work.mpp, work.slide_mpp)
        boxes = [core.around(work.context, work.image) for core in cores]
        read = with_channels(image.read(boxes[0]), net.config.in_channels)
        core = cores[0].seen_from(boxes[0])
        pixels = np.ascontiguousarray(read[cores[0].within(boxes[0])])
        found: dict[str, list[float]] = {
            name: [] for name in ("run", "read", "network", "cores", "whole", "eager")
        }
        after = []
        for _ in range(rounds):
            fresh = open_slide(path)  # whatever was decoded has not been kept
            try:
                again = Resampled(fresh, work.mpp, work.slide_mpp)
                seconds = _timed(_read_all, again, boxes)
            finally:
                fresh.close()
            found["read"].append(seconds / _gigapixels(cores))
            gigapixels = _gigapixels([core])
            edges = work.separation.needs_edges
            for name, seen in (
                ("network", (pixels, None)),
                ("cores", (read, core)),
                ("whole", (read, None)),
            ):
                found[name].append(_timed(net.decide, *seen, edges) / gigapixels)
            if reference is not None:
                part = pixels[:_EAGER_SIDE_PX, :_EAGER_SIDE_PX]
                seconds = _timed(_eager, reference, part)
                found["eager"].append(seconds / (part.shape[0] * part.shape[1] / 1e9))
            with tempfile.TemporaryDirectory() as folder:
                outcomes, account = analyse(net, [path], Path(folder), options)
            if outcomes[0].status != "done":
                raise RuntimeError(f"{path}: {outcomes[0].reason}")
            analysed = work.wanted.mean() * account["gigapixels"]
            found["run"].append(account["seconds"] / analysed)
            stages = account["stages"]
            rest = sum(
                stages[name]["seconds"]
                for name in ("measuring", "storing", *LAST_STAGES)
                if name in stages
            )
            after.append(rest / (account["seconds"] * torch.get_num_threads()))
    finally:
        slide.close()
    return SlideSpeed(
        end_to_end=Row("a slide, from file to outputs", found["run"]),
        reading=Row("reading alone", found["read"]),
        network=Row("network alone, without context", found["network"]),
        cores=Row("network alone, a tile within its context", found["cores"]),
        whole=Row("network alone, a tile and its context, cropped", found["whole"]),
        eager=Row("reference in PyTorch, released script's windows, network alone", found["eager"])
        if reference is not None
        else None,
        after=statistics.median(after),
    )


def _timed(work: Callable[..., object], *arguments: object) -> float:
    begun = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begun


def _gigapixels(boxes: Sequence[Box]) -> float:
    return sum(box.area for box in boxes) / 1e9


def _read_all(image: Resampled, boxes: Sequence[Box]) -> None:
    with ThreadPoolExecutor(Threads.for_cores().readers) as readers:
        for _ in readers.map(image.read, boxes):
            pass


@torch.no_grad()
def _eager(reference: nn.Module, pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    corners = [
        (top, left) for top in range(0, height, _STEP_PX) for left in range(0, width, _STEP_PX)
    ]
    for begin in range(0, len(corners), _WINDOWS):
        windows = np.full((_WINDOWS, _WINDOW_PX, _WINDOW_PX, pixels.shape[2]), 255, np.uint8)
        for window, (top, left) in zip(windows, corners[begin : begin + _WINDOWS], strict=False):
            part = pixels[top : top + _WINDOW_PX, left : left + _WINDOW_PX]
            window[: part.shape[0], : part.shape[1]] = part
        batch = (torch.from_numpy(windows).permute(0, 3, 1, 2).float() - 128) / 128
        reference.logits(batch).softmax(dim=1).argmax(dim=1)


def table(speed: SlideSpeed) -> str:
    """As Markdown."""
    rows = [speed.end_to_end, speed.reading, speed.network, speed.cores, speed.whole]
    if speed.eager is not None:
        rows.append(speed.eager)
    lines = ["| what | s/Gpx | beside the whole run |", "|---|---:|---:|"]
    lines += [
        f"| {row.name} | {row.median:.1f} | {row.median / speed.end_to_end.median:.2f} |"
        for row in rows
    ]
    lines.append(
        f"\nThe run reaches {speed.share_of(speed.cores):.0%} of the network's speed on its tiles, "
        f"{speed.share_of(speed.network):.0%} of that without context; measuring, joining and "
        f"writing take {speed.after:.1%} of its time on all cores."
    )
    return "\n".join(lines)
