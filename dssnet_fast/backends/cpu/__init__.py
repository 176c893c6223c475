"""The backend `cpu`: C++ kernels for the processor's best instruction set, in fp32, bf16 and int8.

The names of `dssnet_fast.backends.BackendModule` are here. `operands` lays out the weights,
`engine` runs the network, `report` tells what is here. How the kernels work: docs/cpu_kernels.md.

Environment:
    DSSNET_FAST_ISA  the instruction set to use, such as avx2, instead of the best. One that cannot
        be used is an error, with `auto` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import dssnet_fast.backends.cpu.instruction_set as instruction_set
import dssnet_fast.backends.native as native
from dssnet_fast.backends import BackendUnavailable

if TYPE_CHECKING:
    from dssnet_fast.backends.cpu.engine import CpuBackend
    from dssnet_fast.python_ref.config import DSSNetConfig
    from dssnet_fast.weights import FoldedWeights

PRECISIONS = ("fp32", "bf16", "int8")


def why_not(device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
    """The first thing in the way of running `config` on `device`; None when it can."""
    if device.type != "cpu":
        return f"runs on the CPU; {device} is none"
    if native.problem() is not None:
        return native.problem()
    if instruction_set.problem() is not None:
        return instruction_set.problem()
    if precision not in PRECISIONS:
        return f"computes in {', '.join(PRECISIONS)}; for {precision} use backend torch"
    return None


def why_not_automatic(device: torch.device) -> str | None:
    """`auto` takes it wherever it runs."""
    return None


def why_no_gain(device: torch.device, precision: str) -> str | None:
    """Why fp32 is the better choice; None when it is not."""
    used = instruction_set.chosen()
    if precision != "bf16" or used["fast_bf16"]:
        return None
    return (
        f"{used['name']} has no fast bf16 instructions here, so bf16 is computed as fp32 and "
        "rounded; fp32 is as fast and more exact"
    )


def unmet(device: torch.device) -> str | None:
    """The instruction set that was asked for, where it cannot be used."""
    return instruction_set.problem() if device.type == "cpu" else None


def best_precision(device: torch.device) -> str:
    """The exact one: who wants to give up digits for speed says so."""
    return "fp32"


def make(weights: FoldedWeights, device: torch.device, precision: str) -> CpuBackend:
    """Pack `weights` for `precision`.

    Raises:
        BackendUnavailable: int8 is asked for and the weights have no steps.
    """
    from dssnet_fast.backends.cpu.engine import CpuBackend

    if precision == "int8" and weights.quantisation is None:
        raise BackendUnavailable(
            "these weights are not calibrated for int8; add what it needs with: "
            "python -m dssnet_fast.convert FILE --int8 --calibrate IMAGES"
        )
    return CpuBackend(weights, precision, native.module(), instruction_set.chosen())
