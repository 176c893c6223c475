"""A run over slides: tiles of all in one stream, a slide's outputs when its tiles are done."""

from __future__ import annotations

import platform
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import dssnet_fast
from dssnet_fast import cli
from dssnet_fast.jobs import Job
from dssnet_fast.wsi.engines import Engine
from dssnet_fast.wsi.finish import write_outputs
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.options import Options
from dssnet_fast.wsi.prepare import Prepared, prepare
from dssnet_fast.wsi.store import SlideStore
from dssnet_fast.wsi.timing import Timing
from dssnet_fast.wsi.work import TileAnswer, TileTask

# Raise when the same input would give different files, so that old records are not trusted.
VERSION = 2

_WRITES_AHEAD = 4  # tiles that wait for the disk


@dataclass
class SlideOutcome:
    """What became of a slide.

    Attributes:
        job: The slide.
        status: `done`, `skipped` (it had been done before) or `failed`.
        summary: What NAME.json says; None if it failed.
        reason: Why it failed.
        resumed: Tiles that an earlier run had done.
    """

    job: Job
    status: str = "failed"
    summary: dict | None = None
    reason: str | None = None
    resumed: int = 0


@dataclass
class _Slide:
    """A slide in work."""

    prepared: Prepared
    store: SlideStore
    made_from: dict
    outcome: SlideOutcome
    left: int = 0  # tiles that are not stored yet
    failed: threading.Event = field(default_factory=threading.Event)


