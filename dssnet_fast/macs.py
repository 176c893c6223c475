"""Multiply-accumulates of a computation, counted from what PyTorch would run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def count(compute: Callable[[], object]) -> int:
    """Multiply-accumulates of all convolutions and matrix products that `compute` runs.

    Nothing has to be computed for real: run it on tensors of the meta device.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2
