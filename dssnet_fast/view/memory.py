"""What is kept of what was read or made, within bounds, for all threads of the server."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

Value = TypeVar("Value")


class Memory(Generic[Value]):
    """The values that were used last, up to a number of bytes.

    Args:
        limit: Bytes to keep. A value that is larger is not kept.
        size: Bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit = limit
        self._size = size
        self._used = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not there.

        Threads that want the same one at the same time may each make it: waiting for each other
        would make all wait for a slow file.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._used += self._size(value)
            while self._used > self._limit:
                _, dropped = self._values.popitem(last=False)
                self._used -= self._size(dropped)
        return value


class Closable(Protocol):
    """Something that holds files."""

    def close(self) -> None:
        """Close them."""


Held = TypeVar("Held", bound=Closable)


class Shelf(Generic[Held]):
    """Things with open files, a bounded number of them; none is closed while it is in use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, Held] = OrderedDict()
        self._users: dict[int, int] = {}

    @contextlib.contextmanager
    def use(self, key: Hashable, make: Callable[[], Held]) -> Iterator[Held]:
        """Lend the thing of a key, made if it is not there. `make` must be quick."""
        with self._lock:
            if key not in self._held:
                self._held[key] = make()
            self._held.move_to_end(key)
            thing = self._held[key]
            self._users[id(thing)] = self._users.get(id(thing), 0) + 1
            too_many = [
                self._held.popitem(last=False)[1]
                for _ in range(max(len(self._held) - self._limit, 0))
            ]
            unused = [one for one in too_many if id(one) not in self._users]
        for one in unused:
            one.close()
        try:
            yield thing
        finally:
            with self._lock:
                self._users[id(thing)] -= 1
                last = not self._users[id(thing)]
                if last:
                    del self._users[id(thing)]
                dropped = last and all(one is not thing for one in self._held.values())
            if dropped:
                thing.close()

    def close(self) -> None:
        """Close what nobody uses; the rest is closed by its last user."""
        with self._lock:
            unused = [one for one in self._held.values() if id(one) not in self._users]
            self._held.clear()
        for one in unused:
            one.close()
