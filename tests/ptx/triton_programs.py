"""Programs of the Triton backend on the executor: the same launches, compiled ahead of time.

Every map becomes a buffer of its own with red zones around it, where the real workspace is one
block of memory; what nobody has written yet is known to be so.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .counters import Counters
from .global_memory import DeviceMemory
from .launch import run
from .toolchain import TritonKernel, compile_triton

if TYPE_CHECKING:
    from dssnet_fast.backends.triton.program import Program
    from dssnet_fast.kernels.launch import Config, Launch

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
}
ALIGNED = ":16"
WEIGHT = "weight "  # how names of buffers that hold weights begin


@dataclass(frozen=True)
class Specialised:
    """What Triton's compiler sees of a launch: what its just-in-time compiler would derive.

    Attributes:
        signature: Types of the arguments that remain, `:16` where divisible by 16.
        constants: Everything that is compiled in.
    """

    signature: Mapping[str, str]
    constants: Mapping[str, object]


def specialise(launch: Launch, config: Config) -> Specialised:
    """Types and constants of a launch under a config."""
    signature, constants = {}, {**launch.constants, **config.blocks}
    parameters = {parameter.name: parameter for parameter in launch.kernel.params}
    for name, value in launch.arguments.items():
        if isinstance(value, Tensor):
            address = value.storage_offset() * value.element_size()
            aligned = not parameters[name].do_not_specialize_on_alignment
            assert address % 16 == 0 or not aligned, f"{name} is not aligned"
            signature[name] = TYPES[value.dtype] + (ALIGNED if aligned else "")
        elif value is None:
            constants[name] = value
        elif parameters[name].do_not_specialize:
            signature[name] = "i32"
        elif value == 1:
            constants[name] = value
        else:
            signature[name] = "i32" + (ALIGNED if value % 16 == 0 else "")
    return Specialised(signature, constants)


def compile_launch(launch: Launch, target: int | str = 80, config: int = 0) -> TritonKernel:
    """The kernel of a launch, for a target, under one of its configs.

    Args:
        target: Compute capability such as 80, or AMD's name of an architecture such as gfx942.
    """
    chosen = launch.configs[config]
    found = specialise(launch, chosen)
    return _compiled(
        launch.kernel,
        tuple(found.signature.items()),
        tuple(found.constants.items()),
        target,
        chosen.num_warps,
        chosen.num_stages,
    )


@functools.cache
def _compiled(kernel, signature, constants, target, num_warps, num_stages) -> TritonKernel:
    return compile_triton(kernel, dict(signature), dict(constants), target, num_warps, num_stages)


@dataclass
class Executed:
    """One launch of a program, done.

    Attributes:
        launch: As the program has it.
        kernel: What it was compiled to.
        grid: Programs.
        counters: What it did.
        seconds: How long the executor took.
    """

    launch: Launch
    kernel: TritonKernel
    grid: int
    counters: Counters
    seconds: float


class _Memory:
    """Tensors as buffers of a `DeviceMemory`: one for each storage."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self._addresses: dict[int, int] = {}
        # Storages must not be freed, or another one might get their address.
        self._kept: list[Tensor] = []

    def add(self, tensor: Tensor, name: str, **options: bool) -> None:
        """The tensor's storage, all of it."""
        storage = tensor.untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8).set_(storage)
        self._addresses[storage.data_ptr()] = self.memory.add(flat.numpy(), name=name, **options)
        self._kept.append(tensor)

    def address(self, tensor: Tensor, name: str) -> int:
        """Where the tensor begins; one that was not added is a weight."""
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self._addresses:
            self.add(tensor, f"{WEIGHT}{len(self._kept)}: {name}", readonly=True)
        return self._addresses[pointer] + tensor.storage_offset() * tensor.element_size()


def run_program(
    program: Program,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    *,
    target: int = 80,
    racecheck: bool = False,
    count: bool = False,
    done: Callable[[Executed], None] | None = None,
    memory: DeviceMemory | None = None,
) -> None:
    """Run all launches of a program, one after another.

    Args:
        program: From `dssnet_fast.backends.triton.stages`.
        inputs: Tensors on the CPU by name.
        outputs: Likewise; written.
        target: Compute capability whose PTX runs.
        racecheck: Also look for unordered accesses.
        count: Count memory traffic.
        done: Called after each launch.
        memory: Where the buffers go; new and empty.

    Raises:
        DeviceFault: A check failed.
    """
    device = _Memory(memory or DeviceMemory())
    tensors = {**inputs, **outputs}
    for name, tensor in inputs.items():
        device.add(tensor, name, readonly=True)
    for name, tensor in outputs.items():
        device.add(tensor, name, uninit=True)
    for name, found in program.maps.items():
        if name not in tensors:
            tensors[name] = torch.zeros(found.shape, dtype=found.dtype)
            device.add(tensors[name], name, uninit=True)
    for step in program.steps:
        launch = step.make(tensors)
        kernel = compile_launch(launch, target)
        config = launch.configs[0]
        signature = specialise(launch, config).signature
        arguments = [
            device.address(value, name) if isinstance(value, Tensor) else value
            for name, value in launch.arguments.items()
            if name in signature
        ]
        grid = launch.grid(config.blocks)
        # Triton's own parameters at the end: scratch memory that these kernels do not use.
        assert not any(kernel.scratch), f"{kernel.name} needs scratch memory"
        arguments += [None] * len(kernel.scratch)
        started = time.perf_counter()
        result = run(
            kernel.ptx,
            kernel.name,
            grid,
            32 * kernel.num_warps,
            arguments,
            kernel.shared,
            memory=device.memory,
            racecheck=racecheck,
            count=count,
        )
        if done is not None:
            seconds = time.perf_counter() - started
            done(Executed(launch, kernel, grid, result.counters, seconds))
