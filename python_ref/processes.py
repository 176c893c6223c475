"""The processes that train together: one, or as many as torchrun started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process's place among those that train together."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes files and talks."""
        return self.rank == 0

    def summed(self, values: Tensor) -> Tensor:
        """The sum of `values`, on `device`, over all processes; each must call this."""
        if self.count > 1:
            values = values.detach().clone()
            dist.all_reduce(values)
        return values

    def from_leader(self, make: Callable[[], T]) -> T:
        """What `make` returns in the leading process, given to all; each must call this.

        Raises:
            InputError: `make` raised it, or an OSError, in the leading process. All processes
                raise, so that none waits for the others.
        """
        if self.count == 1:
            return make()
        message: list = [None, None]
        if self.leads:
            try:
                message[0] = make()
            except (InputError, OSError) as error:
                message[1] = str(error)
        dist.broadcast_object_list(message, src=0)
        if message[1] is not None:
            raise InputError(message[1])
        return message[0]


@contextlib.contextmanager
def joined(device: str) -> Iterator[Process]:
    """Join the processes that torchrun started; a process on its own otherwise.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`. With several processes, `auto` and `cuda` give
            each its own GPU.

    Raises:
        InputError: The device does not exist.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    chosen = find_device(device)
    if count == 1:
        yield Process(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), count, chosen)
    finally:
        dist.destroy_process_group()


def find_device(name: str) -> torch.device:
    """The device on which `joined` lets this process compute.

    Raises:
        InputError: It does not exist.
    """
    local_rank = None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
    try:
        found = torch.cuda.device_count()
        device = torch.device(("cuda" if found else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    if local_rank is not None:
        if device.index is not None:
            raise InputError(f"several processes cannot share device {name!r}; use cuda")
        device = torch.device("cuda", local_rank)
    if (device.index or 0) >= found:
        raise InputError(f"device {str(device)!r} is not available: torch finds {found} GPU(s)")
    return device
