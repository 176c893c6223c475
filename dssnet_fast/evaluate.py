"""`python -m dssnet_fast.evaluate DATA`: how right networks are, in pixels and in nuclei.

Scores are those of all pixels and all nuclei together, not means over images;
`dssnet_fast.metrics` defines them. Nuclei of an answer are what `python -m dssnet_fast.segment`
makes of it. Kinds of images are told apart as `dssnet_fast.image_kinds` says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dssnet_fast import cli
from dssnet_fast.loading import (
    SEPARATION_OPTIONS,
    add_network_options,
    add_separation_options,
    load_net,
    load_separation,
)
from dssnet_fast.python_ref.errors import InputError

if TYPE_CHECKING:
    from dssnet_fast.accuracy import Contender, ImageCounts
    from dssnet_fast.model import FastDSSNet


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = cli.parser(
        "evaluate",
        "Compare a network's answers with the truth in DATA/images and DATA/labels: IoU and Dice "
        "of pixels; AP, precision, recall, F1, PQ and AJI of nuclei. Prints Markdown.",
    )
    parser.add_argument("data", type=Path, help="folder with images/ and labels/ of the same names")
    parser.add_argument(
        "--labels",
        choices=("instances", "classes"),
        default="instances",
        help="as for training; a map with one value beside 0 has its connected parts as nuclei",
    )
    parser.add_argument(
        "--split",
        choices=("validation", "training", "all"),
        default="validation",
        help="which images: of the split that training makes, or all",
    )
    parser.add_argument(
        "--validation", type=float, default=0.2, help="share of DATA for validation, as in training"
    )
    add_network_options(parser)
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="OTHER",
        help="beside the first network: a precision (int8), a backend with one (torch:fp32), "
        "another model (a .safetensors file, or `pretrained`), or the same network with its nuclei "
        "told apart in another way (separate=no, interior-probability=0.9); joined by + where "
        "several things are others (int8+separate=no); the rest is as the options say",
    )
    add_separation_options(parser)
    parser.add_argument(
        "--min-area", default=15, type=_not_negative, help="smallest nucleus of an answer, px"
    )
    parser.add_argument("--worst", default=5, type=_not_negative, help="so many images are named")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="draw the worst: image, truth, answer, what differs, and where others differ",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write each image's scores")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def body(arguments: argparse.Namespace) -> None:
    """Evaluate as the arguments say."""
    from tqdm import tqdm

    from dssnet_fast import accuracy, outputs
    from dssnet_fast.accuracy_tables import report, table_of_images
    from dssnet_fast.contact_sheet import draw_worst
    from dssnet_fast.python_ref.data import Labelling, find_pairs, split

    _check_files(arguments)
    cli.silence_decoders()
    pairs = find_pairs(arguments.data)
    if arguments.split != "all":
        training, validation = split(pairs, arguments.validation)
        pairs = validation if arguments.split == "validation" else training
    contenders = _load(arguments)
    names = contenders[0].net.class_names
    labelling = Labelling(arguments.labels, len(names))

    # tqdm shows nothing by itself where stderr is no terminal.
    bar = tqdm(pairs, unit="image", disable=arguments.quiet or None)
    images = list(accuracy.evaluate(contenders, bar, labelling, min_area=arguments.min_area))
    worst = accuracy.worst(images, arguments.worst)
    if arguments.csv:
        outputs.write_text(arguments.csv, table_of_images(contenders, images, names))
    if arguments.sheet:
        outputs.write_picture(
            arguments.sheet, draw_worst(contenders, worst, labelling, min_area=arguments.min_area)
        )
    summary = _summary(arguments, contenders, images, worst)
    print(json.dumps(summary, indent=1, allow_nan=False) if arguments.json else report(summary))


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)


def _check_files(arguments: argparse.Namespace) -> None:
    """Find out before the work, not after it, that results cannot be written."""
    for option, path in (("--csv", arguments.csv), ("--sheet", arguments.sheet)):
        if path and (not path.parent.is_dir() or path.is_dir()):
            raise InputError(f"{option} {path}: must be a file in a folder that exists")
    if arguments.sheet and arguments.sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet {arguments.sheet}: must end with .png")
    if arguments.sheet and not arguments.worst:
        raise InputError("--sheet: needs --worst of 1 or more, the images to draw")


def _load(arguments: argparse.Namespace) -> list[Contender]:
    """The network of the options, and those to compare it with.

    Raises:
        InputError: A name is none, or networks do not read or answer the same.
    """
    from dssnet_fast.accuracy import Contender

    # Asked for all before the first is loaded: a wrong name costs no time.
    asked = [(Path(arguments.model).name, arguments)]
    asked += [(name, _with(arguments, name)) for name in arguments.compare]
    if repeated := {n for i, (n, _) in enumerate(asked) if n in [m for m, _ in asked[:i]]}:
        raise InputError(f"--compare: {', '.join(sorted(repeated))} is there twice")
    contenders: list[Contender] = []
    loaded: dict[tuple[str, ...], FastDSSNet] = {}
    for name, options in asked:
        which = (options.model, options.backend, options.precision)
        if which not in loaded:
            loaded[which] = load_net(options)
        net = loaded[which]
        contenders.append(Contender(name, net, load_separation(options, net)))
    first = contenders[0].net
    for other in contenders[1:]:
        if (other.net.config.in_channels, other.net.class_names) != (
            first.config.in_channels,
            first.class_names,
        ):
            raise InputError(
                f"--compare {other.name}: its channels and classes must be those of the first "
                f"network, {first.config.in_channels} and {', '.join(first.class_names)}; got "
                f"{other.net.config.in_channels} and {', '.join(other.net.class_names)}"
            )
    return contenders


def _with(arguments: argparse.Namespace, name: str) -> argparse.Namespace:
    """The options with what a name after `--compare` changes in them."""
    from dssnet_fast import backends

    head, _, last = name.rpartition("+")
    option, equals, value = last.partition("=")
    if equals and option in SEPARATION_OPTIONS:
        rest = _with(arguments, head) if head else arguments
        try:
            changed = {option.replace("-", "_"): SEPARATION_OPTIONS[option](value)}
        except argparse.ArgumentTypeError as error:
            raise InputError(f"--compare {name}: {option} {error}") from error
        return argparse.Namespace(**{**vars(rest), **changed})
    backend, _, precision = name.rpartition(":")
    if precision in backends.PRECISIONS and backend in ("", *backends.names()):
        return argparse.Namespace(
            **{
                **vars(arguments),
                "backend": backend or arguments.backend,
                "precision": precision,
            }
        )
    if name == "pretrained" or name.endswith(".safetensors"):
        return argparse.Namespace(**{**vars(arguments), "model": name})
    raise InputError(
        f"--compare {name}: must be a precision ({', '.join(backends.PRECISIONS)}), a backend with "
        f"one ({backends.names()[0]}:fp32), a .safetensors file, pretrained, or "
        f"{' or '.join(f'{option}=...' for option in SEPARATION_OPTIONS)}"
    )


def _summary(
    arguments: argparse.Namespace,
    contenders: Sequence[Contender],
    images: Sequence[ImageCounts],
    worst: Sequence[ImageCounts],
) -> dict:
    from dssnet_fast.accuracy import by_kind, total

    names = contenders[0].net.class_names
    kinds = by_kind(images)
    return {
        "data": str(arguments.data),
        "split": arguments.split,
        "images": len(images),
        "nuclei": sum(image.counts[0].instances.truths for image in images),
        "class_names": list(names),
        "networks": [
            {
                "name": contender.name,
                "model_sha256": contender.net.digest,
                "backend": str(contender.net.backend_name),
                "device": str(contender.net.device),
                "precision": str(contender.net.precision),
                "separation": contender.separation.to_dict(),
                "scores": total(images, index).scores(names),
                "kinds": {k: total(some, index).scores(names) for k, some in kinds.items()},
            }
            for index, contender in enumerate(contenders)
        ],
        "worst": [
            {"image": image.pair.image.name, **image.counts[0].scores(names)} for image in worst
        ],
    }


if __name__ == "__main__":
    sys.exit(cli.main("evaluate", make_parser, body))
