"""What the command lines share: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

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
