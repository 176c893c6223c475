"""The backend `triton`: kernels for every GPU that Triton reaches, NVIDIA's and AMD's.

The names of `dssnet_fast.backends.BackendModule` are here. `operands` lays out the weights,
`stages` says which kernels of `dssnet_fast.kernels` run on which maps, `program` where maps lie,
and `engine` runs them. With `TRITON_INTERPRET=1` in the environment before anything of Triton is
imported, the kernels run on the CPU in Triton's interpreter: thousands of times slower, but
anywhere.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import torch

from dssnet_fast.backends import PRECISIONS as DTYPES

if TYPE_CHECKING:
    from dssnet_fast.backends.triton.engine import TritonBackend
    from dssnet_fast.python_ref.config import DSSNetConfig
    from dssnet_fast.weights import FoldedWeights

PRECISIONS = ("fp32", "bf16", "fp16")

_OLDEST = 75  # with tensor cores for fp16
_AMPERE = 80  # with tensor cores for bf16 and TF32


def why_not(device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
    """The first thing in the way of running `config` on `device`; None when it can."""
    interpreted = _is_interpreted()
    if interpreted and device.type != "cpu":
        return f"runs in Triton's interpreter, on the CPU; unset TRITON_INTERPRET for {device}"
    if not interpreted and device.type != "cuda":
        return f"needs a GPU, or TRITON_INTERPRET=1 for Triton's interpreter; {device} is none"
    try:
        import dssnet_fast.kernels  # noqa: F401
    except ImportError as error:
        return f"needs Triton, which cannot be imported ({error}); pip install triton"
    if precision not in PRECISIONS:
        return f"computes in {', '.join(PRECISIONS)}; for {precision} use backend cpu"
    if interpreted:
        return None
    if not torch.cuda.is_available():
        return f"needs a GPU; torch finds none, so no {device}"
    if torch.version.hip is None:
        needed = _AMPERE if precision == "bf16" else _OLDEST
        if _capability(device) < needed:
            return (
                f"{precision} needs compute capability {needed / 10} or newer; "
                f"{device} has {_capability(device) / 10}"
            )
    return None


def why_not_automatic(device: torch.device) -> str | None:
    """Why `auto` passes this backend by where it could run; None when it does not."""
    return "runs in Triton's interpreter, very slowly" if device.type == "cpu" else None


def why_no_gain(device: torch.device, precision: str) -> str | None:
    """Where a precision runs, it has instructions of its own."""
    return None


def unmet(device: torch.device) -> str | None:
    """Its variables ask for nothing that it may not have."""
    return None


def best_precision(device: torch.device) -> str:
    """Half precision on a GPU, where it is many times faster; exact in the interpreter."""
    return "fp16" if device.type == "cuda" else "fp32"


def make(weights: FoldedWeights, device: torch.device, precision: str) -> TritonBackend:
    """Lay out the weights; kernels are compiled when they are first launched."""
    from dssnet_fast.backends.triton.engine import TritonBackend

    return TritonBackend(weights, device, DTYPES[precision], _multiplication(device))


def _is_interpreted() -> bool:
    """What Triton decided when it was imported, or will: importing it takes a second."""
    kernels = sys.modules.get("dssnet_fast.kernels")
    if kernels is not None:
        return kernels.is_interpreted()
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _multiplication(device: torch.device) -> str:
    """How float32 is multiplied: in TF32 only where `set_float32_matmul_precision` said so."""
    if device.type != "cuda" or torch.version.hip or _capability(device) < _AMPERE:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
