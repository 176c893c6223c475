"""Decoders of the instructions, by topic."""

from . import (
    async_copy,
    atomics,
    bits,
    compare,
    control,
    convert,
    floating,
    integer,
    matrices,
    memory,
    mma,
    warp,
)

__all__ = [
    "async_copy",
    "atomics",
    "bits",
    "compare",
    "control",
    "convert",
    "floating",
    "integer",
    "matrices",
    "memory",
    "mma",
    "warp",
]
