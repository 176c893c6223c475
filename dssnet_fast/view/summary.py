"""Reading the summary of a slide, `NAME.json`, and finding the files that it names.

A summary may come from anywhere, so nothing in it is believed: values are checked before they are
used, and files must lie in the folder of results, symbolic links followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dssnet_fast.python_ref.errors import InputError

FORMAT = "dssnet_fast.slide"
VERSION = 1
FILES = ("labels", "nuclei", "geojson", "parquet", "report")
_MAX_BYTES = 64 << 20
_MAX_SIDE_PX = 1 << 30


@dataclass(frozen=True)
class Result:
    """The results of one slide.

    Attributes:
        name: As in the names of its files.
        values: The summary, checked.
        files: Where each file of `FILES` lies that the summary names and that is there.
        slide: Where the slide lies, or None if it is gone.
        stamp: Tells these files from others of the same names.
    """

    name: str
    values: dict
    files: dict[str, Path]
    slide: Path | None
    stamp: str

    @property
    def slide_size(self) -> tuple[int, int]:
        """Width and height of the slide's finest level, px."""
        return tuple(self.values["slide_size"])

    @property
    def origin(self) -> tuple[int, int]:
        """(x, y) of the finest level, px, that is (0, 0) in outputs."""
        return tuple(self.values["origin"])


def read_result(path: Path, slides: Path | None) -> Result | None:
    """Read a summary and find its files.

    Args:
        path: `NAME.json`, in a folder whose symbolic links are resolved.
        slides: A further folder to look for the slide in.

    Returns:
        None if it is some other JSON file.

    Raises:
        InputError: The file is damaged or names files outside its folder.
    """
    values = _load(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return None
    _check(path, values)
    files = {}
    for kind in FILES:
        if kind in values["files"]:
            found = _inside(path, values["files"][kind])
            if found.is_file():
                files[kind] = found
    slide = _find_slide(path.parent, values["slide"], slides)
    parts = [path, *files.values(), *([slide] if slide else [])]
    return Result(values["name"], values, files, slide, _stamp(parts))


def _stamp(paths: list[Path]) -> str:
    """16 hex digits that change when one of the files does."""
    made = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
            made.update(os.fsencode(path))
            made.update(f"\0{status.st_mtime_ns}\0{status.st_size}\0".encode())
        except OSError:
            # It went this moment; who opens it will say so.
            made.update(b"gone\0")
    return made.hexdigest()[:16]


def _load(path: Path) -> object:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path.name}: larger than any summary")
        values = json.loads(path.read_bytes(), parse_constant=refuse)
        # Half of a pair of surrogates is JSON, but neither a path nor anything to show.
        json.dumps(values, ensure_ascii=False).encode()
    except OSError as error:
        raise InputError(f"{path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name}: not a JSON file ({error})") from error
    return values


def _inside(path: Path, name: str) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{path.name}: names a file by {name!r}")
    # Both kinds of separators everywhere: the folder may have been made on another system.
    if ".." in re.split(r"[\\/]", name) or os.path.isabs(name) or re.match(r"[\\/]|\w:", name):
        raise InputError(f"{path.name}: names {name!r}, which is outside its folder; not opened")
    return resolved(path.parent / name, path)


def resolved(file: Path, summary: Path) -> Path:
    """A file with all symbolic links followed, which must not lead out of the folder.

    Raises:
        InputError: They do; the message begins with the name of `summary`.
    """
    try:
        found = file.resolve()
        found.is_file()  # Raises for a name that is too long.
    except (OSError, RuntimeError) as error:
        raise InputError(f"{summary.name}: {file.name!r} cannot be followed ({error})") from error
    if not found.is_relative_to(summary.parent):
        raise InputError(
            f"{summary.name}: {file.name!r} is a link to a place outside its folder; not opened"
        )
    return found


def _find_slide(folder: Path, recorded: str, slides: Path | None) -> Path | None:
    """The slide where it was, else one of the same file name in `slides`."""
    places = [folder / recorded]
    if slides is not None:
        places.append(slides / re.split(r"[\\/]", recorded)[-1])
    # Paths of other systems may be too long for this one.
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            if place.is_file():
                return place.resolve()
    return None


def _check(path: Path, values: dict) -> None:
    def need(condition: bool, what: str) -> None:
        if not condition:
            raise InputError(f"{path.name}: damaged: {what}")

    version = values.get("version")
    need(_whole(version, 1, 1 << 30), "`version` must be a whole number")
    if version > VERSION:
        raise InputError(
            f"{path.name}: version {version}, and this dssnet_fast reads up to {VERSION}; update it"
        )
    need(values.get("name") == path.stem, "`name` must be that of the file")
    need(_text(values.get("slide")), "`slide` must be a path")
    for key in ("slide_size", "analysis_size"):
        need(
            _list(values.get(key), 2, lambda one: _whole(one, 1, _MAX_SIDE_PX)),
            f"`{key}` must be two positive whole numbers",
        )
    need(
        _list(values.get("origin"), 2, lambda one: _whole(one, -_MAX_SIDE_PX, _MAX_SIDE_PX)),
        "`origin` must be two whole numbers",
    )
    need(_number(values.get("scale")) and values["scale"] > 0, "`scale` must be positive")
    for key in ("analysis_mpp", "slide_mpp"):
        need(_number(values.get(key)) and values[key] > 0, f"`{key}` must be positive")
    need(_number(values.get("analysed_mm2")), "`analysed_mm2` must be a number")
    names = values.get("class_names")
    need(
        isinstance(names, list) and 2 <= len(names) <= 256 and all(map(_text, names)),
        "`class_names` must be two names or more",
    )
    need(
        _list(
            values.get("class_colours"),
            len(names),
            lambda one: _list(one, 3, lambda value: _whole(value, 0, 255)),
        ),
        "`class_colours` must have a colour for each class",
    )
    need(_whole(values.get("nuclei"), 0, 1 << 40), "`nuclei` must be a whole number")
    counts = values.get("nuclei_per_class")
    need(
        isinstance(counts, dict) and all(_whole(one, 0, 1 << 40) for one in counts.values()),
        "`nuclei_per_class` must be whole numbers",
    )
    need(
        isinstance(values.get("unreadable"), list)
        and all(_list(box, 4, _number) for box in values["unreadable"]),
        "`unreadable` must be boxes",
    )
    gallery = values.get("gallery")
    need(
        isinstance(gallery, dict)
        and all(
            isinstance(rows, list) and all(_is_standout(row, len(names)) for row in rows)
            for rows in gallery.values()
        ),
        "`gallery` must be lists of nuclei",
    )
    need(isinstance(values.get("files"), dict), "`files` must name files")
    need(isinstance(values.get("provenance"), dict), "`provenance` must be there")


def _is_standout(row: object, classes: int) -> bool:
    return (
        isinstance(row, dict)
        and _whole(row.get("id"), 1, 1 << 40)
        and _whole(row.get("class"), 1, classes - 1)
        and all(_number(row.get(key)) for key in ("x", "y", "area_um2", "mean_od"))
    )


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _list(value: object, length: int, good) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(good, value))
