"""The key names of released checkpoints beside the reference's own.

A released checkpoint is a bare state dict: these names, weight normalisation as `weight_g` and
`weight_v`. This project writes the same names, so that a checkpoint fits both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# (reference name, released name), prefixes; `#` stands for a running number.
_NAMES = (
    ("stem", "pre.con"),
    ("downsamplers.#.strided", "pre.module.#.pool2"),
    ("downsamplers.#.project", "pre.module.#.pool3"),
    ("head", "head.0"),
    ("blocks.#.expand1", "body.module.#.gw1"),
    ("blocks.#.expand3", "body.module.#.gw2"),
    ("blocks.#.activation", "body.module.#.re"),
    ("blocks.#.squeeze", "body.module.#.module.0"),
    ("blocks.#.restore", "body.module.#.module.1"),
    ("blocks.#.layers", "body.module.#.layers"),
    ("ffm.mix", "tail1.1"),
    ("ffm.mix_activation", "tail1.2"),
    ("ffm.smooth", "tail1.3"),
    ("ffm.smooth_activation", "tail1.4"),
    ("segmentation.reduce", "tail2.0"),
    ("segmentation.reduce_activation", "tail2.1"),
    ("segmentation.narrow", "tail2.2"),
    ("segmentation.narrow_activation", "tail2.3"),
    ("segmentation.inner", "tail2.5"),
    ("segmentation.outer", "tail2.6"),
    ("edge", "boundary"),
    ("super_resolution.head", "sr_head"),
    ("super_resolution.body.#.expand1", "sr_body.#.gw1"),
    ("super_resolution.body.#.expand3", "sr_body.#.gw2"),
    ("super_resolution.body.#.activation", "sr_body.#.re"),
    ("super_resolution.body.#.squeeze", "sr_body.#.module.0"),
    ("super_resolution.body.#.restore", "sr_body.#.module.1"),
    ("super_resolution.tail", "sr_tail"),
)


def _rules(pairs: list[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    def rule(source: str, target: str) -> tuple[re.Pattern[str], str]:
        pattern = re.escape(source).replace(r"\#", r"(\d+)")
        return re.compile(rf"{pattern}\.(.+)"), target

    return [rule(source, target) for source, target in pairs]


_TO_RELEASED = _rules(list(_NAMES))
_FROM_RELEASED = _rules([(released, own) for own, released in _NAMES])


def _translate(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        match = pattern.fullmatch(key)
        if match:
            *numbers, rest = match.groups()
            for number in numbers:
                target = target.replace("#", number, 1)
            return f"{target}.{rest}"
    return None


def to_released(key: str) -> str:
    """The released name of one of the reference's keys, such as `stem.bias` -> `pre.con.bias`."""
    released = _translate(key, _TO_RELEASED)
    if released is None:
        raise KeyError(key)
    return released


def from_released(key: str) -> str | None:
    """The reference's name of a released key; None for a name the network does not have."""
    return _translate(key, _FROM_RELEASED)


# torch's parametrised weight normalisation beside the older hook's names.
_PARAMETRIZED = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def released_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's parameters as a released checkpoint would hold them."""
    state = {}
    for key, value in network.state_dict().items():
        for own, released in _PARAMETRIZED.items():
            key = key.replace(own, released)
        state[to_released(key)] = value.detach()
    return state


def load_released(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a released checkpoint's state dict.

    Args:
        network: A `DSSNet` whose config fits; see `dssnet_fast.checkpoint` for reading files of
            any kind and inferring the config.
        state: Released key -> tensor; a `module.` prefix (DataParallel) is accepted, and so is a
            plain `weight` for a layer that the network keeps weight-normalised.

    Raises:
        RuntimeError: Keys are missing, unexpected or misshapen (torch's own listing).
    """
    wanted = network.state_dict().keys()
    g_name, v_name = _PARAMETRIZED
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        own = from_released(key) or key
        layer, _, leaf = own.rpartition(".")
        if leaf == "weight" and f"{layer}.{g_name}" in wanted:
            norm = value.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            renamed[f"{layer}.{g_name}"] = norm
            # A filter of zeros has no direction: any will do, its magnitude is 0.
            renamed[f"{layer}.{v_name}"] = value.where(norm > 0, torch.ones_like(value))
            continue
        for parametrized, released in _PARAMETRIZED.items():
            if leaf == released:
                own = f"{layer}.{parametrized}"
        renamed[own] = value
    network.load_state_dict(renamed)
