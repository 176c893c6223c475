"""How a file came about, as text to be put inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dssnet_fast.python_ref.errors import InputError


def as_json(provenance: Mapping[str, object]) -> str:
    """Provenance as one line of ASCII JSON, the same for the same values.

    Raises:
        InputError: It holds NaN, or something that JSON has no word for.
    """
    try:
        return json.dumps(provenance, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"provenance cannot be written as JSON: {error}") from error


def as_text(provenance: Mapping[str, object]) -> dict[str, str]:
    """Provenance with each value as text: text as it is, everything else as JSON."""
    return {
        key: value if isinstance(value, str) else as_json({"": value})[4:-1]
        for key, value in sorted(provenance.items())
    }
