"""The options of command lines that say which network runs, and how nuclei come of its answers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dssnet_fast.python_ref.errors import InputError

if TYPE_CHECKING:
    from dssnet_fast.model import FastDSSNet
    from dssnet_fast.separate import Separation


def add_network_options(parser: argparse._ActionsContainer) -> None:
    """The options that say which network runs, and how; `load_net` reads them."""
    parser.add_argument(
        "--model", default="pretrained", help="weights as a .safetensors file, or `pretrained`"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--backend", default="auto", help="what runs the network")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        help="arithmetic; bf16 gains only where the processor or GPU has fast instructions for it; "
        "int8 needs calibrated weights",
    )


def load_net(arguments: argparse.Namespace) -> FastDSSNet:
    """The network that the options of `add_network_options` ask for."""
    from dssnet_fast.model import FastDSSNet

    how = {
        "device": arguments.device,
        "backend": arguments.backend,
        "precision": arguments.precision,
    }
    if arguments.model == "pretrained":
        return FastDSSNet.pretrained(**how)
    return FastDSSNet.load(arguments.model, **how)


def add_separation_options(parser: argparse._ActionsContainer) -> None:
    """The options that say how touching nuclei are told apart; `load_separation` reads them."""
    parser.add_argument(
        "--separate",
        default="auto",
        choices=("auto", "edges", "probability", "no"),
        help="how touching nuclei are told apart: by the edges that the network sees, by its "
        "probabilities, or not at all; auto takes edges where the weights have an edge head, else "
        "probabilities",
    )
    parser.add_argument(
        "--interior-probability",
        type=_probabilities,
        metavar="P[,P...]",
        help="how probable it must be that a pixel lies inside a nucleus and on no border for the "
        "nucleus to grow from there; of several the highest comes first (default: what was best "
        "for the packaged model)",
    )


def load_separation(arguments: argparse.Namespace, net: FastDSSNet) -> Separation:
    """What the options of `add_separation_options` ask for, with a network."""
    from dssnet_fast.separate import choose

    return choose(arguments.separate, net.has_edges, arguments.interior_probability)


def _probabilities(text: str) -> tuple[float, ...]:
    from dssnet_fast.separate import check

    try:
        values = tuple(float(part) for part in text.split(","))
        check("auto", values)
    except (ValueError, InputError) as error:
        raise argparse.ArgumentTypeError(
            f"must be increasing numbers above 0 and up to 1, got {text}"
        ) from error
    return values


# What `add_separation_options` adds, by name, and how a value is read.
SEPARATION_OPTIONS = {"separate": str, "interior-probability": _probabilities}
