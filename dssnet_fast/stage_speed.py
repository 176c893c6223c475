"""How fast the CPU's stages run beside what the processor could do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from dssnet_fast.backends import native
from dssnet_fast.backends.cpu import PRECISIONS, instruction_set
from dssnet_fast.backends.cpu.engine import CpuBackend
from dssnet_fast.calibrate import calibrate
from dssnet_fast.weights import FoldedWeights

_PEAK_SECONDS = 0.2


@dataclass(frozen=True)
class StageSpeed:
    """A stage in one precision.

    Attributes:
        precision: `fp32`, `bf16` or `int8`.
        stage: `downsample`, `extract`, or `fuse, segment`; or `all`.
        seconds: Median over the rounds.
        macs: Multiply-accumulates executed for the images, padding included.
        peak: Multiply-accumulates a second that the same instructions reach on data in the first
            cache, measured in the same rounds.
    """

    precision: str
    stage: str
    seconds: float
    macs: float
    peak: float

    @property
    def share(self) -> float:
        """Of the peak, from 0 to 1."""
        return self.macs / self.seconds / self.peak


def measure(folded: FoldedWeights, size: int, batch: int, rounds: int) -> Iterator[StageSpeed]:
    """Time the stages of a network in every precision, by turns with the processor's peak.

    Args:
        folded: The network; where it is not calibrated for int8, noise does it: speed is the same.
        size: Side of the images, a multiple of 8.
        batch: Images a call.
        rounds: How often.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (batch, size, size, folded.config.in_channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if folded.quantisation is None:
        folded = replace(folded, quantisation=calibrate(folded, [images[0, :256, :256].numpy()]))
    chosen, extension = instruction_set.chosen(), native.module()
    for precision in PRECISIONS:
        backend = CpuBackend(folded, precision, extension, chosen)
        backend.profile(images)
        runs, peaks = [], []
        for _ in range(rounds):
            runs.append(backend.profile(images))
            peaks.append(
                extension.cpu_peak(
                    instruction_set=chosen["name"],
                    type=precision,
                    threads=torch.get_num_threads(),
                    seconds=_PEAK_SECONDS,
                )
            )
        peak = statistics.median(peaks)
        for stage in runs[0]:
            seconds = statistics.median(run[stage][0] for run in runs)
            yield StageSpeed(precision, stage, seconds, runs[0][stage][1], peak)
        whole = statistics.median(sum(seconds for seconds, _ in run.values()) for run in runs)
        macs = sum(count for _, count in runs[0].values())
        yield StageSpeed(precision, "all", whole, macs, peak)


def markdown(speeds: list[StageSpeed]) -> str:
    """A table for documents and terminals."""
    lines = [
        "| precision | stage | ms | GMAC | GMAC/s | of the peak |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in speeds:
        lines.append(
            f"| {one.precision} | {one.stage} | {1e3 * one.seconds:.1f} | {one.macs / 1e9:.2f} | "
            f"{one.macs / one.seconds / 1e9:.0f} | {one.share:.0%} of {one.peak / 1e9:.0f} |"
        )
    return "\n".join(lines)
