"""Reading what a browser asks for: the parts of an address, and numbers in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, unquote

_MOST = 1e10
_HOSTS = ("127.0.0.1", "localhost")


class Refused(Exception):
    """A request that is not answered; the message is for the one who asked.

    Args:
        status: The HTTP status to say so with.
        message: Why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def split(target: str) -> tuple[list[str], Mapping[str, list[str]]]:
    """The decoded parts of a request's path between its slashes, and its query.

    A part may hold any character afterwards, slashes too: it is only good for looking something
    up by it.

    Raises:
        Refused: It is no path.
    """
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise Refused(400, "the address must begin with /")
    try:
        parts = [unquote(part, errors="strict") for part in path[1:].split("/")]
        return parts, parse_qs(query, keep_blank_values=True, max_num_fields=16, errors="strict")
    except ValueError:
        raise Refused(400, "the address is not UTF-8, or has too many fields") from None


def slide_address(name: str) -> str:
    """The path of a slide's page."""
    return f"/slides/{quote(name, safe='')}/"


def is_local(host: str | None) -> bool:
    """Whether a Host header names this machine.

    Another name that someone made lead here would let their pages read the answers.
    """
    match = re.fullmatch(r"([^:]+)(:\d{1,5})?", host or "", re.ASCII)
    return match is not None and match[1].lower() in _HOSTS


def whole(text: str, most: int = 10**9) -> int:
    """A whole number from 0 on.

    Raises:
        Refused: It is not one.
    """
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or int(text) > most:
        raise Refused(400, f"must be a whole number from 0 to {most}")
    return int(text)


def tile_place(text: str, suffix: str) -> tuple[int, int]:
    """Column and row from `COLUMN_ROW` and the suffix.

    Raises:
        Refused: It is not of that form.
    """
    match = re.fullmatch(rf"(\d{{1,9}})_(\d{{1,9}}){re.escape(suffix)}", text, re.ASCII)
    if match is None:
        raise Refused(404, f"tiles are named COLUMN_ROW{suffix}")
    return int(match[1]), int(match[2])


def number(query: Mapping[str, list[str]], name: str) -> float:
    """A field of the query that is a finite number.

    Raises:
        Refused: It is not there once, or not a number of usual size.
    """
    given = query.get(name, [])
    if len(given) == 1 and re.fullmatch(r"[-+]?\d{1,12}(\.\d{0,20})?", given[0], re.ASCII):
        value = float(given[0])
        if math.isfinite(value) and abs(value) <= _MOST:
            return value
    raise Refused(400, f"needs one {name}=NUMBER")


def classes(query: Mapping[str, list[str]], name: str) -> frozenset[int]:
    """A field of the query that lists classes, such as `1,3`; empty if it is not there.

    Raises:
        Refused: It is something else.
    """
    given = query.get(name, [""])
    if len(given) == 1 and given[0] == "":
        return frozenset()
    if len(given) == 1 and re.fullmatch(r"\d{1,3}(,\d{1,3}){0,255}", given[0], re.ASCII):
        return frozenset(whole(one, 255) for one in given[0].split(","))
    raise Refused(400, f"{name} must list classes, such as 1,3")
