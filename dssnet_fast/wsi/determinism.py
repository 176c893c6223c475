"""The same bytes whatever the number of threads and the size of batches.

The kernels of the backends `cpu`, `cuda` and `triton` compute an image alike however many there are
and however many threads take part. PyTorch's own convolutions may be others for other batches and
numbers of threads; they are given one image and, on a CPU, one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dssnet_fast.wsi.network import Network


def make_deterministic(net: Network) -> None:
    """Set this process's PyTorch so that `net` gives the same bits at every call."""
    import torch

    if net.backend_name != "torch":
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if net.device.type == "cpu":
        torch.set_num_threads(1)
