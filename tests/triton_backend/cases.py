"""Networks and images that cross every border of the kernels' blocks, and their interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dssnet_fast.backends import PRECISIONS
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import FoldedWeights, fold_checkpoint
from laboratory import specimen
from networks import CONFIGS, SMALL


@dataclass(frozen=True)
class Case:
    """A network, the shape of its images (batch, height, width), and a precision.

    Its weights are random unless they are given.
    """

    config: DSSNetConfig
    shape: tuple[int, int, int]
    precision: str
    weights: FoldedWeights | None = None

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    @cached_property
    def specimen(self) -> tuple[DSSNet, np.ndarray]:
        """The reference and noise to run it on."""
        return specimen(self.config, self.shape)

    @cached_property
    def folded(self) -> FoldedWeights:
        if self.weights is not None:
            return self.weights
        return fold_checkpoint(from_state(released_state(self.specimen[0])))


# Sizes that are no multiple of a tile (64 pixels a side for W-NECK blocks) or of a block of pixels,
# more than one image, fused blocks and separate convolutions, every kind of block, both FFMs.
CASES = {
    "released-fp16": Case(DSSNetConfig(classes=3, blocks=2), (1, 72, 72), "fp16"),
    "released-bf16": Case(DSSNetConfig(classes=2, blocks=1), (1, 24, 72), "bf16"),
    "released-fp32": Case(DSSNetConfig(classes=3, blocks=1), (1, 24, 72), "fp32"),
    "batch-of-tiny": Case(DSSNetConfig(classes=2, blocks=2), (3, 8, 16), "fp16"),
    "gray": Case(CONFIGS["gray"], (2, 24, 40), "fp32"),
    "wide": Case(CONFIGS["wide"], (1, 72, 40), "bf16"),
    "pixel_shuffle": Case(CONFIGS["pixel_shuffle"], (1, 40, 40), "fp16"),
    "widest": Case(DSSNetConfig(width=12, features=128, blocks=1), (1, 24, 40), "fp16"),
    "wdsr_b": Case(CONFIGS["wdsr_b"], (1, 24, 40), "fp16"),
    "bottleneck": Case(CONFIGS["bottleneck"], (1, 24, 40), "fp32"),
    "basic": Case(CONFIGS["basic"], (1, 24, 40), "bf16"),
    "learned-fp32": Case(
        DSSNetConfig(**SMALL, upsampling="pixel_shuffle", in_channels=1), (1, 24, 40), "fp32"
    ),
}


class Interpreted:
    """The backend in Triton's interpreter, in a process of its own.

    Args:
        name: In `CASES`.
        submit: Of a pool of processes that have Triton's interpreter switched on.
    """

    def __init__(self, name: str, submit: Callable) -> None:
        self.name, self.submit = name, submit

    def __getattr__(self, stage: str) -> Callable:
        return lambda *inputs: self.submit(interpret, self.name, stage, *inputs).result()


_BACKENDS = {}


def interpret(name: str, stage: str, *inputs: Tensor | str) -> Tensor | tuple[Tensor, ...]:
    """A stage of a case in this process, whose Triton interprets."""
    from dssnet_fast.backends.triton.engine import TritonBackend

    torch.set_num_threads(1)
    if name not in _BACKENDS:
        case = CASES[name]
        _BACKENDS[name] = TritonBackend(case.folded, torch.device("cpu"), case.dtype)
    return getattr(_BACKENDS[name], stage)(*inputs)
