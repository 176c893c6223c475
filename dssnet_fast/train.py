"""`python -m dssnet_fast.train DATA --out RUN`: train the reference network on labelled images."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from dssnet_fast import cli
from dssnet_fast.python_ref.config import (
    BLOCKS,
    UPSAMPLINGS,
    DSSNetConfig,
    default_class_names,
)
from dssnet_fast.python_ref.errors import InputError

# Of `TrainingOptions` what `add_recipe_options` asks for.
RECIPE = ("batch", "crop", "optimizer", "learning_rate", "clip_norm", "augment", "sampling")
RECIPE += ("average", "dice", "edge_loss", "precision")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = cli.parser(
        "train",
        "Train DSSNet on DATA/images and DATA/labels. The defaults are the paper's recipe. "
        "Run the same command again to continue a run; start it under torchrun for several GPUs.",
    )
    parser.add_argument("data", type=Path, help="folder with images/ and labels/ of the same names")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--labels",
        choices=("instances", "classes"),
        default="instances",
        help="instances: 0 background, each nucleus its own value (0/255 masks too); "
        "classes: the value is the class, 255 unlabelled",
    )
    data.add_argument("--class-names", default=None, help="comma-separated, background first")
    data.add_argument("--validation", default="0.2", help="share of DATA, or a folder like DATA")
    recipe = add_recipe_options(parser)
    recipe.add_argument("--epochs", type=int, default=400)
    recipe.add_argument("--seed", type=int, default=0)
    network = add_architecture_options(parser)
    network.add_argument("--classes", type=int, default=2, help="with the background")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    machine.add_argument("--workers", type=int, default=0, help="processes that cut crops")
    return parser


def add_recipe_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How to train, but not for how long and from which seed; see `recipe`."""
    group = parser.add_argument_group("recipe")
    group.add_argument("--batch", type=int, default=4, help="crops a step, over all processes")
    group.add_argument("--crop", type=int, default=512, help="side of a crop in pixels")
    group.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    group.add_argument("--learning-rate", type=float, default=1e-3)
    group.add_argument("--clip-norm", type=float, default=0.0, help="of gradients; 0: no clipping")
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument(
        "--sampling",
        choices=("images", "area"),
        default="images",
        help="an epoch is one crop of every image, or as many as fit into it",
    )
    group.add_argument(
        "--average",
        type=float,
        default=0.0,
        metavar="DECAY",
        help="use a moving average of the weights, such as 0.998 a step; 0: the last weights",
    )
    group.add_argument("--dice", type=float, default=0.0, help="weight of a soft Dice loss")
    group.add_argument(
        "--edge-loss",
        choices=("l1", "l2"),
        default="l1",
        help="l2 makes edges probabilities; with l1 they may come out 0 everywhere",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto takes bf16 where it is faster on the device, else fp32",
    )
    return group


def add_architecture_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The network but its classes; see `architecture`."""
    group = parser.add_argument_group("network")
    group.add_argument("--in-channels", type=int, choices=(1, 3), default=3)
    group.add_argument("--width", type=int, default=30)
    group.add_argument("--features", type=int, default=42)
    group.add_argument("--blocks", type=int, default=10)
    group.add_argument("--block", choices=BLOCKS, default="wneck")
    group.add_argument("--upsampling", choices=UPSAMPLINGS, default="nearest")
    group.add_argument("--super-resolution", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument("--edge", action=argparse.BooleanOptionalAction, default=True)
    return group


def recipe(arguments: argparse.Namespace) -> dict[str, object]:
    """`RECIPE` as the arguments say.

    Raises:
        InputError: The device does not exist.
    """
    values = {name: getattr(arguments, name) for name in RECIPE}
    if arguments.precision == "auto":
        values["precision"] = "bf16" if _why_no_bf16(arguments) is None else "fp32"
    return values


def remark(arguments: argparse.Namespace) -> str | None:
    """What to say of the recipe when training starts, if anything."""
    why = _why_no_bf16(arguments) if arguments.precision == "auto" else None
    return why and f"training in fp32: {why}"


def architecture(arguments: argparse.Namespace, classes: int) -> DSSNetConfig:
    """The network that `add_architecture_options` asks for.

    Raises:
        InputError: A value is out of its range.
    """
    names = (field.name for field in fields(DSSNetConfig) if field.name != "classes")
    return DSSNetConfig(classes=classes, **{name: getattr(arguments, name) for name in names})


def import_training():
    """The module of the training loop.

    Raises:
        InputError: A package that training needs is not installed; says what to install.
    """
    try:
        from dssnet_fast.python_ref import training
    except ImportError as error:
        raise InputError(
            f"training needs {error.name}; install it with: pip install 'dssnet_fast[train]'"
        ) from error
    return training


def body(arguments: argparse.Namespace) -> None:
    """Train as the arguments say."""
    training = import_training()
    from dssnet_fast.python_ref.data import find_pairs, split
    from dssnet_fast.training_graph import FoldedTraining

    config = architecture(arguments, arguments.classes)
    pairs = find_pairs(arguments.data)
    try:
        share = float(arguments.validation)
    except ValueError:
        train_pairs, validation_pairs = pairs, find_pairs(Path(arguments.validation))
    else:
        train_pairs, validation_pairs = split(pairs, share)
    options = training.TrainingOptions(
        epochs=arguments.epochs,
        labels=arguments.labels,
        seed=arguments.seed,
        **recipe(arguments),
    )
    best = training.train(
        config,
        options,
        train_pairs,
        validation_pairs,
        _class_names(arguments.class_names, config.classes),
        arguments.out,
        device=arguments.device,
        workers=arguments.workers,
        graph=FoldedTraining,
        remark=remark(arguments),
    )
    if os.environ.get("RANK", "0") != "0":  # torchrun: one process talks
        return
    print(f"best mean IoU {best:.4f} on {len(validation_pairs)} validation images")
    print(f"convert it with: python -m dssnet_fast.convert {arguments.out / 'best.pt'}")


def _class_names(given: str | None, classes: int) -> list[str]:
    if given is None:
        return default_class_names(classes)
    return list(cli.class_names(given, classes))


def _why_no_bf16(arguments: argparse.Namespace) -> str | None:
    from dssnet_fast.python_ref.hardware import why_no_fast_bf16
    from dssnet_fast.python_ref.processes import find_device

    return why_no_fast_bf16(find_device(arguments.device))


if __name__ == "__main__":
    sys.exit(cli.main("train", make_parser, body))
