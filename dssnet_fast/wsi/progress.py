"""How far a run is, on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dssnet_fast.wsi.prepare import Prepared
from dssnet_fast.wsi.run import Progress
from dssnet_fast.wsi.work import TileTask


class Bar(Progress):
    """A bar that counts megapixels; nothing but lines to show where stderr is no terminal.

    Args:
        quiet: No bar on a terminal either.
    """

    def __init__(self, quiet: bool = False) -> None:
        from tqdm import tqdm

        # tqdm shows nothing by itself where stderr is no terminal.
        self._bar = tqdm(total=0, unit="Mpx", disable=quiet or None, bar_format=_FORMAT)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()

    def slide(self, prepared: Prepared, waiting: Sequence[int]) -> None:
        """See `Progress`."""
        self._bar.total += sum(_megapixels(prepared.cores[number]) for number in waiting)
        self._bar.set_description(prepared.job.name, refresh=True)

    def tile(self, task: TileTask) -> None:
        """See `Progress`."""
        self._bar.update(_megapixels(task.core))

    def say(self, line: str) -> None:
        """See `Progress`."""
        self._bar.write(line, file=sys.stderr)


_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} Mpx, {rate_fmt}, {remaining} left"


def _megapixels(core: object) -> float:
    return core.height * core.width / 1e6
