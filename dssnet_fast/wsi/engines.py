"""Who computes tiles: this process, several on this machine, or Ray's workers.

All of them run `Pipeline`. Several workers are given tiles in groups; a worker that is lost is
replaced, and its group is given to another.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.wsi.determinism import make_deterministic
from dssnet_fast.wsi.memory import give_back_large_blocks
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.pipeline import Pipeline, Threads
from dssnet_fast.wsi.timing import Timing
from dssnet_fast.wsi.work import TileAnswer, TileTask

if TYPE_CHECKING:
    from dssnet_fast.weights import FoldedWeights

_GROUP = 8  # tiles that a worker is given at once
_TRIES = 3  # how often a group is given out when its workers are lost

Computed = tuple[list[TileAnswer], Timing]


class Engine(Protocol):
    """Computes tiles; `run` may be called once."""

    def run(self, tasks: Iterable[TileTask]) -> Iterator[TileAnswer]:
        """Answers in any order."""


class ThisProcess:
    """Everything here."""

    def __init__(self, net: Network, threads: Threads, timing: Timing) -> None:
        self._pipeline = Pipeline(net, threads, timing)

    def run(self, tasks: Iterable[TileTask]) -> Iterator[TileAnswer]:
        """See `Engine`."""
        return self._pipeline.run(tasks)


class Worker(Protocol):
    """Somebody who computes groups of tiles, one after the other."""

    def submit(self, group: list[TileTask]) -> Future[Computed]:
        """Begin with a group."""

    def is_loss(self, error: BaseException) -> bool:
        """Whether an error of a future means that the worker is gone."""

    def close(self) -> None:
        """Let it go."""


class Workers:
    """Several workers.

    Args:
        make: Makes the n-th worker.
        count: How many.
        timing: Where to count what took how long.
    """

    def __init__(self, make: Callable[[int], Worker], count: int, timing: Timing) -> None:
        self._make = make
        self.count = count
        self._timing = timing

    def run(self, tasks: Iterable[TileTask]) -> Iterator[TileAnswer]:
        """See `Engine`."""
        groups = iter(_groups(tasks))
        again: list[tuple[list[TileTask], int]] = []
        idle = list(range(self.count))
        workers: dict[int, Worker] = {}
        running: dict[Future[Computed], tuple[int, list[TileTask], int]] = {}
        try:
            while True:
                while idle:
                    group, tries = again.pop() if again else (next(groups, None), 1)
                    if group is None:
                        break
                    number = idle.pop()
                    if number not in workers:
                        workers[number] = self._make(number)
                    future = workers[number].submit(group)
                    running[future] = number, group, tries
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    number, group, tries = running.pop(future)
                    idle.append(number)
                    error = future.exception()
                    if error is None:
                        answers, timing = future.result()
                        self._timing.merge(timing)
                        yield from answers
                    elif not workers[number].is_loss(error):
                        raise error
                    else:
                        workers.pop(number).close()
                        if tries < _TRIES:
                            again.append((group, tries + 1))
                        else:
                            lost = InputError(
                                f"{tries} workers in a row were lost on this part of the slide "
                                f"({error or type(error).__name__}); too little memory?"
                            )
                            yield from (TileAnswer(task, error=lost) for task in group)
        finally:
            for worker in workers.values():
                worker.close()


def _groups(tasks: Iterable[TileTask]) -> Iterator[list[TileTask]]:
    waiting = iter(tasks)
    while group := list(itertools.islice(waiting, _GROUP)):
        yield group


# --- processes of this machine -------------------------------------------------------------------

_net: Network | None = None


@dataclass(frozen=True)
class PortableNet:
    """A network as it travels to other processes, which pack it anew, for the same backend."""

    kind: type
    weights: FoldedWeights
    backend: str
    precision: str
    deterministic: bool

    @classmethod
    def of(cls, net: Network, deterministic: bool) -> PortableNet:
        """That of a network here."""
        weights = net.folded_weights()
        return cls(type(net), weights, net.backend_name, net.precision, deterministic)

    def unpack(self, threads: int, device: str) -> Network:
        """The network, in a process that it has for itself."""
        import torch

        give_back_large_blocks()
        torch.set_num_threads(threads)
        net = self.kind(self.weights, device, self.backend, self.precision)
        if self.deterministic:
            make_deterministic(net)
        return net


class ProcessWorker:
    """A process of this machine.

    Args:
        net: The network.
        threads: Of the process.
        network_threads: How many the network has on a CPU.
        device: Where the network computes there.
    """

    def __init__(
        self, net: PortableNet, threads: Threads, network_threads: int, device: str
    ) -> None:
        import multiprocessing

        self._threads = threads
        self._pool = ProcessPoolExecutor(
            1,
            # Neither CUDA nor open slides survive a fork.
            multiprocessing.get_context("spawn"),
            initializer=_start_process,
            initargs=(net, network_threads, device),
        )

    def submit(self, group: list[TileTask]) -> Future[Computed]:
        """See `Worker`."""
        return self._pool.submit(_compute, group, self._threads)

    def is_loss(self, error: BaseException) -> bool:
        """See `Worker`."""
        return isinstance(error, BrokenProcessPool)

    def close(self) -> None:
        """See `Worker`."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _start_process(net: PortableNet, network_threads: int, device: str) -> None:
    global _net
    _leave_with_parent()
    # The process that started this one has the same network and has said it.
    logging.getLogger("dssnet_fast").setLevel(logging.ERROR)
    _net = net.unpack(network_threads, device)


def _compute(group: list[TileTask], threads: Threads) -> Computed:
    return compute(_net, group, threads)


def _leave_with_parent() -> None:
    """End when the parent does: it may be killed without a word."""
    import multiprocessing
    from multiprocessing.connection import wait as wait_for

    def watch() -> None:
        wait_for([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def compute(net: Network, group: list[TileTask], threads: Threads) -> Computed:
    """A group's answers, and what took how long."""
    timing = Timing()
    answers = list(Pipeline(net, threads, timing).run(group))
    return [_portable(answer) for answer in answers], timing


def _portable(answer: TileAnswer) -> TileAnswer:
    """An answer that other processes can read: not every library's errors can be pickled."""
    error = answer.error
    if error is None or isinstance(error, (InputError, OSError, MemoryError)):
        return answer
    return TileAnswer(answer.task, error=RuntimeError(f"{type(error).__name__}: {error}"))


def local_workers(
    net: Network, count: int, threads: Threads, timing: Timing, deterministic: bool = False
) -> Workers:
    """Processes of this machine, which share its cores and its GPUs."""
    cores = max((os.cpu_count() or 1) // count, 1)
    portable = PortableNet.of(net, deterministic)

    def make(number: int) -> Worker:
        mine = Threads.for_cores(cores, threads.batch)
        return ProcessWorker(portable, mine, cores, _device(net, number))

    return Workers(make, count, timing)


def _device(net: Network, number: int) -> str:
    import torch

    if net.device.type != "cuda":
        return str(net.device)
    return f"cuda:{(net.device.index + number) % torch.cuda.device_count()}"
