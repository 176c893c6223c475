"""How long each variant is trained: an equal number of steps, or equal time."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dssnet_fast import outputs
from dssnet_fast.python_ref.data import Crops
from dssnet_fast.python_ref.processes import Process
from dssnet_fast.python_ref.training import Trainer, TrainingOptions
from dssnet_fast.study.data import StudyData
from dssnet_fast.study.grids import ALL, Variant
from dssnet_fast.study.runs import make_trainer

ROUNDS = 7  # of timed steps
_WARM_UP = 2


def steps_in_epochs(epochs: float, data: StudyData, options: TrainingOptions) -> int:
    """Steps of so many passes over all training images, by the sampling of `options`."""
    crops = Crops(data.training(ALL), options.crop, 0, options.sampling)
    return max(1, round(epochs * (len(crops) // options.batch)))


def steps_in_minutes(minutes: float, seconds_per_step: float) -> int:
    """Steps that fit into a time, at least one."""
    return max(1, int(60 * minutes / seconds_per_step))


def seconds_per_step(
    variants: Sequence[Variant], data: StudyData, process: Process, path: Path
) -> dict[str, float]:
    """Seconds of a training step with the cutting of its crops, by `Variant.key`.

    Measured once: what `path` holds of all variants is taken from there, so that a study that is
    continued gives each the same number of steps again.

    Args:
        variants: To be measured side by side, if `path` lacks one of them.
        data: What is trained on.
        process: Where.
        path: A JSON file, written when anything was measured.
    """
    kept = json.loads(path.read_text()) if path.exists() else {}
    keys = [variant.key for variant in variants]
    if all(key in kept for key in keys):
        return kept
    with tempfile.TemporaryDirectory() as folder:
        trainers = [
            make_trainer(v, v.run_options(1, 0), data, Path(folder, str(number)), process)
            for number, v in enumerate(variants)
        ]
        measured = dict(zip(keys, median_seconds(trainers), strict=True))
    outputs.write_json(path, measured)
    return measured


def median_seconds(trainers: Sequence[Trainer]) -> list[float]:
    """Of a step of each; they take turns, so that a busy machine slows down all of them."""
    batches = [_endless(trainer.loader) for trainer in trainers]
    times: list[list[float]] = [[] for _ in trainers]
    for _ in range(_WARM_UP + ROUNDS):
        for trainer, batch, seconds in zip(trainers, batches, times, strict=True):
            trainer.network.train()
            started = time.perf_counter()
            trainer.step(*next(batch))
            if trainer.process.device.type == "cuda":
                torch.cuda.synchronize(trainer.process.device)
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds[_WARM_UP:]) for seconds in times]


def _endless(loader: DataLoader) -> Iterator:
    while True:
        yield from loader
