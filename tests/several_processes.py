"""Two training processes over gloo on this machine; run by test_training.py.

    python several_processes.py DATA OUT

Runs each of `SCENARIOS` in a folder of its own below OUT and prints one line a process: scenario,
rank and how training ended there. Forks instead of torchrun, so that nothing ends a process that
waits for another and torch is imported only once.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from pathlib import Path

import torch

from dssnet_fast.python_ref import training
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.data import find_pairs, split

CONFIG = DSSNetConfig(width=9, features=8, blocks=1, super_resolution=False)
OPTIONS = training.TrainingOptions(
    epochs=2, batch=4, crop=32, learning_rate=0.01, seed=5, augment=False
)


# Drawing takes longer than training here, and is of no interest.
training.write_figure = lambda path, history: None


def loss_fails(rank: int) -> None:
    """Process 1 alone computes a loss that is not a number, in its second epoch."""
    loss, calls = training.dssnet_loss, []

    def spoilt(*arguments):
        result = loss(*arguments)
        calls.append(result)
        if rank == 1 and len(calls) == 3:
            result = result._replace(total=result.total * float("nan"))
        return result

    training.dssnet_loss = spoilt


def save_fails(rank: int) -> None:
    """The disk of process 0 is full."""

    def save(*arguments):
        raise OSError(28, "No space left on device")

    torch.save = save


SCENARIOS = {"normal": lambda rank: None, "loss-fails": loss_fails, "save-fails": save_fails}


def process(scenario: str, rank: int, data: Path, out: Path) -> None:
    # A process that hangs says where and ends.
    faulthandler.dump_traceback_later(90, exit=True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    SCENARIOS[scenario](rank)
    parts = split(find_pairs(data), 0.3)
    try:
        best = training.train(CONFIG, OPTIONS, *parts, ["background", "nucleus"], out, "cpu")
        end = f"best {best:.9f}"
    except (ValueError, OSError, RuntimeError) as error:
        end = f"{type(error).__name__}: {error}"
    # One write, so that the two processes' lines cannot mix.
    os.write(sys.stdout.fileno(), f"{scenario} {rank} {end}\n".encode())


def main(data: Path, out: Path) -> None:
    for scenario in SCENARIOS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        for rank in (0, 1):
            if os.fork() == 0:
                try:
                    process(scenario, rank, data, out / scenario)
                finally:
                    os._exit(0)
        for _ in range(2):
            os.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
