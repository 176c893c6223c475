"""Writing files so that nothing half-written is ever seen."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .errors import InputError

_STEM_LENGTH = 40  # of the file's own name in that of its temporary file
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[a-z0-9_]{8}\.part(?P<suffix>\.\w+)?")


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
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem[:_STEM_LENGTH]}.", suffix=f".part{path.suffix}", dir=path.parent
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):
            # The user knows the file by its own name.
            reason = error.strerror or str(error)
            raise OSError(error.errno or errno.EIO, reason, str(path)) from error
        raise


def find_files(
    paths: Iterable[str | os.PathLike],
    suffixes: Sequence[str],
    what: str,
    of_folder: Callable[[list[Path]], list[Path]] = list,
    check_named: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """The files that `paths` name, a file that is named twice once.

    Args:
        paths: Files, taken as given, and folders, of which all files with one of the suffixes are
            taken in the order of their names, but neither hidden ones nor those of sub-folders.
        suffixes: In lower case; files may have them in upper case.
        what: Such a file is, for messages.
        of_folder: Which of a folder's files to take.
        check_named: Raises InputError for a file that was named and cannot be taken.

    Raises:
        InputError: A path does not exist, or a folder has no such file.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            listed = (file for file in path.iterdir() if file.suffix.lower() in suffixes)
            files = of_folder(
                sorted(file for file in listed if file.name[0] != "." and file.is_file())
            )
            if not files:
                raise InputError(
                    f"{path}: the folder has no {what} ({', '.join(suffixes)}); "
                    "sub-folders are not searched"
                )
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        else:
            check_named(path)
            files = [path]
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def remove_leftovers(files: Iterable[Path]) -> None:
    """Remove temporary files of `atomic_write` that killed processes left beside `files`.

    Args:
        files: What was being written. Nobody may be writing any of them now.
    """
    begun: dict[Path, set[tuple[str, str]]] = defaultdict(set)
    for file in files:
        begun[file.parent].add((file.stem[:_STEM_LENGTH], file.suffix))
    for folder, names in begun.items():
        for path in folder.iterdir() if folder.is_dir() else ():
            match = _TEMPORARY.fullmatch(path.name)
            if match and (match["stem"], match["suffix"] or "") in names:
                path.unlink(missing_ok=True)
