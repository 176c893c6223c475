"""`python -m dssnet_fast.segment`: nuclei of image files, as maps, outlines and a table.

Each image gives `<name>_labels.png` (classes), `<name>_nuclei.tif` (instances),
`<name>_overlay.png` (for looking at) and `<name>.geojson` (for QuPath); all images together give
`nuclei.csv`. Ids are the same in all of them. `<name>` is the file's name without its suffix.
Images that share it are told apart by their suffix (`a.png` and `a.jpg` give `a.png_labels.png`
and `a.jpg_labels.png`) or by as many folders as it takes (`p1/a.png` gives `p1_a_labels.png`).

A run that was stopped goes on where it stopped when it is started again: `.dssnet_fast/` in the
output folder holds one record per finished image, with what it was made from. An image is skipped
if its content, the weights, the backend, the precision and the options are those of its record.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dssnet_fast import cli
from dssnet_fast.python_ref.errors import InputError

if TYPE_CHECKING:
    from dssnet_fast.model import FastDSSNet

RESULTS = ("_labels.png", "_nuclei.tif", "_overlay.png", ".geojson")
TABLE = "nuclei.csv"
RECORDS = ".dssnet_fast"
# Raise when the same input would give different files, so that old records are not trusted.
RECORD_VERSION = 1

_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.part\.\w+")

# Images in work at once: while one is in the network, others are read, measured and written.
_WORKERS = 4
# Pixels that may be in the network or measured at once; a larger image is alone.
_PIXELS_AT_ONCE = 2**26


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


@dataclass(frozen=True)
class Outcome:
    """What became of one image: `status` is done, skipped or failed; `reason` says why failed."""

    status: str
    nuclei: int = 0
    reason: str | None = None


def make_parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    parser = cli.parser("segment", "Segment the cell nuclei in image files.")
    parser.add_argument("path", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument(
        "--model", default="pretrained", help="weights as a .safetensors file, or `pretrained`"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--backend", default="auto", help="what runs the network")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="arithmetic"
    )
    parser.add_argument(
        "--tile",
        default=2048,
        type=_tile,
        help="larger images go through the network in tiles of at most this side, px",
    )
    parser.add_argument(
        "--min-area", default=15, type=_not_negative, help="smallest nucleus that counts, px"
    )
    parser.add_argument(
        "--sixteen-bit",
        default="range",
        choices=("range", "full"),
        help="16-bit images: stretch each image's own range to 8 bits, or divide by 257",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="also redo images that are already done"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `cli.run` for exit codes. 1 also if any image failed."""
    return cli.main("segment", make_parser, _segment, argv)


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


def _tile(text: str) -> int:
    if not text.isdecimal() or not int(text) or int(text) % 8:
        raise argparse.ArgumentTypeError(f"must be a positive multiple of 8, got {text}")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)


