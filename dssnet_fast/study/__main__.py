"""`python -m dssnet_fast.study NAME DATA --out DIR`: a study of the paper, trained anew."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dssnet_fast import cli, train

STUDIES = {
    "width": "channels of the down-sampled features (the paper's Table 2)",
    "depth": "number of blocks (Table 3)",
    "blocks": "kind of block (Fig. 5)",
    "supervisions": "with and without super-resolution and edge supervision (Table 4)",
    "networks": "DSSNet, UNet, and UNet++ and PSPNet on a ResNet-34 encoder (Table 5)",
    "kinds": "trained on one kind of images or on all, tested on each (Table 7)",
    "recipe": "the recipe below, one ingredient changed at a time (not in the paper)",
}


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = cli.parser(
        "study",
        "Train the networks of a study from several seeds on DATA/images and DATA/labels, which "
        "are instance maps, and compare them. DIR/NAME gets table.md, runs.csv and figure.png, "
        "DIR/runs a folder a run. Run the same command again to continue; studies in one DIR "
        "share runs.",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        choices=STUDIES,
        help="; ".join(f"{name}: {does}" for name, does in STUDIES.items()),
    )
    parser.add_argument("data", type=Path, help="folder with images/ and labels/ of the same names")
    parser.add_argument("--out", type=Path, required=True, help="folder of the studies")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="not all, but these rows of the table"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="a run each")
    parser.add_argument(
        "--validation", type=float, default=0.2, help="share of DATA for validation, as in training"
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--epochs",
        type=_positive,
        help="equal steps for all: so many passes of the unchanged recipe over all images",
    )
    budget.add_argument(
        "--minutes",
        type=_positive,
        help="equal time for all: as many steps as fit by the time that a step of each is measured "
        "to take",
    )
    train.add_recipe_options(parser)
    train.add_architecture_options(parser)
    parser.set_defaults(
        batch=8,
        crop=128,
        optimizer="adam",
        clip_norm=1.0,
        sampling="area",
        average=0.995,
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def body(arguments: argparse.Namespace, command: str) -> int:
    """Run or continue a study.

    Args:
        arguments: Of the command.
        command: What was typed, for the table's caption.

    Returns:
        The exit code: 1 when a run could not be finished.
    """
    training = train.import_training()
    from dssnet_fast.study.study import Plan, run

    plan = Plan(
        name=arguments.name,
        title=STUDIES[arguments.name],
        command=command,
        config=train.architecture(arguments, classes=2),
        options=training.TrainingOptions(**train.recipe(arguments)),
        only=arguments.only,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        minutes=arguments.minutes,
    )
    cli.make_folder(arguments.out, "runs")
    cli.silence_decoders()
    where = arguments.data, arguments.validation, arguments.out, arguments.device
    failed = run(plan, *where, train.remark(arguments))
    for line in failed:
        print(f"dssnet_fast.study: {line}", file=sys.stderr)
    print((arguments.out / arguments.name / "table.md").read_text())
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `cli.run` for exit codes."""
    argv = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "dssnet_fast.study", *argv])
    return cli.main("study", make_parser, partial(body, command=command), argv)


if __name__ == "__main__":
    sys.exit(main())
