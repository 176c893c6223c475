"""A run of the whole network on the PTX executor, counted: `python -m tests.ptx.report`.

Run it from the root of the repository, with the extension installed (`pip install -e .`). The
launch plan is the one that the named GPU would get. Labels are what is counted; one more launch of
the last kernel gives the logits that are compared with the reference.

Counts are those of the PTX: exact, but for what ptxas makes better before a GPU runs it (address
arithmetic, moves). Times are a model, see roofline.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dssnet_fast import cli
from dssnet_fast.backends import PRECISIONS
from dssnet_fast.checkpoint import read_checkpoint
from dssnet_fast.parity import reference_logits, relative_error
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.python_ref.images import read_image
from dssnet_fast.python_ref.network import SCALE, DSSNet
from dssnet_fast.weights import FoldedWeights, fold_checkpoint, is_weight_file, load, unfold

from .counters import Counters
from .global_memory import DeviceMemory
from .lanes import LaneSet
from .minimum import minimum_macs
from .patterns import SECTOR, PatternCache, Site, distinct, relative, warp_rows
from .plans import DEVICES, Executed, device_properties, run_plan, shipped_kernels
from .roofline import GPUS, Work, bounds, residency, rounds
from .sass import disassemble, innermost_loops
from .toolchain import KernelResources, ToolError, ptxas_report

MODEL = "model, not a measurement"
SHARED = ("shared_load", "shared_store", "shared_atomic", "ldmatrix", "stmatrix", "cp_async")


# --- what was run --------------------------------------------------------------------------------


class CountingMemory(DeviceMemory):
    """Device memory that also counts the bytes that requests use.

    Attributes:
        useful: Distinct bytes of each request, summed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.useful = 0
        self._sites: dict[tuple[Site, int], Site] = {}

    def count(self, core, direction, b, sel, addr, at, size, sectors, times=1):
        """As `DeviceMemory.count`, and `useful`."""
        DeviceMemory.count(core, direction, b, sel, addr, at, size, sectors, times)
        key = sectors, size
        if key not in self._sites:
            self._sites[key] = Site(distinct_addresses, 1)
        if at is None:
            found = self._sites[key](sel, addr)
        else:
            found = distinct_addresses(LaneSet(core, sel.lanes()[at]), addr[at])
        self.useful += found * size * times


DISTINCT = PatternCache(lambda rows: distinct(np.sort(rows, axis=1)).sum(axis=1))


def distinct_addresses(sel: LaneSet, addresses: np.ndarray) -> int:
    """Of a warp-wide access, summed over the warps."""
    rows, active = warp_rows(addresses, sel)
    return DISTINCT.total(relative(rows, active, SECTOR))


