"""A run of the whole network on the PTX executor, counted: `python -m tests.ptx.report`.

Run it from the root of the repository; the CUDA kernels need the extension installed
(`pip install -e .`), those in Triton need Triton. CUDA's launch plan is the one that the named GPU
would get; Triton's launches depend on the network and the image alone. Labels are what is counted;
one more launch of the last kernel gives the logits that are compared with the reference.

Counts are those of the PTX: exact, but for what ptxas makes better before a GPU runs it (address
arithmetic, moves). Times are a model, see roofline.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dssnet_fast import cli
from dssnet_fast.checkpoint import read_checkpoint
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.python_ref.images import read_image
from dssnet_fast.python_ref.network import SCALE, DSSNet
from dssnet_fast.weights import FoldedWeights, fold_checkpoint, is_weight_file, load, unfold

from .count_cuda import run_cuda
from .count_triton import run_triton
from .counting import Run, Task
from .plans import DEVICES
from .summary import accuracy, summarise, yardstick
from .tables import print_report, print_side_by_side

KERNELS: dict[str, Callable[[Task, Callable[[str], None]], Run]] = {
    "cuda": run_cuda,
    "triton": run_triton,
}


def size(text: str) -> tuple[int, int]:
    """HxW as two numbers."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or 0 in (found := (int(match[1]), int(match[2]))):
        raise argparse.ArgumentTypeError(f"must be HxW in pixels, such as 512x512, got {text!r}")
    return found


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return int(text)


def kernels(text: str) -> tuple[str, ...]:
    """Keys of `KERNELS`, with commas between them; `both` is all."""
    found = tuple(KERNELS) if text == "both" else tuple(dict.fromkeys(text.split(",")))
    if not set(found) <= set(KERNELS):
        raise argparse.ArgumentTypeError(f"must be cuda, triton or both, got {text!r}")
    return found


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx.report",
        description="Run the whole network on the PTX executor: errors, counts per kernel, and "
        "what they would take on A100, H100 and RTX 4090 by a roofline model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint of any kind, or weight file")
    add("--image", type=Path, required=True, help="PNG, JPEG, TIFF or BMP file")
    add("--crop", type=size, metavar="HxW", help="this much from the top left (default: all)")
    add("--batch", type=positive, default=1, help="the image so many times")
    add("--precision", choices=("fp16", "bf16", "fp32"), default="fp16", help="fp32: Triton only")
    add("--kernels", type=kernels, default="cuda", help="cuda, triton, or both")
    add(
        "--device",
        choices=tuple(DEVICES),
        default="H100",
        help="whose launch plan, and whose machine code is looked at",
    )
    add(
        "--first-image-only",
        action="store_true",
        help="run the blocks of one image of the batch and multiply their counts: all images are "
        "equal and share nothing but the weights",
    )
    add("--json", type=Path, metavar="FILE", help="write everything there, too")
    add("--save-logits", type=Path, metavar="FILE", help="write the logits as .npy, [B, H, W, C]")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def read_network(path: Path) -> tuple[FoldedWeights, DSSNet]:
    """Folded weights, and the float64 reference that they should agree with."""
    if is_weight_file(path):
        folded = load(path)
        return folded, unfold(folded)
    checkpoint = read_checkpoint(path)
    return fold_checkpoint(checkpoint), checkpoint.reference()


def read_pixels(path: Path, channels: int, crop: tuple[int, int] | None) -> np.ndarray:
    """uint8 [H, W, channels]: the crop, with gray at the bottom and right to multiples of 8.

    Raises:
        InputError: The image cannot be read, or is smaller than the crop.
    """
    pixels = read_image(path, channels)
    height, width = crop or pixels.shape[:2]
    if height > pixels.shape[0] or width > pixels.shape[1]:
        raise InputError(
            f"{path}: --crop {height}x{width} is larger than the image, "
            f"{pixels.shape[0]}x{pixels.shape[1]}"
        )
    padding = ((0, -height % SCALE), (0, -width % SCALE), (0, 0))
    return np.pad(pixels[:height, :width], padding, constant_values=128)


def body(arguments: argparse.Namespace) -> None:
    """Run and report as the arguments say.

    Raises:
        InputError: A file cannot be read, or kernels cannot run what is asked for.
    """
    if arguments.save_logits is not None and len(arguments.kernels) > 1:
        raise InputError("--save-logits takes those of one kind of kernels, --kernels names two")
    folded, network = read_network(arguments.checkpoint)
    image = read_pixels(arguments.image, folded.config.in_channels, arguments.crop)
    task = Task(
        folded,
        image,
        arguments.batch,
        arguments.precision,
        arguments.device,
        arguments.first_image_only,
    )
    runs = {kind: KERNELS[kind](task, _progress) for kind in arguments.kernels}
    logits = yardstick(network, image, task.precision)
    reports = {
        kind: {
            "run": {
                "checkpoint": arguments.checkpoint.name,
                "image": arguments.image.name,
                "height": image.shape[0],
                "width": image.shape[1],
                "batch": task.batch,
                "precision": task.precision,
                "device": task.device,
                "kernels": kind,
                "compiled_as": run.compiled_as,
                "first_image_only": task.first_image,
            },
            "accuracy": accuracy(run, *logits),
            **summarise(run, task),
        }
        for kind, run in runs.items()
    }
    for report in reports.values():
        print_report(report)
    if len(reports) > 1:
        print_side_by_side(reports)
    if arguments.json is not None:
        whole = {"runs": reports} if len(reports) > 1 else next(iter(reports.values()))
        with atomic_write(arguments.json) as temporary:
            Path(temporary).write_text(json.dumps(whole, indent=1) + "\n")
    if arguments.save_logits is not None:
        with atomic_write(arguments.save_logits) as temporary, open(temporary, "wb") as file:
            np.save(file, next(iter(runs.values())).logits)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (the process's own by default) and run `body`."""
    return cli.run("report", make_parser().parse_args(argv), body)


if __name__ == "__main__":
    sys.exit(main())
