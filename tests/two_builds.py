"""Two checkouts of this project on one CPU, taking turns; the figures of docs/performance.md.

    python -m tests.two_builds OTHER --sets avx2 avx512_bf16 --precisions fp32 int8 --threads 1

OTHER is the folder of a checkout with its extension built (`python setup.py build_ext --inplace`).
Each combination is a process of its own that segments one image with the packaged model whenever it
is its turn. On one thread the time is that of the processor, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CALLS = 3  # a turn, of which the fastest counts
WORKER = """
import sys, time
import numpy as np, torch
from dssnet_fast import FastDSSNet

precision, threads, size, calls = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
net = FastDSSNet.pretrained(device="cpu", backend="cpu", precision=precision)
image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
clock = time.process_time if threads == 1 else time.perf_counter
for _ in range(3):
    net.predict(image)
print("ready", flush=True)
for _ in sys.stdin:
    seconds = []
    for _ in range(calls):
        begin = clock()
        net.predict(image)
        seconds.append(clock() - begin)
    print(min(seconds), flush=True)
"""


@dataclass
class Contestant:
    """A checkout with an instruction set and a precision."""

    name: str
    process: subprocess.Popen
    seconds: list[float]

    def turn(self) -> None:
        """Take a turn."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.process.stdout.readline()))


def start(checkout: Path, name: str, kind: str, precision: str, threads: int, size: int):
    """Start a contestant, and wait until it has warmed up."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, precision, str(threads), str(size), str(CALLS)],
        cwd=checkout,
        env={**os.environ, "DSSNET_FAST_ISA": kind},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdout.readline() != "ready\n":
        sys.exit(f"{checkout}: {kind}, {precision} does not run there")
    return Contestant(name, process, [])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        "python -m tests.two_builds", description=__doc__.splitlines()[0]
    )
    parser.add_argument("other", type=Path, metavar="OTHER", help="a built checkout")
    parser.add_argument("--sets", nargs="+", required=True, help="instruction sets")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=512, help="side of the image, px")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(f"{given.size} px, {given.threads} thread(s), {given.rounds} rounds, ms\n")
    print("| set | precision | other | this | other / this |\n|---|---|---:|---:|---:|")
    for kind in given.sets:
        for precision in given.precisions:
            options = (kind, precision, given.threads, given.size)
            pair = [start(given.other, "other", *options), start(HERE, "this", *options)]
            for _ in range(given.rounds):
                for one in pair:
                    one.turn()
            for one in pair:
                one.process.stdin.close()
                one.process.wait()
            times = " | ".join(f"{1e3 * statistics.median(one.seconds):.1f}" for one in pair)
            turns = zip(*(one.seconds for one in pair), strict=True)
            ratio = statistics.median(other / this for other, this in turns)
            print(f"| {kind} | {precision} | {times} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
