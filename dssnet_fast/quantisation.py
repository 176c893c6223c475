"""What int8 needs to know beside the weights: steps of activations, and layers to leave alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Size

from dssnet_fast.checkpoint import problems_with_keys
from dssnet_fast.fold import PRODUCTS
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError

LARGEST = 127  # |q|, the same to both sides
_LARGEST_STEP = 2.0**126  # float32 still holds its inverse, and that of the smallest

# The convolutions of each kind of block, in order.
BLOCK_CONVOLUTIONS = {
    "wneck": ("expand1", "expand3", "squeeze", "restore"),
    "wdsr_b": ("expand", "squeeze", "restore"),
    "bottleneck": ("reduce", "inner", "restore"),
    "basic": ("first", "second"),
}
# The convolutions that read what another one reads, too, and so have its step.
SHARED = {"expand3": "expand1"}


@dataclass(frozen=True)
class Quantisation:
    """Int8 for one network.

    An activation v is stored as q = clamp(round(v / step), -127, 127) and stands for q * step.

    Attributes:
        steps: Step of what a convolution reads, by the convolution's name; see `step_names`.
        exact: Layers that are computed in a higher precision all the same; see `layer_names`.
        images: How many images the steps come from.
    """

    steps: Mapping[str, float]
    exact: tuple[str, ...] = ()
    images: int = 0

    def check(self, config: DSSNetConfig) -> None:
        """Raise InputError unless this is whole, and of a network of `config`."""
        given, known = (dict.fromkeys(names, Size()) for names in (self.steps, step_names(config)))
        problems = problems_with_keys(given, known)
        problems += [
            f"step {name} must be positive and finite, got {step!r}"
            for name, step in self.steps.items()
            if not 1 / _LARGEST_STEP <= step <= _LARGEST_STEP
        ]
        for name in sorted(given.keys() & known.keys()):
            block, _, convolution = name.rpartition(".")
            twin = f"{block}.{SHARED.get(convolution, convolution)}"
            if self.steps[name] != self.steps.get(twin, self.steps[name]):
                problems.append(f"{name} and {twin} read the same values in different steps")
        if unknown := sorted(set(self.exact) - set(layer_names(config))):
            problems.append(f"unknown layers: {', '.join(unknown)}")
        if problems:
            raise InputError(f"int8 does not fit the config: {'; '.join(problems)}")

    def to_json(self) -> str:
        """All of it as text, which `from_json` reads."""
        return json.dumps({**asdict(self), "steps": dict(self.steps)})

    @classmethod
    def from_json(cls, text: str, config: DSSNetConfig) -> Quantisation:
        """What `to_json` wrote for a network of `config`.

        Raises:
            InputError: It is damaged, or of another network.
        """
        try:
            values = json.loads(text)
            steps = {str(name): float(step) for name, step in values["steps"].items()}
            exact = tuple(str(name) for name in values["exact"])
            read = cls(steps, exact, int(values["images"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"its int8 metadata is damaged ({error!r})") from error
        read.check(config)
        return read


def step_names(config: DSSNetConfig) -> tuple[str, ...]:
    """The steps that int8 needs, in the order of the network.

    Convolutions have the names of their weights. The down-samplers' first reads the image itself,
    whose bytes are exact, and `fuse.mix` is always computed exactly. `segment.tail` is the composed
    `inner` and `outer`. With nearest up-sampling `fuse.smooth.0` to `fuse.smooth.8` are the factors
    of its nine products, as in `dssnet_fast.fold.cell_factors`.
    """
    convolutions = BLOCK_CONVOLUTIONS[config.block]
    smooth = ["fuse.smooth"]
    if config.upsampling == "nearest":
        smooth = [f"fuse.smooth.{i}" for i in range(PRODUCTS)]
    return (
        "downsample.1",
        "downsample.2",
        "extract.head",
        *(f"extract.blocks.{i}.{name}" for i in range(config.blocks) for name in convolutions),
        *smooth,
        "fuse.reduce",
        "segment.narrow",
        "segment.tail",
    )


def layer_names(config: DSSNetConfig) -> tuple[str, ...]:
    """What int8 can leave in a higher precision, in the order of the network."""
    return (
        "downsample.stem",
        *(f"downsample.{i}" for i in range(3)),
        "extract.head",
        *(f"extract.blocks.{i}" for i in range(config.blocks)),
        "fuse.smooth",
        "fuse.reduce",
        "segment.narrow",
        "segment.tail",
    )
