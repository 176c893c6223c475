"""The slides of a folder of results: which there are, and what is open of them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.view.memory import Shelf
from dssnet_fast.view.opened import Opened
from dssnet_fast.view.summary import Result, read_result, resolved

_OPEN_SLIDES = 8


class Library:
    """A folder of results.

    Args:
        folder: That of the results.
        slides: A further folder to look for slides in.

    Attributes:
        results: Name to results, in the order of names.
        refused: What is wrong with each summary that cannot be used.

    Raises:
        InputError: There is no such folder, or nothing in it that can be looked at.
    """

    def __init__(self, folder: Path, slides: Path | None = None) -> None:
        for given, option in ((folder, "DIR"), (slides, "--slides")):
            if given is not None and not given.is_dir():
                raise InputError(f"{option} {given}: no such folder")
        self._folder = folder.resolve()
        self._slides = slides
        self._opened: Shelf[Opened] = Shelf(_OPEN_SLIDES)
        self._lock = threading.Lock()
        self.results: dict[str, Result] = {}
        self.refused: list[str] = []
        self.scan()
        if not self.results:
            if self.refused:
                raise InputError("; ".join(self.refused))
            raise InputError(
                f"{folder}: no results of python -m dssnet_fast.wsi; name the folder given to "
                "its --out"
            )

    def scan(self) -> None:
        """Look again which slides there are."""
        with self._lock:
            results, refused = {}, []
            for path in self._summaries():
                try:
                    resolved(path, path)
                    if (result := read_result(path, self._slides)) is not None:
                        results[result.name] = result
                except InputError as error:
                    refused.append(str(error))
            self.results, self.refused = results, refused

    @contextlib.contextmanager
    def open(self, result: Result) -> Iterator[Opened]:
        """Lend the open files of a slide."""
        with self._opened.use((result.name, result.stamp), lambda: Opened(result)) as opened:
            yield opened

    def close(self) -> None:
        """Close all files."""
        self._opened.close()

    def _summaries(self) -> list[Path]:
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise InputError(f"{self._folder}: {error.strerror}") from error
        return [
            self._folder / name
            for name in sorted(names)
            if name.endswith(".json") and not name.startswith(".")
        ]
