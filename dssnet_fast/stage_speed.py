"""How fast the CPU's stages run beside what the processor could do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from dssnet_fast.backends import native
from dssnet_fast.backends.cpu import PRECISIONS, instruction_set
from dssnet_fast.backends.cpu.engine import CpuBackend
from dssnet_fast.calibrate import calibrate
from dssnet_fast.weights import FoldedWeights

_PEAK_SECONDS = 0.2


@dataclass(frozen=True)
class Peak:
    """What a processor's instructions reach on registers, on all threads together.

    Attributes:
        instructions: Those measured, such as `vpdpbusd, 512 bits`.
        rate: Multiply-accumulates a second; 0 where none are known.
    """

    instructions: str
    rate: float


@dataclass(frozen=True)
class StageSpeed:
    """A stage in one precision.

    Attributes:
        precision: `fp32`, `bf16` or `int8`.
        stage: `downsample`, `extract`, or `fuse, segment`; or `all`.
        seconds: Median over the rounds.
        macs: Multiply-accumulates executed for the images, padding included, by the type of what
            is multiplied; see `CpuBackend.profile`.
        peaks: By type, measured in the same rounds by loops that share nothing with the kernels.
    """

    precision: str
    stage: str
    seconds: float
    macs: Mapping[str, float]
    peaks: Mapping[str, Peak]

    @property
    def share(self) -> float | None:
        """The time that the multiplications alone would take, of `seconds`; None if unknown."""
        if not all(self.peaks[kind].rate for kind in self.macs):
            return None
        return (
            sum(count / self.peaks[kind].rate for kind, count in self.macs.items()) / self.seconds
        )


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
        kinds = sorted({kind for _, macs in backend.profile(images).values() for kind in macs})
        runs, rates = [], {kind: [] for kind in kinds}
        for _ in range(rounds):
            runs.append(backend.profile(images))
            for kind in kinds:
                rates[kind].append(
                    extension.cpu_peak(
                        instruction_set=chosen["name"],
                        type=kind,
                        threads=torch.get_num_threads(),
                        seconds=_PEAK_SECONDS,
                    )
                )
        peaks = {
            kind: Peak(
                extension.cpu_peak_instructions(instruction_set=chosen["name"], type=kind),
                statistics.median(rates[kind]),
            )
            for kind in kinds
        }
        for stage, (_, macs) in runs[0].items():
            seconds = statistics.median(run[stage][0] for run in runs)
            yield StageSpeed(precision, stage, seconds, macs, peaks)
        whole = statistics.median(sum(seconds for seconds, _ in run.values()) for run in runs)
        total = {kind: sum(macs.get(kind, 0) for _, macs in runs[0].values()) for kind in kinds}
        yield StageSpeed(precision, "all", whole, total, peaks)


def markdown(speeds: list[StageSpeed]) -> str:
    """Tables for documents and terminals: the stages, and the instructions they are beside."""
    lines = [
        "| precision | stage | ms | GMAC | GMAC/s | of the peak |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in speeds:
        macs = sum(one.macs.values())
        share = "unknown" if one.share is None else f"{one.share:.0%}"
        lines.append(
            f"| {one.precision} | {one.stage} | {1e3 * one.seconds:.1f} | {macs / 1e9:.2f} | "
            f"{macs / one.seconds / 1e9:.0f} | {share} |"
        )
    lines += ["", "| peak of | instructions, on registers | GMAC/s |", "|---|---|---:|"]
    peaks = {kind: peak for one in speeds for kind, peak in one.peaks.items()}
    for kind, peak in sorted(peaks.items()):
        known = f"{peak.instructions} | {peak.rate / 1e9:.0f}" if peak.rate else "unknown | "
        lines.append(f"| {kind} | {known} |")
    return "\n".join(lines)
