"""The options of command lines that say which network runs, and how."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dssnet_fast.model import FastDSSNet


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
        help="arithmetic; int8 needs calibrated weights",
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
