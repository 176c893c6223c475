"""What the command lines share: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dssnet_fast.python_ref.errors import InputError


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """An argument parser for `python -m dssnet_fast.<command>` with the shared options."""
    made = argparse.ArgumentParser(
        prog=f"python -m dssnet_fast.{command}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def run(
    command: str,
    arguments: argparse.Namespace,
    body: Callable[[argparse.Namespace], int | None],
) -> int:
    """Run a command's body and turn errors into one line on stderr.

    Returns:
        The exit code: what `body` returns (None counts as 0), 1 for input that cannot be used or
        a failed read or write, 130 when interrupted. argparse itself exits with 2 for a wrong
        argument.
    """
    try:
        return body(arguments) or 0
    except KeyboardInterrupt:
        print(f"dssnet_fast.{command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (a pager, `head`) has gone: not an error worth a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        if arguments.debug:
            raise
        print(f"dssnet_fast.{command}: error: {one_line(error)}", file=sys.stderr)
        return 1


def one_line(error: BaseException) -> str:
    """The message of an error on a single line, with file and reason for an OSError."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: Exception, path: Path) -> str:
    """Why one of many inputs failed, on one line that need not name it again."""
    if isinstance(error, (InputError, OSError)):
        return one_line(error).removeprefix(f"{path}: ")
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return "not enough memory; try a smaller --tile"
    return f"{type(error).__name__}: {one_line(error)} (--debug shows where)"


def counted(counts: Mapping[str, int], what: str) -> str:
    """What became of the inputs of a run, for people.

    Args:
        counts: How many are `done`, `skipped` and `failed`.
        what: They are, such as "images".
    """
    said = f"{counts['done']} {what} segmented"
    if counts["skipped"]:
        said += f", {counts['skipped']} already done"
    if counts["failed"]:
        said += f", {counts['failed']} failed"
    return said


def main(
    command: str,
    make_parser: Callable[[], argparse.ArgumentParser],
    body: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv` (the process's own by default) and run `body`; see `run`."""
    return run(command, make_parser().parse_args(argv), body)


def class_names(given: str, classes: int) -> tuple[str, ...]:
    """The names in a comma-separated list, background first.

    Raises:
        InputError: They are not `classes` different names.
    """
    names = tuple(name.strip() for name in given.split(","))
    if len(names) != classes or not all(names) or len(set(names)) != classes:
        raise InputError(f"--class-names must be {classes} different names, got {given!r}")
    return names


def inputs_outside(
    paths: Sequence[Path], out: Path, find: Callable[[Sequence[Path]], list[Path]]
) -> list[Path]:
    """The input files that `paths` name, none of which may lie where the results go.

    Args:
        paths: Files and folders. `out` itself is passed by: a pattern such as `images/*` names the
            folder of results as well when it lies there.
        out: The folder of results.
        find: From paths to files.

    Raises:
        InputError: There is none, or one lies in `out`, so that results would be taken for inputs.
    """
    paths = [path for path in paths if path.resolve() != out.resolve()]
    files = find(paths) if paths else []
    inside = [file for file in files if file.resolve().parent == out.resolve()]
    if inside or not paths:
        name = f" ({inside[0].name})" if inside else ""
        raise InputError(
            f"--out {out}: must be another folder than that of the inputs{name}, "
            "or results would be taken for inputs"
        )
    return files


def make_folder(out: Path, inside: str) -> None:
    """Make the folder of results, and one inside for what belongs to the run.

    Raises:
        InputError: `out` is a file.
        OSError: It cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    (out / inside).mkdir(parents=True, exist_ok=True)


def silence_decoders() -> None:
    """Keep the remarks of image decoders off the terminal; what matters is in their exceptions."""
    import logging
    import warnings

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.|tifffile")


def need_packages(extra: str, packages: Sequence[str]) -> None:
    """Make sure that optional packages are there.

    Args:
        extra: Of this package, that brings them.
        packages: Names to import.

    Raises:
        InputError: One is missing; says what to install.
    """
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: not installed; install with: pip install 'dssnet_fast[{extra}]'"
        )
