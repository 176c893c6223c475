"""A launch as plain data: which kernel, on what, how cut into programs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

AUTOTUNE = "DSSNET_FAST_TRITON_AUTOTUNE"

# How `tl.dot` multiplies float32: exactly, as three products of TF32 parts on tensor cores (an
# error like float32's own), or rounded to TF32.
PRECISIONS = ("ieee", "tf32x3", "tf32")

# The pitch of maps, bytes of pointers: what compilers are promised, so that loads are vectors.
ALIGNMENT = 16


# Sizes of images are never compiled in (`do_not_specialize` of each kernel): a kernel is compiled
# once for a network, whatever images come.


@dataclass(frozen=True)
class Config:
    """How a kernel is cut and compiled.

    Attributes:
        blocks: Values of the kernel's constants that only affect speed.
        num_warps: Of a program.
        num_stages: How many steps of a loop are in flight.
    """

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: A function under `triton.jit`.
        arguments: Of the kernel by name: tensors (contiguous in the channels, pointers aligned
            to `ALIGNMENT` bytes), numbers, and None where a constant says that it is not used.
        constants: What is compiled in and changes what is computed.
        configs: How it may be cut; the first is the default.
        grid: From the blocks of a config to the number of programs.
    """

    kernel: triton.JITFunction
    arguments: Mapping[str, Tensor | int | None]
    constants: Mapping[str, int | str | bool]
    configs: Sequence[Config]
    grid: Callable[[Mapping[str, int]], int]

    def run(self) -> None:
        """Queue it on the device of its tensors.

        With `DSSNET_FAST_TRITON_AUTOTUNE=1` the fastest config for the sizes is found when they
        are first seen, and remembered on disk; otherwise the first that fits the device is taken.

        Raises:
            OutOfResources: None fits.
        """
        if os.environ.get(AUTOTUNE) == "1" and len(self.configs) > 1:
            kernel = _tuned(self.kernel, _Configs(self.configs), tuple(self._sizes()))

            def grid(meta: Mapping[str, int]) -> tuple[int]:
                return (self.grid(meta),)

            kernel[grid](**self.arguments, **self.constants, enable_fp_fusion=True)
            return
        *others, last = self.configs
        for config in others:
            key = (self.kernel, *self.constants.values(), *_key(config))
            if key not in _TOO_LARGE:
                try:
                    return self._run(config)
                except OutOfResources:
                    _TOO_LARGE.add(key)
        self._run(last)

    def _run(self, config: Config) -> None:
        self.kernel[(self.grid(config.blocks),)](
            **self.arguments,
            **self.constants,
            **config.blocks,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )

    def _sizes(self) -> list[str]:
        """Names of everything that the best config depends on."""
        numbers = [name for name, value in self.arguments.items() if isinstance(value, int)]
        return [*numbers, *self.constants]


# Configs that a device had too little memory for. In a process with GPUs of several kinds all take
# what fits the smallest.
_TOO_LARGE: set[Hashable] = set()


def _key(config: Config) -> tuple[Hashable, ...]:
    """The config as something that has a hash."""
    return (*sorted(config.blocks.items()), config.num_warps, config.num_stages)


class _Configs(tuple):
    """Configs as a key of a cache."""

    def __hash__(self) -> int:
        return hash(tuple(map(_key, self)))


@functools.cache
def _tuned(
    kernel: triton.JITFunction, configs: _Configs, sizes: tuple[str, ...]
) -> triton.runtime.Autotuner:
    choices = [
        triton.Config(dict(c.blocks), num_warps=c.num_warps, num_stages=c.num_stages)
        for c in configs
    ]
    return triton.autotune(choices, key=list(sizes), cache_results=True)(kernel)


def is_exact(x: Tensor) -> bool:
    """Whether it is float32, of which half as many numbers fit in a program's registers."""
    return x.element_size() == 4


def power_of_2(n: int) -> int:
    """The smallest power of two that is not below `n`."""
    return triton.next_power_of_2(n)


def cdiv(n: int, by: int) -> int:
    """Whole blocks of `by` that hold `n`."""
    return -(-n // by)
