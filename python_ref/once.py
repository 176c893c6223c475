"""Warnings that are said once in a process, by the logger `dssnet_fast`."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn(message: str) -> None:
    """Say it, unless it has been said. Where nobody set logging up, it is a line on stderr."""
    logging.getLogger("dssnet_fast").warning("%s", message)
