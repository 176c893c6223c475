"""The backend `cuda`: kernels for NVIDIA GPUs from compute capability 8.0 on, in fp16 and bf16.

The names of `dssnet_fast.backends.BackendModule` are here. `native` finds what `setup.py`
compiled, `kernels` the image for a device, `nvrtc` and `cache` make one where there is none, and
`engine` runs the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import dssnet_fast.backends.native as native

if TYPE_CHECKING:
    from dssnet_fast.backends.cuda.engine import CudaBackend
    from dssnet_fast.python_ref.config import DSSNetConfig
    from dssnet_fast.weights import FoldedWeights

PRECISIONS = ("fp16", "bf16")

_INSTEAD = "use backend triton or torch"
_OLDEST = 80  # the tensor-core and asynchronous copy instructions that the kernels use


def why_not(device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
    """The first thing in the way of running `config` on `device`; None when it can."""
    return _why_no_device(device) or _why_no_network(device, precision, config)


def _why_no_device(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"needs an NVIDIA GPU; {device} is none"
    if torch.version.hip:
        return "needs an NVIDIA GPU; this torch is built for AMD's (ROCm)"
    if native.problem() is not None:
        return native.problem()
    extension = native.module()
    if extension.driver_problem() is not None:
        return extension.driver_problem()
    import dssnet_fast.backends.cuda.kernels as kernels

    capability = extension.device_properties(_index(device)).capability
    if capability < _OLDEST:
        return (
            f"needs compute capability {_OLDEST / 10} (Ampere) or newer; "
            f"{device} has {capability / 10}"
        )
    return kernels.problem(capability)


def _why_no_network(device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
    if config.block != "wneck":
        return f"computes W-NECK blocks; this network has {config.block} blocks: {_INSTEAD}"
    if precision not in PRECISIONS:
        instead = "use backend cpu" if precision == "int8" else _INSTEAD
        return f"computes in {' and '.join(PRECISIONS)}; for {precision} {instead}"
    from dssnet_fast.backends.cuda.engine import network_of

    extension = native.module()
    try:
        # Whether a block's memory suffices depends on the network's sizes, not on the image's.
        extension.plan(
            network=network_of(config, extension),
            stage="all",
            batch=1,
            height=8,
            width=8,
            precision=precision,
            input="uint8",
            output="labels",
            device=extension.device_properties(_index(device)),
        )
    except extension.PlanError as error:
        return f"{error}: {_INSTEAD}"
    return None


def why_not_automatic(device: torch.device) -> str | None:
    """`auto` takes it wherever it runs."""
    return None


def why_no_gain(device: torch.device, precision: str) -> str | None:
    """Where a precision runs, it has instructions of its own."""
    return None


def unmet(device: torch.device) -> str | None:
    """Its variables ask for nothing that it may not have."""
    return None


def best_precision(device: torch.device) -> str:
    """Both are as fast; fp16 is closer to the exact answer."""
    return "fp16"


def make(weights: FoldedWeights, device: torch.device, precision: str) -> CudaBackend:
    """Pack `weights` for `device` and `precision` and load the kernels.

    Raises:
        BackendUnavailable: The driver takes none of the kernels there are.
    """
    import dssnet_fast.backends.cuda.kernels as kernels
    from dssnet_fast.backends.cuda.engine import CudaBackend, TorchDevice

    extension, index = native.module(), _index(device)
    here = TorchDevice(torch.device("cuda", index), extension.device_properties(index))
    return CudaBackend(weights, precision, here, extension, kernels.runner(index))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
