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
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dssnet_fast import cli
from dssnet_fast.batch import Outcome, Run, process
from dssnet_fast.jobs import (
    RECORDS,
    RESULTS,
    Job,
    files_of,
    make_jobs,
    read_record,
)
from dssnet_fast.loading import (
    add_network_options,
    add_separation_options,
    load_net,
    load_separation,
)
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import remove_leftovers

TABLE = "nuclei.csv"


def make_parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    parser = cli.parser("segment", "Segment the cell nuclei in image files.")
    parser.add_argument("path", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    add_network_options(parser)
    parser.add_argument(
        "--tile",
        default=2048,
        type=_tile,
        help="larger images go through the network in tiles of at most this side, px",
    )
    add_separation_options(parser)
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


def _tile(text: str) -> int:
    if not text.isdecimal() or not int(text) or int(text) % 8:
        raise argparse.ArgumentTypeError(f"must be a positive multiple of 8, got {text}")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)


def _segment(arguments: argparse.Namespace) -> int:
    from dssnet_fast.python_ref.images import find_images

    started = time.perf_counter()
    cli.silence_decoders()
    jobs = make_jobs(cli.inputs_outside(arguments.path, arguments.out, find_images))
    cli.make_folder(arguments.out, RECORDS)
    written = [file for job in jobs for file in files_of(arguments.out, job)]
    remove_leftovers([arguments.out / TABLE, *written])
    net = load_net(arguments)
    run = Run(net, load_separation(arguments, net), arguments)
    ready = time.perf_counter()
    outcomes = process(run, jobs, arguments)
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
    run: Run,
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
        "separation": run.settings["separation"],
        "model": arguments.model,
        "model_sha256": run.settings["model_sha256"],
        "out": str(arguments.out),
        "table": str(arguments.out / TABLE),
        "results": details,
    }


def _for_people(summary: dict) -> str:
    images = summary["images"]
    speed = f" ({summary['images_per_second']:.2f} images/s)" if images["done"] else ""
    return "\n".join(
        (
            f"{cli.counted(images, 'images')}: {summary['nuclei']} nuclei in "
            f"{summary['seconds']:.1f} s{speed}",
            f"network: {summary['model']} (sha256 {summary['model_sha256'][:12]}), backend "
            f"{summary['backend']}, device {summary['device']}, precision {summary['precision']}",
            f"results: {summary['out']} ({TABLE}; of each image "
            f"{', '.join('*' + ending for ending in RESULTS)})",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
