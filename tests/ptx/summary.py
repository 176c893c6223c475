"""What a run means: errors, what its kernels take, sums, and the roofline's times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from dssnet_fast.backends import PRECISIONS
from dssnet_fast.parity import reference_logits, relative_error
from dssnet_fast.python_ref.network import DSSNet

from .counting import STAGES, Compiled, Done, Run, Task
from .plans import DEVICES
from .roofline import GPUS, bounds, residency, rounds
from .sass import Loop
from .toolchain import ToolError

MODEL = "model, not a measurement"
SUMMED = ("macs", "minimum", "mma", "instructions", "wavefronts", "ideal", "sectors", "useful")
SUMMED += ("unique_read", "unique_written", "intermediate")


def yardstick(network: DSSNet, image: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """The reference's logits in float64, and PyTorch's own in a precision.

    Args:
        network: The reference, float64.
        image: uint8 [H, W, in_channels].
        precision: A key of `PRECISIONS`.
    """
    rounded = DSSNet(network.config)
    rounded.load_state_dict(network.state_dict())
    theirs = reference_logits(rounded.to(PRECISIONS[precision]).eval(), image)
    return reference_logits(network, image), theirs


def accuracy(run: Run, exact: np.ndarray, theirs: np.ndarray) -> dict:
    """Errors and label agreement, against the reference in float64.

    Args:
        run: What the kernels gave.
        exact: Logits in float64.
        theirs: Logits of PyTorch in the kernels' precision.
    """
    wanted = exact.argmax(-1)
    return {
        # NumPy's maximum keeps a NaN, Python's may lose it.
        "error": float(np.max([relative_error(one, exact) for one in run.logits])),
        "labels": float(np.min([(one == wanted).mean() for one in run.labels])),
        "torch_error": relative_error(theirs, exact),
        "torch_labels": float((theirs.argmax(-1) == wanted).mean()),
        "labels_are_argmax": bool((run.labels == run.logits.argmax(-1)).all()),
    }


def resources(run: Run) -> dict[str, Mapping[str, Compiled]] | None:
    """GPU -> kernel -> registers, spills and shared memory.

    None where the tools are not here or do not know the architectures.
    """
    try:
        return {gpu.name: run.machine.compiled(gpu.capability) for gpu in GPUS.values()}
    except ToolError:
        return None


def sass_loops(run: Run, capability: int) -> Mapping[str, Sequence[Loop]] | None:
    """Kernel -> its innermost loops with matrix multiplications; None without the tools."""
    try:
        return run.machine.loops(capability)
    except ToolError:
        return None


def summarise(run: Run, task: Task) -> dict:
    """Everything that is reported of a run, as plain numbers; see `tables.py`."""
    used, loops = resources(run), sass_loops(run, DEVICES[task.device]["capability"])
    kernels = []
    for name in dict.fromkeys(launch.kernel for launch in run.launches):
        launches = [launch for launch in run.launches if launch.kernel == name]
        first = launches[0]
        row = {"kernel": name, "threads": first.threads, **_sums(launches)}
        row["blocks"] = [launch.blocks for launch in launches]
        row["dynamic_shared"] = first.dynamic_shared
        row["sass"] = None if loops is None else [asdict(loop) for loop in loops[name]]
        row["gpus"] = {
            gpu.name: {
                **_residency(used, gpu, launches),
                "seconds": _bounds(launches, gpu),
            }
            for gpu in GPUS.values()
        }
        kernels.append(row)

    totals = _sums(run.launches)
    totals |= {
        "macs_an_image": totals["macs"] / task.batch,
        "minimum_an_image": totals["minimum"] / task.batch,
        "intermediate_bytes": totals["intermediate"],
        "intermediate_bytes_an_image": totals["intermediate"] / task.batch,
        "workspace_bytes": run.workspace,
        "weight_bytes": run.weights,
        "executor_seconds": sum(launch.seconds for launch in run.launches),
    }
    stages = [
        {"stage": stage, **_sums([launch for launch in run.launches if launch.stage == stage])}
        for stage in STAGES
    ]
    model = {}
    for gpu in GPUS.values():
        seconds = [row["gpus"][gpu.name]["seconds"] for row in kernels]
        model[gpu.name] = {
            key: sum(one[key] for one in seconds) for key in ("datasheet", "mma_sync")
        }
        model[gpu.name]["microseconds_an_image"] = model[gpu.name]["mma_sync"] / task.batch * 1e6
        # What of it L1 cannot serve has to come from L2.
        model[gpu.name]["requested_bytes_per_second"] = (
            32 * totals["sectors"] / model[gpu.name]["mma_sync"]
        )
    return {
        "kernels": kernels,
        "stages": stages,
        "totals": totals,
        "model": model,
        "model_is": MODEL,
    }


def _sums(launches: Sequence[Done]) -> dict:
    """Counts of launches together, and ratios of them."""
    row = {"launches": len(launches)}
    row |= {field: sum(getattr(launch, field) for launch in launches) for field in SUMMED}
    return row | {
        "macs_by_minimum": row["macs"] / row["minimum"],
        "instructions_by_mma": row["instructions"] / row["mma"],
        "excess_wavefronts": row["wavefronts"] / max(row["ideal"], 1) - 1,
        "useful_share": row["useful"] / max(32 * row["sectors"], 1),
    }


def _residency(used: dict[str, Mapping[str, Compiled]] | None, gpu, launches: list[Done]) -> dict:
    """Registers, spills, shared memory, resident blocks and waves on a GPU."""
    first = launches[0]
    if used is None:
        return {"resources": None}
    own = used[gpu.name][first.kernel]
    resident = residency(own.resources, first.threads, own.dynamic_shared, gpu)
    at_once = resident["all"] * gpu.multiprocessors
    return {
        "resources": asdict(own.resources),
        "dynamic_shared": own.dynamic_shared,
        "resident": resident,
        # A kernel that fits nowhere has no waves.
        "waves": [launch.blocks / at_once if at_once else None for launch in launches],
        "rounds": [rounds(launch.blocks, gpu) for launch in launches],
    }


def _bounds(launches: list[Done], gpu) -> dict[str, float]:
    """Seconds of each bound summed over launches, and the sums of their maxima.

    `datasheet` takes the tensor rate of the datasheet, `mma_sync` what mma.sync reaches of it.
    """
    sums: dict[str, float] = {}
    for launch in launches:
        found = bounds(launch.work, gpu)
        reached = found | {"tensor": found["tensor"] / gpu.mma_share}
        found |= {"datasheet": max(found.values()), "mma_sync": max(reached.values())}
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + value
    return sums
