"""The kernels of dssnet_fast.kernels on the executor, counted.

What runs is PTX for compute capability 8.0, each launch under its default config: the same work on
every GPU, though newer ones would run other instructions (`wgmma` on Hopper).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dssnet_fast.backends import PRECISIONS
from dssnet_fast.python_ref.errors import InputError

from .counting import STAGES, Compiled, CountingMemory, Launched, Run, Task, counted
from .minimum import launch_macs, layer_macs
from .sass import Loop, disassemble_cubin, innermost_loops
from .toolchain import triton_resources
from .triton_programs import WEIGHT, Executed, compile_launch, run_program

if TYPE_CHECKING:
    from dssnet_fast.backends.triton.operands import Packed
    from dssnet_fast.backends.triton.program import Program
    from dssnet_fast.kernels.launch import Launch

TARGET = 80
# How the names of a stage's weights begin.
STAGE_OF = dict(
    zip(
        (
            ("downsample.stem", "downsample.strided"),
            ("downsample.1", "downsample.2"),
            ("extract.",),
            ("fuse.",),
            ("segment.",),
        ),
        STAGES,
        strict=True,
    )
)


@dataclass(frozen=True)
class TritonMachine:
    """Kernels as the machine code that Triton makes for each GPU.

    Attributes:
        launches: Of each kernel, one that runs it.
    """

    launches: Mapping[str, Launch]

    def compiled(self, capability: int) -> dict[str, Compiled]:
        """Kernel -> what it takes."""
        found = {}
        for name, launch in self.launches.items():
            kernel = compile_launch(launch, capability)
            # All its shared memory is asked for at launch.
            found[name] = Compiled(replace(triton_resources(kernel), shared=0), kernel.shared)
        return found

    def loops(self, capability: int) -> dict[str, list[Loop]] | None:
        """Kernel -> its innermost loops."""
        found = {}
        for name, launch in self.launches.items():
            kernel = compile_launch(launch, capability)
            text = disassemble_cubin(kernel.binary)
            if text is None:
                return None
            found[name] = innermost_loops(text).get(kernel.name, [])
        return found


def run_triton(task: Task, progress: Callable[[str], None]) -> Run:
    """The kernels of dssnet_fast.kernels.

    Raises:
        InputError: Triton is not here, or interprets kernels instead of compiling them.
    """
    try:
        from dssnet_fast import kernels
        from dssnet_fast.backends.triton.operands import pack
        from dssnet_fast.backends.triton.stages import program
    except ImportError as error:
        raise InputError(f"needs Triton, which cannot be imported ({error})") from error
    if kernels.is_interpreted():
        raise InputError("needs Triton's compiler; unset TRITON_INTERPRET")
    precision = "tf32x3" if task.precision == "fp32" else "ieee"
    dtype = PRECISIONS[task.precision]
    network = pack(task.folded, torch.device("cpu"), dtype, precision)
    config = task.folded.config
    height, width = task.image.shape[:2]
    shape = (task.images_run, height, width)
    both = with_logits(
        program(network, "infer", shape, "labels"), program(network, "infer", shape, "logits")
    )
    layers = layer_macs(config, task.batch, height, width)
    launches, made, memory = [], {}, CountingMemory()

    def done(executed: Executed) -> None:
        launch, weights = executed.launch, weights_of(executed.launch, network)
        name = launch_name(launch, weights)
        number = len(launches) + 1
        progress(f"{number}/{len(both.steps)} {name} {executed.seconds:.1f} s")
        useful, memory.useful = memory.useful, 0
        if number == len(both.steps):  # the one that gives the logits
            return
        if task.first_image:
            _require_whole_blocks(name, launch)
        known = made.setdefault(name, launch)
        if compile_launch(known, TARGET) is not executed.kernel:
            raise AssertionError(f"two kernels are named {name}")
        stage = next(stage for starts, stage in STAGE_OF.items() if weights[0].startswith(starts))
        launched = Launched(
            name,
            stage,
            (executed.grid * task.times, 1, 1),
            32 * executed.kernel.num_warps,
            executed.kernel.shared,
            launch_macs(weights, layers),
        )
        counters = executed.counters
        roles = {
            buffer: "weights"
            if buffer.startswith(WEIGHT)
            else "workspace"
            if buffer in both.offsets
            else "given"
            for buffer in counters.buffers
        }
        launches.append(counted(launched, counters, executed.seconds, task, roles, useful))

    images = np.repeat(task.image[None], task.images_run, axis=0)
    labels = torch.empty(shape, dtype=torch.uint8)
    logits = torch.empty((*shape, config.classes))
    run_program(
        both,
        {"image": torch.from_numpy(images)},
        {"answer": labels, "logits": logits},
        target=TARGET,
        count=True,
        done=done,
        memory=memory,
    )
    if sum(launch.minimum for launch in launches) != sum(layers.values()):
        raise AssertionError("the launches do not compute every layer once")
    return Run(
        labels.numpy(),
        logits.numpy(),
        launches,
        TritonMachine(made),
        "PTX for compute capability 8.0",
        program(network, "infer", (task.batch, height, width), "labels").workspace_bytes,
        sum(tensor.nbytes for tensor in network.tensors.values()),
    )


def with_logits(labels: Program, logits: Program) -> Program:
    """The program for labels, and after it the launch that gives logits of the same image."""
    last = logits.steps[-1]
    extra = replace(
        last,
        make=lambda maps: last.make({**maps, "answer": maps["logits"]}),
        maps=tuple("logits" if name == "answer" else name for name in last.maps),
    )
    return type(labels)(labels.maps, [*labels.steps, extra], {"image", "answer", "logits"})


def weights_of(launch: Launch, network: Packed) -> list[str]:
    """Names of the packed weights that a launch takes."""
    names = {tensor.data_ptr(): name for name, tensor in network.tensors.items()}
    tensors = (value for value in launch.arguments.values() if isinstance(value, torch.Tensor))
    return [names[tensor.data_ptr()] for tensor in tensors if tensor.data_ptr() in names]


def launch_name(launch: Launch, weights: list[str]) -> str:
    """The kernel's name; which layer, where several of different sizes use it."""
    kernel = launch.kernel.__name__
    layer = weights[0].removesuffix(".weight").split(".")
    if kernel == "down":
        return f"down {int(layer[-1]) + 1}"
    if kernel != "convolution":
        return kernel
    found = launch.constants
    place = "block." if "blocks" in layer else ""
    side = f"{found['SIZE']}x{found['SIZE']}"
    return f"convolution {place}{layer[-1]} {side} {found['INPUTS']}>{found['OUTPUTS']}"


def _require_whole_blocks(name: str, launch: Launch) -> None:
    """What one image's blocks do stands for others' only where no block has pixels of two."""
    block = launch.configs[0].blocks.get("BLOCK_M", 1)
    pixels = launch.arguments.get("pixels", launch.arguments.get("cells", 0))
    if pixels % block != 0:
        raise InputError(
            f"--first-image-only: at this size blocks of {name} would hold pixels of two images; "
            "choose sides that are multiples of 64, or run all images"
        )
