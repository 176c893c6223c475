"""Speed of every way to run DSSNet here, side by side: `pytest --benchmark-only`.

Each bench first compares the answer with the reference's. It then takes turns with the reference,
round by round, so that `speed_up` in `extra_info` is a ratio of the same minutes. Nothing asserts a
time. What takes too long for a default run, or gains nothing here, is skipped by name unless
DSSNET_FAST_BENCH=all.
"""

from __future__ import annotations

import os
import statistics
import time

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from dssnet_fast import backends
from dssnet_fast import benchmark as measuring
from dssnet_fast.bench import BATCHES, SIZES, machine, sm_clock
from dssnet_fast.python_ref.config import DSSNetConfig

DEVICE = backends.find_device("auto")
CONTESTANTS = measuring.contestants(DEVICE, DSSNetConfig())
SECONDS = 4.0  # of each bench, the reference's turns included
ROUNDS = (3, 30)

# Without a GPU, calls of more work than this (about 5 s on two cores) are left out, and those that
# have to be compiled anew for each shape are timed on one image only.
CPU_LIMIT_GMAC = 150


@pytest.fixture(scope="module")
def arena() -> measuring.Arena:
    return measuring.Arena(None, DEVICE)


def skip_if_left_out(arena, contestant, size: int, batch: int) -> None:
    if os.environ.get("DSSNET_FAST_BENCH") == "all":
        return
    if (why := measuring.why_left_out(contestant, DEVICE)) is not None:
        pytest.skip(f"{contestant.name}: {why}; DSSNET_FAST_BENCH=all runs it")
    if DEVICE.type == "cuda":
        return
    work = arena.macs(arena.contestants[0], size, batch) / 1e9
    own = arena.macs(contestant, size, batch) / 1e9
    if max(work, own / 2) > CPU_LIMIT_GMAC:  # UNet's wide layers run at twice the rate
        pytest.skip(f"{max(work, own):.0f} GMAC a call; DSSNET_FAST_BENCH=all runs it")
    if contestant.kind == "compile" and (batch > 1 or size > 512):
        pytest.skip("compiling takes long for each shape; DSSNET_FAST_BENCH=all runs it")


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda contestant: contestant.name)
@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"batch{batch}")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size}px")
def test_inference(benchmark, arena, contestant, size, batch):
    skip_if_left_out(arena, contestant, size, batch)
    image = arena.image(size, batch)
    try:
        run = arena.prepare(contestant, image)
    except measuring.Unavailable as error:
        pytest.skip(f"{contestant.name}: {error}")
    try:
        error = arena.check(contestant, run, size, batch)
    except measuring.WrongAnswer as wrong:
        if contestant.kind == "fast":
            raise
        pytest.skip(str(wrong))  # no fault of ours: others' int8 saturates without VNNI
    baseline = arena.prepare(arena.contestants[0], image)
    started = time.perf_counter()
    arena.timed(baseline), arena.timed(run)
    turn = time.perf_counter() - started
    rounds = min(max(int(SECONDS / turn), ROUNDS[0]), ROUNDS[1])
    reference, queued = [], []

    def take_turns() -> None:
        reference.append(arena.timed(baseline))
        if DEVICE.type == "cuda":
            queued.append(arena.timed(run))
        arena.synchronise()

    def run_to_end() -> None:
        run()
        arena.synchronise()

    benchmark.group = f"{size} x {size} px, batch {batch}"
    benchmark.pedantic(run_to_end, setup=take_turns, rounds=rounds)
    if benchmark.stats is None:  # --benchmark-disable: run once, not timed
        return
    # On a GPU the table shows calls alone, with what the CPU takes to make them.
    own = queued or benchmark.stats.stats.data
    median = statistics.median(own)
    pairs = zip(reference[-len(own) :], own, strict=True)
    benchmark.extra_info.update(
        relative_error=error,
        speed_up=statistics.median(base / mine for base, mine in pairs),
        images_per_second=batch / median,
        gmac_per_second=arena.macs(contestant, size, batch) / median / 1e9,
        median_ms=1e3 * median,
        threads=torch.get_num_threads(),
        machine=machine(DEVICE),
    )
    if DEVICE.type == "cuda":
        benchmark.extra_info["sm_mhz"] = sm_clock(DEVICE, run)
