"""Segmenting many images: some at a time, within bounds, each whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dssnet_fast import cli
from dssnet_fast.jobs import RESULTS, Job, discard, read_record, record_path

if TYPE_CHECKING:
    from dssnet_fast.model import FastDSSNet
    from dssnet_fast.separate import Separation

# Raise when the same input would give different files, so that old records are not trusted.
RECORD_VERSION = 2

# Images in work at once: while one is in the network, others are read, measured and written.
_WORKERS = 4
# Pixels that may be in the network or measured at once; a larger image is alone.
_PIXELS_AT_ONCE = 2**26


@dataclass(frozen=True)
class Outcome:
    """What became of one image: `status` is done, skipped or failed; `reason` says why failed."""

    status: str
    nuclei: int = 0
    reason: str | None = None


class Run:
    """Segments single images with one network and one set of options; safe to use in threads."""

    def __init__(
        self, net: FastDSSNet, separation: Separation, arguments: argparse.Namespace
    ) -> None:
        self.net = net
        self.separation = separation
        self.arguments = arguments
        self.stopped = threading.Event()
        self._room = Room(_PIXELS_AT_ONCE)
        # What results depend on beside the image. The size of tiles is not among it.
        self.settings = {
            "version": RECORD_VERSION,
            "model_sha256": net.digest,
            "class_names": list(net.class_names),
            "backend": str(net.backend_name),
            "precision": str(net.precision),
            "separation": separation.to_dict(),
            "min_area": arguments.min_area,
            "sixteen_bit": arguments.sixteen_bit,
        }

    def segment(self, job: Job) -> Outcome:
        """Segment one image, unless its record says that it is done.

        Raises:
            OSError: The results cannot be written.
        """
        if self.stopped.is_set():
            return Outcome("failed", reason="stopped")
        out = self.arguments.out
        try:
            made_from = {**self.settings, "image": job.label, "image_sha256": _digest(job.path)}
        except OSError as error:
            # Whether earlier results are still right cannot be told: they stay, uncounted.
            return Outcome("failed", reason=cli.reason(error, job.path))
        record = None if self.arguments.overwrite else read_record(out, job)
        if record is not None and record["made_from"] == made_from:
            return Outcome("skipped", record["nuclei"])
        # From here on the old results count no more, whatever happens.
        discard(out, job)
        try:
            count = self._make(job, made_from)
        except BaseException as error:
            discard(out, job)
            # Results that cannot be written would fail for the other images, too.
            if isinstance(error, OSError) or not isinstance(error, Exception):
                raise
            if self.arguments.debug:
                traceback.print_exc()
            return Outcome("failed", reason=cli.reason(error, job.path))
        return Outcome("done", count)

    def _make(self, job: Job, made_from: dict[str, object]) -> int:
        from dssnet_fast import outputs
        from dssnet_fast.nuclei import find_nuclei
        from dssnet_fast.python_ref.images import read_image
        from dssnet_fast.tiled import predict_tiled

        arguments, names, separation = self.arguments, self.net.class_names, self.separation
        image = read_image(job.path, self.net.config.in_channels, arguments.sixteen_bit)
        with self._room.for_pixels(image.shape[0] * image.shape[1]):
            answers = predict_tiled(self.net, image, arguments.tile, separation.needs_edges)
            labels, probability = answers[:2]
            levels = separation.levels(*answers)
            nuclei = find_nuclei(labels, probability, arguments.min_area, levels)
            del answers, probability, levels
            files = [arguments.out / (job.name + ending) for ending in RESULTS]
            outputs.write_labels(files[0], labels)
            outputs.write_instances(files[1], nuclei.instances)
            outputs.write_overlay(files[2], image, nuclei)
            identity = f"{job.label}/{made_from['image_sha256']}"
            outputs.write_geojson(files[3], nuclei, names, identity)
        record = {
            "made_from": made_from,
            "nuclei": len(nuclei),
            "rows": outputs.table_rows(job.label, nuclei, names),
        }
        # Last: an image with a record has all its results.
        outputs.write_json(record_path(arguments.out, job), record)
        return len(nuclei)


class Room:
    """Lets work on so many pixels at once, and larger work alone."""

    def __init__(self, pixels: int) -> None:
        self._limit = pixels
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def for_pixels(self, pixels: int) -> Iterator[None]:
        """Wait until `pixels` more fit, and hold them for the length of the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def process(run: Run, jobs: list[Job], arguments: argparse.Namespace) -> list[Outcome]:
    """Segment all images, some at a time; the outcomes are in the order of the jobs.

    Raises:
        OSError: Results cannot be written; images in work have been finished or removed.
    """
    from tqdm import tqdm

    outcomes: dict[int, Outcome] = {}
    workers = min(_WORKERS, os.cpu_count() or 1, len(jobs))
    waiting = iter(enumerate(jobs))
    running: dict[Future[Outcome], int] = {}
    # tqdm shows nothing by itself where stderr is no terminal.
    bar = tqdm(total=len(jobs), unit="image", disable=arguments.quiet or None)
    with bar, ThreadPoolExecutor(workers, thread_name_prefix="segment") as pool:
        try:
            while len(outcomes) < len(jobs):
                # Only as many as there are workers are handed over, so that a stop is quick.
                while len(running) < workers and (following := next(waiting, None)):
                    running[pool.submit(run.segment, following[1])] = following[0]
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    index = running.pop(future)
                    outcome = outcomes[index] = future.result()
                    if outcome.status == "failed":
                        bar.write(f"{jobs[index].path}: {outcome.reason}", file=sys.stderr)
                    bar.update()
        except BaseException:
            run.stopped.set()
            raise
    return [outcomes[index] for index in range(len(jobs))]
