"""Training runs that are killed at chosen points and then repeated; run by test_training.py.

    python interrupted_run.py DATA OUT

Makes OUT/whole, an uninterrupted run, and one folder for each of `POINTS`, where the run was
killed by SIGKILL at that point and then repeated. Each run is a fork of this process, which has
used no thread, so that torch is imported only once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from dssnet_fast.python_ref import training
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.data import find_pairs, split

CONFIG = DSSNetConfig(width=9, features=8, blocks=1, super_resolution=False)
OPTIONS = training.TrainingOptions(epochs=3, batch=2, crop=32, learning_rate=0.01, seed=5)


def train(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    parts = split(find_pairs(data), 0.3)
    training.train(CONFIG, OPTIONS, *parts, ["background", "nucleus"], out, device="cpu")


# The first optimizer imports much; do it once, not in every fork.
torch.optim.SGD([torch.zeros(1, requires_grad=True)])

# Drawing takes longer than training here, and is of no interest.
training.write_figure = lambda path, history: None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_epoch() -> None:
    step = training.Trainer.step

    def step_or_die(self, *batch):
        result = step(self, *batch)
        if self.epoch == 1 and self.schedule.last_epoch % len(self.loader) == 2:
            die()
        return result

    training.Trainer.step = step_or_die


def die_while_saving(name: str, epoch: int, part: float):
    """Die in an epoch's write of `name`, when `part` of the file is written."""

    def patch() -> None:
        save = torch.save

        def save_or_die(checkpoint, path):
            save(checkpoint, path)
            if checkpoint["epoch"] == epoch and path.name.startswith(f".{name}."):
                os.truncate(path, int(path.stat().st_size * part))
                die()

        torch.save = save_or_die

    return patch


def die_before_log(epoch: int):
    def patch() -> None:
        write = training.write_csv

        def write_or_die(path, history):
            if len(history) == epoch:
                die()
            write(path, history)

        training.write_csv = write_or_die

    return patch


POINTS = {
    "in-epoch": die_in_epoch,
    "in-first-epoch-log": die_before_log(1),
    "saving-best": die_while_saving("best", 1, 0.5),
    "saving-last": die_while_saving("last", 2, 0.5),
    "last-unnamed": die_while_saving("last", 2, 1.0),
    "before-log": die_before_log(2),
    "before-final-log": die_before_log(3),
}


def forked(body) -> int:
    """Run `body` in a copy of this process and return how that ended (0 or -signal)."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(data: Path, out: Path) -> None:
    assert forked(lambda: train(data, out / "whole")) == 0
    for name, patch in POINTS.items():
        folder = out / name

        def killed(patch=patch, folder=folder) -> None:
            patch()
            train(data, folder)

        assert forked(killed) == -signal.SIGKILL, name
        shutil.copytree(folder, out / f"{name}.killed")
        assert forked(lambda folder=folder: train(data, folder)) == 0, name


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
