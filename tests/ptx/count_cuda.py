"""The kernels of csrc/cuda on the executor, counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dssnet_fast.python_ref.errors import InputError

from .counting import STAGES, Compiled, CountingMemory, Launched, Run, Task, counted
from .minimum import minimum_macs
from .plans import Executed, device_properties, run_plan, shipped_kernels
from .sass import Loop, disassemble, innermost_loops
from .toolchain import ptxas_report

STAGE_OF = dict(
    zip(("stem_down", "down", "wneck", "fuse_nearest", "segment"), STAGES, strict=True),
    fuse_shuffle="FFM",
)


@dataclass(frozen=True)
class CudaMachine:
    """Kernels of csrc/cuda as machine code: what ptxas makes of the very PTX that ran.

    Attributes:
        ptx: Of each kernel, the text of its module.
        dynamic_shared: Of each kernel, bytes that a launch asks for.
    """

    ptx: Mapping[str, str]
    dynamic_shared: Mapping[str, int]

    def compiled(self, capability: int) -> dict[str, Compiled]:
        """Kernel -> what it takes."""
        texts = dict.fromkeys(self.ptx.values())
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            reports = workers.map(lambda text: ptxas_report(text, capability), texts)
            found = {name: one for each in reports for name, one in each.items()}
        return {name: Compiled(found[name], self.dynamic_shared[name]) for name in self.ptx}

    def loops(self, capability: int) -> dict[str, list[Loop]] | None:
        """Kernel -> its innermost loops."""
        texts = [disassemble(text, capability) for text in dict.fromkeys(self.ptx.values())]
        if None in texts:
            return None
        loops = {name: found for text in texts for name, found in innermost_loops(text).items()}
        return {name: loops.get(name, []) for name in self.ptx}


def run_cuda(task: Task, progress: Callable[[str], None]) -> Run:
    """The kernels of csrc/cuda.

    Raises:
        InputError: The extension or the kernels are not here, or the network cannot run so.
    """
    from dssnet_fast.backends import native
    from dssnet_fast.backends.cuda.engine import network_of
    from dssnet_fast.backends.cuda.operands import operands

    if native.problem() is not None:
        raise InputError(native.problem())
    if task.precision == "fp32":
        raise InputError("the CUDA kernels compute in fp16 and bf16, not in fp32")
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
    launches, ptx, shared, memory = [], {}, {}, CountingMemory()

    def done(executed: Executed) -> None:
        number, kernel = len(launches) + 1, executed.launch.kernel
        progress(f"{number}/{len(both.launches)} {kernel} {executed.seconds:.1f} s")
        useful, memory.useful = memory.useful, 0
        if number > len(minima):  # the one that gives the logits
            return
        start, minimum = minima[number - 1]
        if not kernel.startswith(start):
            raise AssertionError(f"launch {number} is {kernel}, expected {start}...")
        launch = executed.launch
        ptx[kernel], shared[kernel] = modules[launch.module], launch.shared_bytes
        x, y, z = launch.grid
        launched = Launched(
            kernel,
            STAGE_OF[start],
            (x, y, z * task.times),
            launch.threads,
            launch.shared_bytes,
            minimum,
        )
        launches.append(counted(launched, executed.counters, executed.seconds, task, roles, useful))

    # The plan has room for all images, whichever of them run.
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
        CudaMachine(ptx, shared),
        f"the plan of {task.device}",
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