@dataclass(frozen=True)
class Done:
    """One launch, counted for the whole batch.

    Attributes:
        kernel: Its name.
        grid: As launched on a GPU.
        threads: Of a block.
        dynamic_shared: Bytes of shared memory that the launch asks for.
        minimum: Multiply-accumulates that the folded graph needs.
        macs: Done on tensor cores.
        mma: Instructions that did them.
        instructions: Of warps, all.
        wavefronts: Of shared memory.
        ideal: Wavefronts without bank conflicts.
        sectors: Of global memory, requested.
        useful: Distinct bytes that requests used.
        unique_read: Distinct bytes read.
        unique_written: As `unique_read`.
        intermediate: Distinct bytes written to the workspace.
        seconds: That the executor took.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    dynamic_shared: int
    minimum: int
    macs: int
    mma: int
    instructions: int
    wavefronts: int
    ideal: int
    sectors: int
    useful: int
    unique_read: int
    unique_written: int
    intermediate: int
    seconds: float

    @property
    def blocks(self) -> int:
        """In the grid."""
        return int(np.prod(self.grid))

    @property
    def work(self) -> Work:
        """For the roofline."""
        unique = self.unique_read + self.unique_written
        return Work(
            self.blocks, self.macs, self.wavefronts, self.instructions, self.sectors, unique
        )


@dataclass(frozen=True)
class Run:
    """The network run on a batch.

    Attributes:
        labels: uint8 [B, H, W].
        logits: float32 [B, H, W, classes].
        launches: Those that give the labels.
        ptx: Of each kernel, the text of its module.
        workspace: Bytes that the plan asks for.
        weights: Bytes of packed weights.
    """

    labels: np.ndarray
    logits: np.ndarray
    launches: list[Done]
    ptx: dict[str, str]
    workspace: int
    weights: int


@dataclass(frozen=True)
class Task:
    """What to run.

    Attributes:
        folded: The network.
        image: uint8 [H, W, in_channels], both sides multiples of 8; the batch repeats it.
        batch: Images.
        precision: `fp16` or `bf16`.
        device: One of `DEVICES`.
        first_image: Run only the blocks of the first image and multiply what they did. Every
            image is the same and blocks of different images share nothing but the weights, so
            this changes no count.
    """

    folded: FoldedWeights
    image: np.ndarray
    batch: int
    precision: str
    device: str
    first_image: bool

    @property
    def images_run(self) -> int:
        """How many the executor computes."""
        return 1 if self.first_image else self.batch


def run_cuda(task: Task, progress: Callable[[str], None]) -> Run:
    """The kernels of csrc/cuda.

    Raises:
        InputError: The extension or the kernels are not here, or the network cannot run so.
    """
    from dssnet_fast.backends.cuda import native
    from dssnet_fast.backends.cuda.engine import network_of
    from dssnet_fast.backends.cuda.operands import operands

    if native.problem() is not None:
        raise InputError(native.problem())
    if task.folded.config.block != "wneck":
        raise InputError(
            f"the CUDA kernels compute W-NECK blocks; this network has "
            f"{task.folded.config.block} blocks"
        )
    extension = native.module()
    network = network_of(task.folded.config, extension)
    height, width = task.image.shape[:2]
    shape = (task.batch, height, width)
    device = device_properties(extension, task.device)
    weights = extension.pack(
        network, task.precision, operands(task.folded, extension.Sizes(network))
    )

    def plan(output: str):
        return extension.plan(network, "all", *shape, task.precision, "uint8", output, device)

    try:
        both = with_logits(extension, plan("labels"), plan("logits"), task.first_image)
    except extension.PlanError as error:
        raise InputError(str(error)) from error
    try:
        modules = {launch.module: shipped_kernels(launch.module) for launch in both.launches}
    except FileNotFoundError as error:
        raise InputError(f"no kernel images are installed, and compiling them {error}") from error
    minima = minimum_macs(task.folded.config, *shape)
    roles = {buffer.name: buffer.role.name for buffer in both.buffers}
    launches, ptx, memory = [], {}, CountingMemory()

    def done(executed: Executed) -> None:
        number, kernel = len(launches) + 1, executed.launch.kernel
        progress(f"{number}/{len(both.launches)} {kernel} {executed.seconds:.1f} s")
        useful, memory.useful = memory.useful, 0
        if number > len(minima):  # the one that gives the logits
            return
        start, minimum = minima[number - 1]
        if not kernel.startswith(start):
            raise AssertionError(f"launch {number} is {kernel}, expected {start}...")
        ptx[kernel] = modules[executed.launch.module]
        launches.append(counted(executed, task, roles, useful, minimum))

    images = np.repeat(task.image[None], task.batch, axis=0)
    labels, logits = run_plan(
        both, weights, [images], ptx=modules.__getitem__, count=True, done=done, memory=memory
    )
    classes = task.folded.config.classes
    some = slice(task.images_run)
    return Run(
        labels.reshape(shape)[some],
        logits.view(np.float32).reshape(*shape, classes)[some],
        launches,
        ptx,
        both.workspace_bytes,
        len(weights),
    )


def with_logits(extension, labels, logits, first_image: bool):
    """The plan for labels, and after it the launch that gives logits.

    Args:
        extension: The module `_native`.
        labels: The plan for labels.
        logits: The plan for logits of the same images.
        first_image: Whether to launch only the blocks of the first image.
    """
    answer = next(n for n, buffer in enumerate(logits.buffers) if buffer.name == "answer")
    last = logits.launches[-1]
    relocations = [
        extension.Relocation(
            r.offset, len(labels.buffers) if r.buffer == answer else r.buffer, r.addend
        )
        for r in last.relocations
    ]
    launches = [(launch, launch.relocations) for launch in labels.launches]
    launches = [
        extension.Launch(
            launch.module,
            launch.kernel,
            (*launch.grid[:2], 1) if first_image else launch.grid,
            launch.threads,
            launch.shared_bytes,
            launch.parameters,
            relocations,
        )
        for launch, relocations in [*launches, (last, relocations)]
    ]
    own = logits.buffers[answer]
    extra = extension.Buffer("logits", own.role, own.bytes)
    return extension.Plan(launches, [*labels.buffers, extra], labels.workspace_bytes)


def counted(
    executed: Executed, task: Task, roles: dict[str, str], useful: int, minimum: int
) -> Done:
    """What a launch did, for the whole batch."""
    c: Counters = executed.counters
    times = task.batch // task.images_run
    shared = [getattr(c, kind) for kind in SHARED]
    traffic = (c.global_load, c.global_store, c.global_atomic)

    def unique(direction: str, *wanted: str) -> int:
        """Distinct bytes; all images read the same weights."""
        return sum(
            getattr(buffer, direction).unique_bytes * (1 if roles.get(name) == "weights" else times)
            for name, buffer in c.buffers.items()
            if not wanted or roles.get(name) in wanted
        )

    grid = tuple(executed.launch.grid)
    return Done(
        kernel=executed.launch.kernel,
        grid=(*grid[:2], grid[2] * times),
        threads=executed.launch.threads,
        dynamic_shared=executed.launch.shared_bytes,
        minimum=minimum,
        macs=c.tensor_macs * times,
        mma=sum(c.mma.values()) * times,
        instructions=c.total_warp_instructions * times,
        wavefronts=sum(kind.wavefronts for kind in shared) * times,
        ideal=sum(kind.ideal for kind in shared) * times,
        sectors=sum(direction.sectors for direction in traffic) * times,
        useful=useful * times,
        unique_read=unique("load"),
        unique_written=unique("store"),
        intermediate=unique("store", "workspace"),
        seconds=executed.seconds,
    )


# Kernels by the name that --kernels has for them; those of dssnet_fast.kernels will be another row.
KERNELS: dict[str, Callable[[Task, Callable[[str], None]], Run]] = {"cuda": run_cuda}


# --- what it means -------------------------------------------------------------------------------


def accuracy(run: Run, network: DSSNet, image: np.ndarray, precision: str) -> dict:
    """Errors and label agreement, against the reference in float64.

    Args:
        run: What the kernels gave.
        network: The reference, float64.
        image: uint8 [H, W, in_channels].
        precision: That of the kernels; PyTorch's own run in it is the yardstick.
    """
    exact = reference_logits(network, image)
    rounded = DSSNet(network.config)
    rounded.load_state_dict(network.state_dict())
    theirs = reference_logits(rounded.to(PRECISIONS[precision]).eval(), image)
    wanted = exact.argmax(-1)
    return {
        # NumPy's maximum keeps a NaN, Python's may lose it.
        "error": float(np.max([relative_error(one, exact) for one in run.logits])),
        "labels": float(np.min([(one == wanted).mean() for one in run.labels])),
        "torch_error": relative_error(theirs, exact),
        "torch_labels": float((theirs.argmax(-1) == wanted).mean()),
        "labels_are_argmax": bool((run.labels == run.logits.argmax(-1)).all()),
    }


def resources(run: Run) -> dict[str, dict[str, KernelResources]] | None:
    """GPU -> kernel -> registers, spills and static shared memory.

    None where ptxas is not here or does not know the architectures.
    """
    texts = dict.fromkeys(run.ptx.values())
    found = {}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            for gpu in GPUS.values():
                reports = workers.map(
                    lambda text, gpu=gpu: ptxas_report(text, gpu.capability), texts
                )
                found[gpu.name] = {name: one for each in reports for name, one in each.items()}
    except ToolError:
        return None
    return found


def sass_loops(run: Run, capability: int) -> dict[str, list] | None:
    """Kernel -> its innermost loops with matrix multiplications; None without the tools."""
    try:
        texts = [disassemble(text, capability) for text in dict.fromkeys(run.ptx.values())]
    except ToolError:
        return None
    if None in texts:
        return None
    loops = {name: found for text in texts for name, found in innermost_loops(text).items()}
    return {kernel: loops.get(kernel, []) for kernel in run.ptx}


def summarise(run: Run, task: Task) -> dict:
    """Everything that is reported of a run, as plain numbers; see `print_report`."""
    used, loops = resources(run), sass_loops(run, DEVICES[task.device]["capability"])
    kernels = []
    for name in run.ptx:
        launches = [launch for launch in run.launches if launch.kernel == name]
        first = launches[0]

        def total(field: str, launches=launches) -> int:
            return sum(getattr(launch, field) for launch in launches)

        row = {"kernel": name, "launches": len(launches), "threads": first.threads}
        row["blocks"] = [launch.blocks for launch in launches]
        for field in (
            *("macs", "minimum", "mma", "instructions", "wavefronts", "ideal", "sectors"),
            *("useful", "unique_read", "unique_written", "intermediate"),
        ):
            row[field] = total(field)
        row["macs_by_minimum"] = row["macs"] / row["minimum"]
        row["instructions_by_mma"] = row["instructions"] / row["mma"]
        row["excess_wavefronts"] = _excess(row)
        row["useful_share"] = _useful_share(row)
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

    def whole(field: str) -> int:
        return sum(row[field] for row in kernels)

    totals = {
        "launches": len(run.launches),
        "macs": whole("macs"),
        "minimum": whole("minimum"),
        "macs_an_image": whole("macs") / task.batch,
        "minimum_an_image": whole("minimum") / task.batch,
        "intermediate_bytes": whole("intermediate"),
        "intermediate_bytes_an_image": whole("intermediate") / task.batch,
        "workspace_bytes": run.workspace,
        "weight_bytes": run.weights,
        "executor_seconds": sum(launch.seconds for launch in run.launches),
    }
    sums = {field: whole(field) for field in ("wavefronts", "ideal", "useful", "sectors")}
    totals |= {"excess_wavefronts": _excess(sums), "useful_share": _useful_share(sums)}
    model = {}
    for gpu in GPUS.values():
        seconds = [row["gpus"][gpu.name]["seconds"] for row in kernels]
        model[gpu.name] = {
            key: sum(one[key] for one in seconds) for key in ("datasheet", "mma_sync")
        }
        model[gpu.name]["microseconds_an_image"] = model[gpu.name]["mma_sync"] / task.batch * 1e6
        # What of it L1 cannot serve has to come from L2.
        model[gpu.name]["requested_bytes_per_second"] = (
            32 * whole("sectors") / model[gpu.name]["mma_sync"]
        )
    return {"kernels": kernels, "totals": totals, "model": model, "model_is": MODEL}


def _excess(row: dict) -> float:
    return row["wavefronts"] / max(row["ideal"], 1) - 1


def _useful_share(row: dict) -> float:
    return row["useful"] / max(32 * row["sectors"], 1)


def _residency(used: dict | None, gpu, launches: list[Done]) -> dict:
    """Registers, spills, static shared memory, resident blocks and waves on a GPU."""
    first = launches[0]
    if used is None:
        return {"resources": None}
    own = used[gpu.name][first.kernel]
    resident = residency(own, first.threads, first.dynamic_shared, gpu)
    at_once = resident["all"] * gpu.multiprocessors
    return {
        "resources": asdict(own),
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


# --- for people ----------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read as it is."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return " | ".join([first, *rest])

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join([f"| {line(headings)} |", f"|{rule}|", *(f"| {line(r)} |" for r in rows)])


def print_report(report: dict) -> None:
    """Print what `body` found."""
    run, error, totals = report["run"], report["accuracy"], report["totals"]
    kernels, batch = report["kernels"], report["run"]["batch"]
    print(
        f"{run['checkpoint']}, {run['image']}: {run['height']} x {run['width']} px, batch {batch}, "
        f"{run['precision']}, the plan of {run['device']}\n"
    )
    if run["first_image_only"]:
        print("Only the blocks of the first image were run; counts are theirs times the batch.\n")
    print(
        f"logits: relative error {error['error']:.2e} against float64 "
        f"(PyTorch in {run['precision']}: {error['torch_error']:.2e})\n"
        f"labels: {error['labels']:.4%} as in float64 "
        f"(PyTorch in {run['precision']}: {error['torch_labels']:.4%})\n"
    )
    print("Counted on the PTX, before ptxas optimises; all launches of a kernel together:\n")
    rows = [
        (
            row["kernel"],
            str(row["launches"]),
            _spread(row["blocks"]),
            f"{row['macs'] / 1e9:.4f}",
            f"{row['minimum'] / 1e9:.4f}",
            f"{row['macs_by_minimum']:.2f}",
            f"{row['instructions_by_mma']:.2f}",
            f"{row['wavefronts'] / 1e6:.3f}",
            f"{row['excess_wavefronts']:.1%}",
            f"{row['sectors'] / 1e6:.3f}",
            f"{row['useful_share']:.1%}",
            f"{(row['unique_read'] + row['unique_written']) / 1e6:.2f}",
        )
        for row in kernels
    ]
    headings = ("kernel", "launches", "blocks", "GMAC", "minimum", "ratio", "instr./MMA")
    headings += ("M wavefronts", "excess", "M sectors", "useful", "unique MB")
    print(table(headings, rows))
    print(
        f"\ntotal: {totals['launches']} launches; {totals['macs'] / 1e9:.4f} GMAC on tensor cores, "
        f"minimum {totals['minimum'] / 1e9:.4f} ({totals['macs'] / totals['minimum']:.2f} times); "
        f"excess wavefronts {totals['excess_wavefronts']:.1%}; "
        f"useful {totals['useful_share']:.1%} of requested sectors; "
        f"intermediate tensors written {totals['intermediate_bytes'] / 1e6:.2f} MB; "
        f"workspace {totals['workspace_bytes'] / 1e6:.2f} MB, "
        f"weights {totals['weight_bytes'] / 1e6:.2f} MB\n"
    )
    _print_resources(kernels)
    _print_sass(kernels, run["device"])
    _print_model(report)


def _print_resources(kernels: list[dict]) -> None:
    names = list(GPUS)
    if kernels[0]["gpus"][names[0]]["resources"] is None:
        print("Registers and residency: not here, they need ptxas.\n")
        return
    print(f"By ptxas, of the very PTX, for {' / '.join(names)}:\n")
    rows = []
    for row in kernels:
        gpus = [row["gpus"][name] for name in names]
        used = [gpu["resources"] for gpu in gpus]
        rows.append(
            (
                row["kernel"],
                str(row["threads"]),
                _each(one["registers"] for one in used),
                _each(one["spill_stores"] + one["spill_loads"] for one in used),
                f"{used[0]['shared']} + {row['dynamic_shared']}",
                _each(gpu["resident"]["registers"] for gpu in gpus),
                _each(gpu["resident"]["shared"] for gpu in gpus),
                _each(gpu["resident"]["warps"] for gpu in gpus),
                _each(gpu["resident"]["all"] for gpu in gpus),
                _each(_spread(gpu["waves"], "{:.2f}") for gpu in gpus),
            )
        )
    headings = ("kernel", "threads", "registers", "spilled bytes", "shared bytes")
    headings += ("blocks/SM by registers", "by shared", "by warps", "blocks/SM", "waves")
    print(table(headings, rows) + "\n")


def _print_sass(kernels: list[dict], device: str) -> None:
    if kernels[0]["sass"] is None:
        print("Machine code: not looked at, needs ptxas and nvdisasm.\n")
        return
    print(f"Machine code for {device}: instructions per HMMA in each innermost loop, static:\n")
    rows = [
        (
            row["kernel"],
            ", ".join(
                f"{loop['instructions'] / loop['mma']:.2f} ({loop['instructions']}/{loop['mma']})"
                for loop in row["sass"]
            )
            or "-",
        )
        for row in kernels
    ]
    print(table(("kernel", "loops"), rows) + "\n")


def _print_model(report: dict) -> None:
    batch = report["run"]["batch"]
    print(
        f"Roofline, {MODEL}. Microseconds, summed over the launches of a kernel; "
        "of each launch the largest bound counts.\n"
    )
    for gpu in GPUS.values():
        keys = ["tensor", "shared", "issue", "dram"] + ["l2"] * (gpu.l2 is not None)
        rows = []
        for row in report["kernels"]:
            seconds = row["gpus"][gpu.name]["seconds"]
            values = [seconds[key] for key in (*keys, "datasheet")]
            if gpu.mma_share < 1:
                values.append(seconds["mma_sync"])
            rows.append((row["kernel"], *(f"{1e6 * value:.2f}" for value in values)))
        headings = [gpu.name, *keys, "time"]
        if gpu.mma_share < 1:
            headings.append(f"time, mma.sync at {gpu.mma_share:.0%}")
        print(table(headings, rows))
        found = report["model"][gpu.name]
        print(f"\n{gpu.name}, {MODEL}: {_an_image(found['datasheet'], batch)}", end="")
        if gpu.mma_share < 1:
            print(
                f" at the datasheet's tensor rate; {_an_image(found['mma_sync'], batch)} "
                f"if mma.sync reaches {gpu.mma_share:.0%} of it",
                end="",
            )
        rate = found["requested_bytes_per_second"] / 1e12
        print(f"; in that time L1 and L2 would have to serve {rate:.1f} TB/s\n")


def _an_image(seconds: float, batch: int) -> str:
    whole = f"{1e6 * seconds:.1f} us"
    return whole if batch == 1 else f"{whole} a batch, {1e6 * seconds / batch:.1f} us an image"


def _spread(values: Sequence[float | None], form: str = "{}") -> str:
    """Different values in order, each once."""
    return ", ".join("-" if v is None else form.format(v) for v in dict.fromkeys(values))


def _each(values) -> str:
    """One value where all are equal, else all with slashes."""
    values = [str(value) for value in values]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


# --- the command ---------------------------------------------------------------------------------


def size(text: str) -> tuple[int, int]:
    """HxW as two numbers."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or 0 in (found := (int(match[1]), int(match[2]))):
        raise argparse.ArgumentTypeError(f"must be HxW in pixels, such as 512x512, got {text!r}")
    return found


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx.report",
        description="Run the whole network on the PTX executor: errors, counts per kernel, and "
        "what they would take on A100, H100 and RTX 4090 by a roofline model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint of any kind, or weight file")
    add("--image", type=Path, required=True, help="PNG, JPEG, TIFF or BMP file")
    add("--crop", type=size, metavar="HxW", help="this much from the top left (default: all)")
    add("--batch", type=positive, default=1, help="the image so many times")
    add("--precision", choices=("fp16", "bf16"), default="fp16")
    add("--kernels", choices=("cuda", "triton"), default="cuda")
    add("--device", choices=tuple(DEVICES), default="H100", help="whose launch plan")
    add(
        "--first-image-only",
        action="store_true",
        help="run the blocks of one image of the batch and multiply their counts: all images are "
        "equal and share nothing but the weights",
    )
    add("--json", type=Path, metavar="FILE", help="write everything there, too")
    add("--save-logits", type=Path, metavar="FILE", help="write the logits as .npy, [B, H, W, C]")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def read_network(path: Path) -> tuple[FoldedWeights, DSSNet]:
    """Folded weights, and the float64 reference that they should agree with."""
    if is_weight_file(path):
        folded = load(path)
        return folded, unfold(folded)
    checkpoint = read_checkpoint(path)
    return fold_checkpoint(checkpoint), checkpoint.reference()


