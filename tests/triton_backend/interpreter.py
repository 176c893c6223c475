"""A process whose Triton interprets; imports nothing that would import Triton too early."""

from __future__ import annotations

import os


def switch_on() -> None:
    """Before anything of Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
