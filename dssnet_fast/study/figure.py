"""A study's results as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.study.results import SIZE, Row

_PANELS = ("mean IoU", "AP 0.5")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write a panel a score: every run a dot, the mean of a row a line; and one of the cost.

    The cost is that of inference, or where it is the same for all, that of a training step.

    Args:
        rows: Those without a finished run are left out.
        title: What the study compares.
        path: The .png file to write or replace.

    Raises:
        OSError: It cannot be written.
    """
    # The plain object interface: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.scores]
    by_kind = len({row.tested for row in rows}) > 1
    names = [f"{row.name}, on {row.tested}" if by_kind else row.name for row in rows]
    figure = Figure(figsize=(10, 1.4 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PANELS) + 1, sharey=True)
    for panel, score in zip(panels, _PANELS, strict=False):
        for place, row in enumerate(rows):
            found = [value[score] for value in row.values() if value[score] is not None]
            if found:
                mean = statistics.fmean(found)
                panel.plot([mean, mean], [place - 0.3, place + 0.3], color="C0", lw=2)
                panel.plot(found, [place] * len(found), "o", color="C1", ms=5, alpha=0.8)
        panel.set(xlabel=score)
        panel.margins(x=0.15)
        panel.grid(axis="x", alpha=0.3)
    cost = panels[-1]
    if len({row.macs for row in rows}) > 1:
        values, label = [row.macs / 1e9 for row in rows], f"GMAC of inference, {SIZE} x {SIZE} px"
    else:
        values, label = [row.seconds for row in rows], "seconds a training step"
    bars = cost.barh(range(len(rows)), values, color="0.7")
    cost.bar_label(bars, fmt="%.3g", padding=3)
    cost.margins(x=0.2)
    cost.set(xlabel=label)
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].invert_yaxis()
    figure.suptitle(f"{title}; dots: runs, lines: means")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)