def read_pixels(path: Path, channels: int, crop: tuple[int, int] | None) -> np.ndarray:
    """uint8 [H, W, channels]: the crop, with gray at the bottom and right to multiples of 8.

    Raises:
        InputError: The image cannot be read, or is smaller than the crop.
    """
    pixels = read_image(path, channels)
    height, width = crop or pixels.shape[:2]
    if height > pixels.shape[0] or width > pixels.shape[1]:
        raise InputError(
            f"{path}: --crop {height}x{width} is larger than the image, "
            f"{pixels.shape[0]}x{pixels.shape[1]}"
        )
    padding = ((0, -height % SCALE), (0, -width % SCALE), (0, 0))
    return np.pad(pixels[:height, :width], padding, constant_values=128)


def body(arguments: argparse.Namespace) -> int | None:
    """Run and report as the arguments say."""
    if arguments.kernels not in KERNELS:
        print(f"tests.ptx.report: there are no {arguments.kernels} kernels yet", file=sys.stderr)
        return 2
    folded, network = read_network(arguments.checkpoint)
    image = read_pixels(arguments.image, folded.config.in_channels, arguments.crop)
    task = Task(
        folded,
        image,
        arguments.batch,
        arguments.precision,
        arguments.device,
        arguments.first_image_only,
    )
    run = KERNELS[arguments.kernels](task, _progress)
    report = {
        "run": {
            "checkpoint": arguments.checkpoint.name,
            "image": arguments.image.name,
            "height": image.shape[0],
            "width": image.shape[1],
            "batch": task.batch,
            "precision": task.precision,
            "device": task.device,
            "kernels": arguments.kernels,
            "first_image_only": task.first_image,
        },
        "accuracy": accuracy(run, network, image, task.precision),
        **summarise(run, task),
    }
    print_report(report)
    if arguments.json is not None:
        with atomic_write(arguments.json) as temporary:
            Path(temporary).write_text(json.dumps(report, indent=1) + "\n")
    if arguments.save_logits is not None:
        with atomic_write(arguments.save_logits) as temporary, open(temporary, "wb") as file:
            np.save(file, run.logits)
    return None


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (the process's own by default) and run `body`."""
    return cli.run("report", make_parser().parse_args(argv), body)


if __name__ == "__main__":
    sys.exit(main())
