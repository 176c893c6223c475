"""`python -m dssnet_fast.wsi`: the nuclei of whole slides.

Each slide gives `NAME.geojson.gz` (for QuPath), `NAME.parquet` (a GeoParquet table),
`NAME_labels.ome.tif` and `NAME_nuclei.ome.tif` (classes and ids of nuclei, pyramids),
`NAME_report.html` (for reading) and `NAME.json`; all slides together give `slides.csv`. Ids are the
same in all of them. `python -m dssnet_fast.view DIR` shows them on the slide.

A run that was stopped, by whatever, goes on where it stopped when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dssnet_fast import cli
from dssnet_fast.loading import add_network_options, add_separation_options, load_net
from dssnet_fast.wsi import PACKAGES

if TYPE_CHECKING:
    from dssnet_fast.wsi.run import SlideOutcome


def make_parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    parser = cli.parser("wsi", "Segment the cell nuclei in whole slides.")
    parser.add_argument("path", nargs="+", type=Path, help="slides, or folders of them")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")

    network = parser.add_argument_group("network")
    add_network_options(network)

    scale = parser.add_argument_group("scale, in micrometres per px")
    scale.add_argument("--mpp", type=float, help="of all slides, whatever they say")
    scale.add_argument("--assume-mpp", type=float, help="of slides that do not say")
    scale.add_argument("--model-mpp", type=float, help="of the model, whatever its file says")

    what = parser.add_argument_group("what is analysed")
    what.add_argument(
        "--region",
        metavar="X,Y,W,H|FILE",
        help="a box in px of the finest level, or annotations that QuPath exported as GeoJSON",
    )
    what.add_argument("--no-skip", action="store_true", help="also look at empty glass")
    add_separation_options(what)
    what.add_argument(
        "--min-area", type=float, default=4.0, help="smallest nucleus that counts, square um"
    )
    what.add_argument(
        "--keep-going",
        action="store_true",
        help="give results of a slide without the parts that cannot be read; it still counts as "
        "failed",
    )

    outputs = parser.add_argument_group("outputs")
    outputs.add_argument(
        "--origin",
        choices=("bounds", "level0"),
        default="bounds",
        help="where coordinates begin: with the part that QuPath shows, or with the finest level; "
        "they differ for MIRAX and few others",
    )
    outputs.add_argument(
        "--simplify",
        type=float,
        default=0.0,
        metavar="PX",
        help="how far outlines in GeoJSON may move to have fewer points",
    )
    outputs.add_argument(
        "--overwrite", action="store_true", help="also redo slides that are already done"
    )

    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--tile",
        type=_tile,
        metavar="H[,W]",
        help="largest tile, px; changes memory, speed and the order of ids (default: 2048 on a "
        "CPU, 4096 on a GPU)",
    )
    speed.add_argument(
        "--context",
        type=int,
        metavar="PX",
        help="px around a tile that are computed as well; less than the model sees is faster and "
        "not exact, and how much of the labels still agrees is told (default: exact)",
    )
    speed.add_argument("--batch-size", type=_positive, default=1, help="tiles at once")
    speed.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bytes whatever the batch size and the number of threads",
    )
    speed.add_argument("--engine", choices=("local", "ray"), default="local", help="who computes")
    speed.add_argument(
        "--workers",
        type=_positive,
        help="processes that compute (default: this one, or one a GPU; with Ray one a node or GPU)",
    )
    speed.add_argument("--ray-address", help="of a Ray cluster; default: one for this run")

    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `cli.run` for exit codes. 1 also if any slide failed."""
    return cli.main("wsi", make_parser, _run, argv)


def _tile(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be a side, or height,width, got {text}")
    return int(parts[0]), int(parts[-1])


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    cli.silence_decoders()
    cli.need_packages("wsi", PACKAGES)
    from dssnet_fast.wsi.account import table
    from dssnet_fast.wsi.analysis import TABLE, Machines, analyse
    from dssnet_fast.wsi.memory import give_back_large_blocks
    from dssnet_fast.wsi.options import Options
    from dssnet_fast.wsi.progress import Bar

    options = Options(
        mpp=arguments.mpp,
        assume_mpp=arguments.assume_mpp,
        model_mpp=arguments.model_mpp,
        region=arguments.region,
        skip=not arguments.no_skip,
        context=arguments.context,
        tile=arguments.tile,
        separate=arguments.separate,
        interior_probability=arguments.interior_probability,
        min_area=arguments.min_area,
        simplify=arguments.simplify,
        origin=arguments.origin,
        keep_going=arguments.keep_going,
    )
    machines = Machines(
        engine=arguments.engine,
        workers=arguments.workers,
        batch=arguments.batch_size,
        deterministic=arguments.deterministic,
        ray_address=arguments.ray_address,
    )
    give_back_large_blocks()
    net = load_net(arguments)
    with Bar(quiet=arguments.quiet) as bar:
        outcomes, account = analyse(
            net,
            arguments.path,
            arguments.out,
            options,
            machines,
            overwrite=arguments.overwrite,
            debug=arguments.debug,
            progress=bar,
        )
    summary = {
        **account,
        "seconds_with_loading": round(time.perf_counter() - started, 3),
        "backend": net.backend_name,
        "device": str(net.device),
        "precision": net.precision,
        "model": arguments.model,
        "model_sha256": net.digest,
        "out": str(arguments.out),
        "table": str(arguments.out / TABLE),
        "results": [_result(outcome) for outcome in outcomes],
    }
    if arguments.json:
        print(json.dumps(summary, indent=1))
    elif not arguments.quiet:
        print(table(account))
        print(
            f"network: {arguments.model} (sha256 {net.digest[:12]}), backend {net.backend_name}, "
            f"device {net.device}, precision {net.precision}"
        )
        print(f"results: {arguments.out} ({TABLE}; python -m dssnet_fast.view {arguments.out})")
    return 1 if any(one["status"] in ("failed", "incomplete") for one in summary["results"]) else 0


def _result(outcome: SlideOutcome) -> dict[str, object]:
    result = {"path": str(outcome.job.path), "name": outcome.job.name, "status": outcome.status}
    if outcome.summary is None:
        return {**result, "reason": outcome.reason}
    if outcome.summary["unreadable"]:
        result["status"] = "incomplete"
        result["unreadable"] = len(outcome.summary["unreadable"])
    return {**result, "nuclei": outcome.summary["nuclei"]}


if __name__ == "__main__":
    sys.exit(main())
