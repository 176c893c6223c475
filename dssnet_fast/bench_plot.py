"""The bench command's results as a picture."""

from __future__ import annotations

from pathlib import Path

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write


def require() -> None:
    """Raise InputError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from error


def draw(rows: list[dict], path: Path) -> None:
    """Write bars of images a second, one panel for each size and batch; skipped rows are left out.

    Args:
        rows: What `bench.measure` returns.
        path: The .png file to write or replace.

    Raises:
        OSError: It cannot be written.
    """
    # The plain object interface: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[tuple[int, int], list[dict]] = {}
    for row in rows:
        if "skipped" not in row:
            panels.setdefault((row["size"], row["batch"]), []).append(row)
    height = 1.2 + 0.28 * max(map(len, panels.values()))
    figure = Figure(figsize=(8, height * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for ((size, batch), shown), panel in zip(panels.items(), axes, strict=True):
        names = [row["contestant"] for row in shown]
        bars = panel.barh(names, [row["images_per_second"] for row in shown])
        panel.bar_label(bars, fmt="%.1f", padding=3)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set(title=f"{size} x {size} px, batch {batch}", xlabel="images/s")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
