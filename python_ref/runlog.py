"""What a training run leaves to look at: a CSV, TensorBoard events and a figure of the curves."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from .files import atomic_write

Row = dict[str, float]


def write_csv(path: Path, history: list[Row]) -> None:
    """One row an epoch; the whole file is replaced at once.

    `nan` is the IoU of a class that the validation images lack.
    """
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def write_figure(path: Path, history: list[Row]) -> None:
    """Loss and its parts on the left, IoU on the validation images on the right."""
    # The plain object interface: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name in history[0]:
        axes = losses if name.startswith("loss") else scores if "iou" in name else None
        if axes is not None:
            axes.plot(epochs, [row[name] for row in history], label=name.replace("_", " "))
    losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
    scores.set(xlabel="epoch", ylabel="IoU on the validation images", ylim=(0, 1))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


class EventLog:
    """TensorBoard events of a run; events of epochs that are run again are superseded."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def add(self, row: Row) -> None:
        """Add one epoch's values; `row["epoch"]` is the step."""
        for name, value in row.items():
            # A class that the validation images lack has no IoU.
            if name != "epoch" and not math.isnan(value):
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()
