"""Where the time goes: seconds of work, of waiting, and what was worked on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Stage:
    """What one stage did, over all threads."""

    seconds: float = 0.0
    pixels: int = 0
    bytes: int = 0


@dataclass
class Timing:
    """Stages by name; safe to use in threads. `waiting` is what the network waited for."""

    stages: dict[str, Stage] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def work(self, stage: str, pixels: int = 0) -> Iterator[Stage]:
        """Count the block's time; `bytes` and `pixels` of what it yields are added as well."""
        begun = time.perf_counter()
        one = Stage(pixels=pixels)
        try:
            yield one
        finally:
            one.seconds = time.perf_counter() - begun
            self._add(stage, one)

    @contextlib.contextmanager
    def wait(self, stage: str) -> Iterator[None]:
        """Count the block's time as the network's waiting for `stage`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                seconds = time.perf_counter() - begun
                self.waiting[stage] = self.waiting.get(stage, 0.0) + seconds

    def merge(self, other: Timing) -> None:
        """Add what another one counted."""
        for name, stage in other.stages.items():
            self._add(name, stage)
        with self._lock:
            for name, seconds in other.waiting.items():
                self.waiting[name] = self.waiting.get(name, 0.0) + seconds

    def _add(self, name: str, one: Stage) -> None:
        with self._lock:
            stage = self.stages.setdefault(name, Stage())
            stage.seconds += one.seconds
            stage.pixels += one.pixels
            stage.bytes += one.bytes

    def __getstate__(self) -> dict[str, object]:
        return {"stages": self.stages, "waiting": self.waiting}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