def _segment(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    _silence_decoders()
    jobs = make_jobs(_find(arguments.path, arguments.out))
    _prepare_folder(arguments.out)
    _remove_leftovers(arguments.out, jobs)
    net = _load_net(arguments)
    run = _Run(net, arguments)
    ready = time.perf_counter()
    outcomes = _process(run, jobs, arguments)
    _write_table(arguments.out, jobs, outcomes)
    ended = time.perf_counter()
    summary = _summary(arguments, run, jobs, outcomes)
    # The rate is that of a long run: without the time to load the network.
    summary["seconds"] = round(ended - started, 3)
    summary["images_per_second"] = round(summary["images"]["done"] / (ended - ready), 3)
    if arguments.json:
        print(json.dumps(summary, indent=1))
    elif not arguments.quiet:
        print(_for_people(summary))
    return 1 if summary["images"]["failed"] else 0


def _silence_decoders() -> None:
    """Keep the remarks of image decoders off the terminal; what matters is in their exceptions."""
    import logging
    import warnings

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.|tifffile")


def _find(paths: list[Path], out: Path) -> list[Path]:
    from dssnet_fast.python_ref.images import find_images

    # A pattern such as `images/*` names the output folder as well when it lies there.
    paths = [path for path in paths if path.resolve() != out.resolve()]
    if not paths:
        raise InputError(f"--out {out}: must be another folder than that of the images")
    images = find_images(paths)
    for image in images:
        if image.resolve().parent == out.resolve():
            raise InputError(
                f"--out {out}: must be another folder than that of the images ({image.name}), "
                "or results would be taken for images"
            )
    return images


def _prepare_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    (out / RECORDS).mkdir(parents=True, exist_ok=True)


def _load_net(arguments: argparse.Namespace) -> FastDSSNet:
    from dssnet_fast.model import FastDSSNet

    how = {
        "device": arguments.device,
        "backend": arguments.backend,
        "precision": arguments.precision,
    }
    if arguments.model == "pretrained":
        return FastDSSNet.pretrained(**how)
    return FastDSSNet.load(arguments.model, **how)


class _Run:
    """Segments single images with one network and one set of options; safe to use in threads."""

    def __init__(self, net: FastDSSNet, arguments: argparse.Namespace) -> None:
        self.net = net
        self.arguments = arguments
        self.stopped = threading.Event()
        self._room = _Room(_PIXELS_AT_ONCE)
        # What results depend on beside the image. The size of tiles is not among it.
        self.settings = {
            "version": RECORD_VERSION,
            "model_sha256": net.digest,
            "class_names": list(net.class_names),
            "backend": str(net.backend_name),
            "precision": str(net.precision),
            "min_area": arguments.min_area,
            "sixteen_bit": arguments.sixteen_bit,
        }

    def segment(self, job: Job) -> Outcome:
        """Segment one image, unless its record says that it is done.

        Raises:
            OSError: The results cannot be written.
        """
        if self.stopped.is_set():
            return Outcome("failed", reason="stopped")
        out = self.arguments.out
        try:
            made_from = {**self.settings, "image": job.label, "image_sha256": _digest(job.path)}
        except OSError as error:
            # Whether earlier results are still right cannot be told: they stay, uncounted.
            return Outcome("failed", reason=_reason(InputError(cli.one_line(error)), job))
        record = None if self.arguments.overwrite else read_record(out, job)
        if record is not None and record["made_from"] == made_from:
            return Outcome("skipped", record["nuclei"])
        # From here on the old results count no more, whatever happens.
        _discard(out, job)
        try:
            count = self._make(job, made_from)
        except BaseException as error:
            _discard(out, job)
            # Results that cannot be written would fail for the other images, too.
            if isinstance(error, OSError) or not isinstance(error, Exception):
                raise
            if self.arguments.debug:
                traceback.print_exc()
            return Outcome("failed", reason=_reason(error, job))
        return Outcome("done", count)

    def _make(self, job: Job, made_from: dict[str, object]) -> int:
        from dssnet_fast import outputs
        from dssnet_fast.nuclei import find_nuclei
        from dssnet_fast.python_ref.images import read_image
        from dssnet_fast.tiled import predict_tiled

        arguments, names = self.arguments, self.net.class_names
        image = read_image(job.path, self.net.config.in_channels, arguments.sixteen_bit)
        with self._room.for_pixels(image.shape[0] * image.shape[1]):
            labels, probability = predict_tiled(self.net, image, arguments.tile)
            nuclei = find_nuclei(labels, probability, arguments.min_area)
            del probability
            files = [arguments.out / (job.name + ending) for ending in RESULTS]
            outputs.write_labels(files[0], labels)
            outputs.write_instances(files[1], nuclei.instances)
            outputs.write_overlay(files[2], image, nuclei)
            identity = f"{job.label}/{made_from['image_sha256']}"
            outputs.write_geojson(files[3], nuclei, names, identity)
        record = {
            "made_from": made_from,
            "nuclei": len(nuclei),
            "rows": outputs.table_rows(job.label, nuclei, names),
        }
        # Last: an image with a record has all its results.
        outputs.write_json(_record_path(arguments.out, job), record)
        return len(nuclei)


class _Room:
    """Lets work on so many pixels at once, and larger work alone."""

    def __init__(self, pixels: int) -> None:
        self._limit = pixels
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def for_pixels(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def read_record(out: Path, job: Job) -> dict | None:
    """The record of a finished image, or None if there is none whose results are all there."""
    try:
        record = json.loads(_record_path(out, job).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or set(record) != {"made_from", "nuclei", "rows"}:
        return None
    return record if all((out / (job.name + ending)).is_file() for ending in RESULTS) else None


def _record_path(out: Path, job: Job) -> Path:
    return out / RECORDS / f"{job.name}.json"


def _files(out: Path, job: Job) -> list[Path]:
    """All files of one image, its record first."""
    return [_record_path(out, job), *(out / (job.name + ending) for ending in RESULTS)]


def _discard(out: Path, job: Job) -> None:
    for path in _files(out, job):
        path.unlink(missing_ok=True)


def _remove_leftovers(out: Path, jobs: list[Job]) -> None:
    """Remove what a killed run left of files that it was writing."""
    # `atomic_write` names its temporary files after the first 40 characters of the file's own.
    files = [out / TABLE, *(file for job in jobs for file in _files(out, job))]
    begun = {(path.parent, path.stem[:40]) for path in files}
    for folder in (out, out / RECORDS):
        for path in folder.iterdir():
            match = _LEFTOVER.fullmatch(path.name)
            if match and (folder, match[1]) in begun:
                path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: Exception, job: Job) -> str:
    if isinstance(error, InputError):
        return cli.one_line(error).removeprefix(f"{job.path}: ")
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return "not enough memory; try a smaller --tile"
    return f"{type(error).__name__}: {cli.one_line(error)} (--debug shows where)"


def _process(run: _Run, jobs: list[Job], arguments: argparse.Namespace) -> list[Outcome]:
    """Segment all images, some at a time; the outcomes are in the order of the jobs.

    Raises:
        OSError: Results cannot be written; images in work have been finished or removed.
    """
    from tqdm import tqdm

    outcomes: dict[int, Outcome] = {}
    workers = min(_WORKERS, os.cpu_count() or 1, len(jobs))
    waiting = iter(enumerate(jobs))
    running: dict[Future[Outcome], int] = {}
    # tqdm shows nothing by itself where stderr is no terminal.
    bar = tqdm(total=len(jobs), unit="image", disable=arguments.quiet or None)
    with bar, ThreadPoolExecutor(workers, thread_name_prefix="segment") as pool:
        try:
            while len(outcomes) < len(jobs):
                # Only as many as there are workers are handed over, so that a stop is quick.
                while len(running) < workers and (following := next(waiting, None)):
                    running[pool.submit(run.segment, following[1])] = following[0]
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    index = running.pop(future)
                    outcome = outcomes[index] = future.result()
                    if outcome.status == "failed":
                        bar.write(f"{jobs[index].path}: {outcome.reason}", file=sys.stderr)
                    bar.update()
        except BaseException:
            run.stopped.set()
            raise
    return [outcomes[index] for index in range(len(jobs))]


def _write_table(out: Path, jobs: list[Job], outcomes: list[Outcome]) -> None:
    from dssnet_fast.outputs import write_table

    def rows() -> Iterator[str]:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.status != "failed":
                record = read_record(out, job)
                if record is None:
                    raise InputError(f"{out}: results of {job.path} were removed during the run")
                yield record["rows"]

    write_table(out / TABLE, rows())


def _summary(
    arguments: argparse.Namespace,
    run: _Run,
    jobs: list[Job],
    outcomes: list[Outcome],
) -> dict[str, object]:
    counts = {
        status: sum(outcome.status == status for outcome in outcomes)
        for status in ("done", "skipped", "failed")
    }
    details = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        detail = {"path": str(job.path), "image": job.label, "status": outcome.status}
        if outcome.status == "failed":
            detail["reason"] = outcome.reason
        else:
            detail["name"] = job.name
            detail["nuclei"] = outcome.nuclei
        details.append(detail)
    return {
        "images": counts,
        "nuclei": sum(outcome.nuclei for outcome in outcomes),
        "backend": run.settings["backend"],
        "device": str(run.net.device),
        "precision": run.settings["precision"],
        "model": arguments.model,
        "model_sha256": run.settings["model_sha256"],
        "out": str(arguments.out),
        "table": str(arguments.out / TABLE),
        "results": details,
    }


def _for_people(summary: dict) -> str:
    images = summary["images"]
    counts = f"{images['done']} images segmented"
    if images["skipped"]:
        counts += f", {images['skipped']} already done"
    if images["failed"]:
        counts += f", {images['failed']} failed"
    speed = f" ({summary['images_per_second']:.2f} images/s)" if images["done"] else ""
    return "\n".join(
        (
            f"{counts}: {summary['nuclei']} nuclei in {summary['seconds']:.1f} s{speed}",
            f"network: {summary['model']} (sha256 {summary['model_sha256'][:12]}), backend "
            f"{summary['backend']}, device {summary['device']}, precision {summary['precision']}",
            f"results: {summary['out']} ({TABLE}; of each image "
            f"{', '.join('*' + ending for ending in RESULTS)})",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