class SlideRun:
    """Analyses slides with one network, one engine and one set of options.

    Args:
        net: The network.
        options: What results depend on.
        out: The output folder; `jobs.RECORDS` exists in it.
        timing: Where to count what took how long.
        overwrite: Whether slides that are done are done again.
        debug: Whether tracebacks of failures are printed.
        threads: For writing outputs.
        progress: Told of px that are done, and of lines to show.
    """

    def __init__(
        self,
        net: Network,
        options: Options,
        out: Path,
        timing: Timing,
        overwrite: bool = False,
        debug: bool = False,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.net = net
        self.options = options
        self.out = out
        self.timing = timing
        self._overwrite = overwrite
        self._debug = debug
        self._threads = threads
        self._progress = progress or Progress()
        self._settings = {
            "version": VERSION,
            "dssnet_fast": dssnet_fast.__version__,
            "model_sha256": net.digest,
            "source_sha256": net.source_digest,
            "class_names": list(net.class_names),
            "backend": net.backend_name,
            "device": net.device.type,  # tiles of another device may be others
            "precision": net.precision,
            "model_mpp": net.mpp,
            "separation": options.separation(net).to_dict(),
            "options": options.to_dict(),
        }

    def run(self, jobs: Sequence[Job], engine: Engine) -> list[SlideOutcome]:
        """Analyse slides; the outcomes are in the order of the jobs.

        Raises:
            OSError: Results cannot be written. Finished tiles stay for the next run.
        """
        outcomes = [SlideOutcome(job) for job in jobs]
        slides: dict[Path, _Slide] = {}
        finishing: list[Future[None]] = []
        writing: list[Future[None]] = []
        # One thread looks at the next slide while tiles of this one are computed; one writes
        # tiles; one writes the outputs of the last slide.
        with (
            ThreadPoolExecutor(1, "prepare") as planner,
            ThreadPoolExecutor(1, "keep") as writer,
            ThreadPoolExecutor(1, "finish") as finisher,
        ):

            def finish(slide: _Slide) -> None:
                finishing.append(finisher.submit(self._finish, slide))

            def tasks() -> Iterator[TileTask]:
                ahead = planner.submit(self._begin, outcomes[0]) if outcomes else None
                for outcome, following in zip(outcomes, [*outcomes[1:], None], strict=True):
                    with self.timing.wait("looking at slides"):
                        slide = ahead.result()
                    if following is not None:
                        ahead = planner.submit(self._begin, following)
                    if slide is None:
                        continue
                    slides[outcome.job.path] = slide
                    yield from self._tasks_of(slide, finish)

            try:
                for answer in engine.run(tasks()):
                    slide = slides[answer.task.slide.path]
                    if answer.error is not None:
                        self._fail(slide.outcome, answer.error)
                        slide.failed.set()
                    else:
                        writing.append(writer.submit(self._keep, slide, answer, finish))
                    while len(writing) > _WRITES_AHEAD:
                        with self.timing.wait("storing"):
                            writing.pop(0).result()
                    for done in [future for future in finishing if future.done()]:
                        done.result()
                for future in writing:
                    future.result()
                for future in finishing:
                    future.result()
            except BaseException:
                for slide in slides.values():
                    slide.failed.set()
                for pool in (planner, writer, finisher):
                    pool.shutdown(wait=False, cancel_futures=True)
                raise
        return outcomes

    def _begin(self, outcome: SlideOutcome) -> _Slide | None:
        """Get a slide ready for its tiles; None if there is nothing to compute."""
        job = outcome.job
        store = SlideStore(self.out, job)
        try:
            with self.timing.work("looking at slides"):
                made_from = {**self._settings, "slide": _identity(job)}
                record = None if self._overwrite else store.finished(made_from)
                if record is not None:
                    outcome.status, outcome.summary = "skipped", record["summary"]
                    return None
                prepared = prepare(job, self.net, self.options)
        except Exception as error:
            self._fail(outcome, error)
            return None
        return _Slide(prepared, store, made_from, outcome)

    def _tasks_of(self, slide: _Slide, finish: Callable[[_Slide], None]) -> Iterator[TileTask]:
        cores = slide.prepared.cores
        done = slide.store.begin(slide.made_from)
        slide.outcome.resumed = len(done)
        waiting = [number for number in range(len(cores)) if number not in done]
        slide.left = len(waiting)
        self._progress.slide(slide.prepared, waiting)
        if not waiting:
            finish(slide)
        for number in waiting:
            if slide.failed.is_set():
                break
            yield TileTask(slide.prepared.work, number, cores[number])

    def _keep(self, slide: _Slide, answer: TileAnswer, finish: Callable[[_Slide], None]) -> None:
        with self.timing.work("storing") as stage:
            slide.store.keep(answer.task.number, answer.data)
            stage.bytes = len(answer.data)
        self._progress.tile(answer.task)
        slide.left -= 1
        if not slide.left and not slide.failed.is_set():
            finish(slide)

    def _finish(self, slide: _Slide) -> None:
        outcome = slide.outcome
        try:
            summary = write_outputs(
                slide.prepared,
                slide.store,
                self.options,
                self.net,
                self.provenance(slide),
                self._threads,
                self.timing,
            )
            slide.store.finish({"made_from": slide.made_from, "summary": summary})
        except OSError:
            raise
        except Exception as error:
            self._fail(outcome, error)
            return
        outcome.status, outcome.summary = "done", summary

    def provenance(self, slide: _Slide) -> dict[str, object]:
        """How a slide's results came about, as JSON knows it; the same for the same input."""
        import torch

        about = slide.prepared.about
        return {
            **{key: value for key, value in self._settings.items() if key != "version"},
            "torch": torch.__version__,
            "python": platform.python_version(),
            "slide": slide.prepared.job.path.name,
            "slide_fingerprint": about["fingerprint"],
            "reader": about["reader"],
            "slide_mpp": about["slide_mpp"],
            "mpp_source": about["mpp_source"],
            "analysis_mpp": slide.prepared.frame.mpp,
            "context_px": about["context_px"],
            "exact": about["exact"],
            "cells": about["cells"],
        }

    def _fail(self, outcome: SlideOutcome, error: Exception) -> None:
        if outcome.reason is not None:
            return  # it has been told
        if self._debug:
            traceback.print_exception(error)
        outcome.status, outcome.reason = "failed", cli.reason(error, outcome.job.path)
        self._progress.say(f"{outcome.job.path}: {outcome.reason}")


class Progress:
    """Told how a run is getting on; this one keeps it to itself."""

    def slide(self, prepared: Prepared, waiting: Sequence[int]) -> None:
        """A slide begins; those of its tiles are to be done."""

    def tile(self, task: TileTask) -> None:
        """A tile is done."""

    def say(self, line: str) -> None:
        """Something to show."""


def _identity(job: Job) -> dict[str, object]:
    """What tells a slide from one that was changed, without reading all of it."""
    from dssnet_fast.slides.slide import fingerprint

    status = job.path.stat()
    return {
        "name": job.label,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "fingerprint": fingerprint(job.path),
    }
