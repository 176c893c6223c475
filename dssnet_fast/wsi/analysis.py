"""Analysing slides, for the command line and for Python."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dssnet_fast import cli
from dssnet_fast.jobs import RECORDS, make_jobs
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.wsi.account import account
from dssnet_fast.wsi.determinism import make_deterministic
from dssnet_fast.wsi.engines import Engine, ThisProcess, local_workers
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.options import Options
from dssnet_fast.wsi.pipeline import Threads
from dssnet_fast.wsi.run import Progress, SlideOutcome, SlideRun
from dssnet_fast.wsi.store import only_run
from dssnet_fast.wsi.timing import Timing
from dssnet_fast.wsi.writers.summary import write_slides_csv

TABLE = "slides.csv"


@dataclass(frozen=True)
class Machines:
    """Who computes; results do not depend on it.

    Attributes:
        engine: `local` or `ray`.
        workers: Processes; None for this one or, with several GPUs, one each.
        batch: Tiles that go into the network at once.
        deterministic: Whether PyTorch's own convolutions must give the same bits, too.
        ray_address: Of a Ray cluster; None to start one for the run.
    """

    engine: str = "local"
    workers: int | None = None
    batch: int = 1
    deterministic: bool = False
    ray_address: str | None = None


def analyse(
    net: Network,
    paths: Sequence[str | os.PathLike],
    out: Path,
    options: Options,
    machines: Machines | None = None,
    overwrite: bool = False,
    debug: bool = False,
    progress: Progress | None = None,
) -> tuple[list[SlideOutcome], dict[str, object]]:
    """Analyse slides.

    Args:
        net: The network.
        paths: Slides, or folders of them.
        out: Folder for the results; made if need be.
        options: What results depend on.
        machines: Who computes.
        overwrite: Whether slides that are done are done again.
        debug: Whether tracebacks of failures are printed.
        progress: Told how far the run is.

    Returns:
        What became of each slide, and the account of the run.

    Raises:
        InputError: A path is no slide and no folder, or the options do not go together.
        OSError: Results cannot be written. What is done stays for the next run.
    """
    from dssnet_fast.slides.slide import find_slides

    machines = machines or Machines()
    jobs = make_jobs(cli.inputs_outside([Path(path) for path in paths], out, find_slides))
    cli.make_folder(out, RECORDS)
    begun = time.perf_counter()
    timing = Timing()
    with only_run(out):
        engine, workers = _engine(net, machines, timing)
        run = SlideRun(
            net,
            options,
            out,
            timing,
            overwrite=overwrite,
            debug=debug,
            threads=max((os.cpu_count() or 1) // 2, 1),
            progress=progress,
        )
        outcomes = run.run(jobs, engine)
        write_slides_csv(out / TABLE, [_row(outcome) for outcome in outcomes])
    return outcomes, account(outcomes, timing, time.perf_counter() - begun, workers)


def segment_slide(
    net: Network, path: str | os.PathLike, out: str | os.PathLike, **options: object
) -> dict[str, object]:
    """Analyse one slide; see `FastDSSNet.segment_slide`."""
    unknown = set(options) - set(Options.__dataclass_fields__)
    if unknown:
        raise TypeError(
            f"segment_slide has no options {sorted(unknown)}; it has "
            f"{sorted(Options.__dataclass_fields__)}"
        )
    (outcome,), _ = analyse(net, [path], Path(out), Options(**options))
    if outcome.status == "failed":
        raise InputError(f"{path}: {outcome.reason}")
    return outcome.summary


def _engine(net: Network, machines: Machines, timing: Timing) -> tuple[Engine, int]:
    if machines.deterministic:
        make_deterministic(net)
    batch = 1 if machines.deterministic and net.backend_name == "torch" else machines.batch
    threads = Threads.for_cores(batch=batch)
    if machines.engine == "ray":
        from dssnet_fast.wsi.ray_engine import ray_workers

        workers = ray_workers(
            net,
            machines.workers,
            threads,
            timing,
            machines.ray_address,
            machines.deterministic,
        )
        return workers, workers.count
    count = machines.workers or _gpus(net)
    if count == 1:
        return ThisProcess(net, threads, timing), 1
    return local_workers(net, count, threads, timing, machines.deterministic), count


def _gpus(net: Network) -> int:
    import torch

    # A device that was named is the one to use.
    several = net.device.type == "cuda" and not net.device.index
    return torch.cuda.device_count() if several else 1


def _row(outcome: SlideOutcome) -> dict[str, object]:
    if outcome.summary is None:
        return {
            "name": outcome.job.name,
            "slide": os.path.abspath(outcome.job.path),
            "status": "failed",
            "reason": outcome.reason,
        }
    status = "incomplete" if outcome.summary["unreadable"] else outcome.status
    return {**outcome.summary, "status": status}
