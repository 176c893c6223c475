"""Kernels that were compiled at first use, kept per user from one process to the next."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.python_ref.once import warn

_DIGEST_BYTES = hashlib.sha256().digest_size


def folder() -> Path:
    """`$DSSNET_FAST_CACHE`, or `dssnet_fast` in the user's cache folder."""
    named = os.environ.get("DSSNET_FAST_CACHE")
    if named:
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: relative paths are invalid and to be ignored.
    return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "dssnet_fast"


def cached(name: str, compile_it: Callable[[], bytes]) -> bytes:
    """What `compile_it` returned, now or in an earlier process of this user.

    Several processes may do this at once: each sees a whole file or none. A damaged file is
    replaced. Where nothing can be written, the result is used all the same.

    Args:
        name: Of the file; equal names mean equal results.
        compile_it: Makes it.
    """
    path = folder() / name
    kept = read(path)
    if kept is not None:
        return kept
    result = compile_it()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(result).digest() + result)
    except OSError as error:
        warn(
            f"compiled kernels cannot be kept in {path.parent} ({error.strerror or error}) and "
            "will be compiled again by every process; name a folder with DSSNET_FAST_CACHE"
        )
    return result


def read(path: Path) -> bytes | None:
    """The content of a file that `cached` wrote; None if it is not there, or not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, result = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return result if hashlib.sha256(result).digest() == digest else None
