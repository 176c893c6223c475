"""Triton kernels of the inference path, one file a stage; import it as `dssnet_fast.kernels`.

Each file has the kernels of a stage and a launcher for each, which takes tensors and returns a
`launch.Launch`: what to run, as plain data. `dssnet_fast.backends.triton` puts launches together;
docs/triton_kernels.md says how the work is cut and why.
"""

from __future__ import annotations

from .arithmetic import INTERPRETED


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, as the environment said at import."""
    return INTERPRETED.value
