"""Writing files so that nothing half-written is ever seen."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block succeeds.

    The temporary file keeps the suffix of `path`, so that writers that choose a format by suffix
    work. It is flushed to disk before the rename and removed when the block raises: a reader sees
    the old file or the new one, whole, even after a power cut.

    Args:
        path: The file to create or replace. Its folder must exist.

    Yields:
        The temporary path to write to.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem[:40]}.", suffix=f".part{path.suffix}", dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; give the usual permissions back.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
