"""The images of a run: what their results are called, and which are already done."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dssnet_fast.python_ref.errors import InputError

RESULTS = ("_labels.png", "_nuclei.tif", "_overlay.png", ".geojson")
RECORDS = ".dssnet_fast"


@dataclass(frozen=True)
class Job:
    """One image to segment.

    Attributes:
        path: The image file.
        label: How the table calls it: its file name, with folders where the name is not enough.
        name: What its result files are called, without the endings in `RESULTS`.
    """

    path: Path
    label: str
    name: str


def make_jobs(images: Sequence[Path]) -> list[Job]:
    """Name the results of each image, differently for each, from the set of images alone.

    Raises:
        InputError: Two images cannot be told apart by their names.
    """
    alike: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        # Folders of results must also work where file names ignore case.
        alike[image.stem.casefold()].append(image)
    jobs = {}
    for group in alike.values():
        if len(group) == 1:
            (image,) = group
            jobs[image] = Job(image, image.name, image.stem)
            continue
        parts = [image.absolute().parts for image in group]
        for depth in range(1, max(map(len, parts)) + 1):
            labels = ["/".join(part[-depth:]) for part in parts]
            if len({label.casefold() for label in labels}) == len(labels):
                break
        names = [_file_name(label) for label in labels]
        short = [name.removesuffix(image.suffix) for name, image in zip(names, group, strict=True)]
        if len({name.casefold() for name in short}) == len(short):
            names = short
        for image, label, name in zip(group, labels, names, strict=True):
            jobs[image] = Job(image, label, name)
    taken: dict[str, Job] = {}
    for job in jobs.values():
        other = taken.setdefault(job.name.casefold(), job)
        if other is not job:
            raise InputError(
                f"{other.path} and {job.path} would have results of the same name, {job.name}; "
                "rename one, or segment them into different folders"
            )
    return [jobs[image] for image in images]


def _file_name(label: str) -> str:
    return "_".join(part for part in label.replace("\\", "/").replace(":", "").split("/") if part)


def read_record(out: Path, job: Job) -> dict | None:
    """The record of a finished image, or None if there is none whose results are all there."""
    try:
        record = json.loads(record_path(out, job).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or set(record) != {"made_from", "nuclei", "rows"}:
        return None
    return record if all((out / (job.name + ending)).is_file() for ending in RESULTS) else None


def record_path(out: Path, job: Job) -> Path:
    """Where the record of an image lies. Written last: an image that has one has all results."""
    return out / RECORDS / f"{job.name}.json"


def files_of(out: Path, job: Job) -> list[Path]:
    """All files of one image, its record first."""
    return [record_path(out, job), *(out / (job.name + ending) for ending in RESULTS)]


def discard(out: Path, job: Job) -> None:
    """Remove all files of one image, those that exist."""
    for path in files_of(out, job):
        path.unlink(missing_ok=True)
