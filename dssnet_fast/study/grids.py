"""What each study compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from dssnet_fast.image_kinds import KINDS
from dssnet_fast.python_ref.config import BLOCKS, DSSNetConfig
from dssnet_fast.python_ref.training import TrainingOptions
from dssnet_fast.study.networks import DSSNET, MAKERS

ALL = "all"  # kinds of images
WIDTHS = range(9, 37, 3)
DEPTHS = range(4, 14)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a study's table: what is trained, but not for how long and from which seed.

    Attributes:
        name: In the table.
        config: The architecture.
        options: The recipe; its epochs, steps and seed do not count.
        network: One of `networks.MAKERS`.
        images: The kind of images that it is trained on, one of `KINDS` or `ALL`.
    """

    name: str
    config: DSSNetConfig
    options: TrainingOptions
    network: str = DSSNET
    images: str = ALL

    @property
    def key(self) -> str:
        """The same for variants that are trained alike, whatever they are called."""
        return self._named(self._bare())

    def run_name(self, steps: int, seed: int) -> str:
        """Folder of the run: what it is, for people, and a digest of all its settings."""
        return self._named(self.run_options(steps, seed), f"-{steps}-steps-seed-{seed}")

    def run_options(self, steps: int, seed: int) -> TrainingOptions:
        """The recipe of one run."""
        return replace(self._bare(), steps=steps, seed=seed)

    def _bare(self) -> TrainingOptions:
        return replace(self.options, epochs=1, steps=0, seed=0)

    def _named(self, options: TrainingOptions, suffix: str = "") -> str:
        config, parts = self.config, [self.network.lower().replace("+", "p")]
        if self.network == DSSNET:
            parts += [f"{config.block}{config.blocks}", f"width{config.width}"]
            parts += ["sr"] if config.super_resolution else []
            parts += ["edge"] if config.edge else []
        parts += [self.images.replace(" ", "_")] if self.images != ALL else []
        settings = [self.network, self.images, config.to_dict(), asdict(options)]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"{'-'.join(parts)}{suffix}-{digest[:8]}"


def width(config: DSSNetConfig, options: TrainingOptions) -> list[Variant]:
    """The paper's Table 2: channels of the down-sampled features."""
    return [
        Variant(name=str(value), config=replace(config, width=value), options=options)
        for value in WIDTHS
    ]


def depth(config: DSSNetConfig, options: TrainingOptions) -> list[Variant]:
    """The paper's Table 3: number of blocks."""
    return [
        Variant(name=str(value), config=replace(config, blocks=value), options=options)
        for value in DEPTHS
    ]


def blocks(config: DSSNetConfig, options: TrainingOptions) -> list[Variant]:
    """The paper's Fig. 5: kinds of blocks."""
    return [
        Variant(name=value, config=replace(config, block=value), options=options)
        for value in BLOCKS
    ]


def supervisions(config: DSSNetConfig, options: TrainingOptions) -> list[Variant]:
    """The paper's Table 4: with and without the two supervisions."""
    which = {
        "none": (False, False),
        "super-resolution": (True, False),
        "edge": (False, True),
        "both": (True, True),
    }
    return [
        Variant(
            name=name,
            config=replace(config, super_resolution=super_resolution, edge=edge),
            options=options,
        )
        for name, (super_resolution, edge) in which.items()
    ]


def networks(config: DSSNetConfig, options: TrainingOptions) -> list[Variant]:
    """The paper's Table 5: DSSNet beside other networks."""
    others = DSSNetConfig(
        in_channels=config.in_channels, classes=config.classes, super_resolution=False, edge=False
    )
    return [
        Variant(
            name=name,
            config=config if name == DSSNET else others,
            options=options,
            network=name,
        )
        for name in MAKERS
    ]


def kinds(config: DSSNetConfig, options: TrainingOptions) -> list[Variant]:
    """The paper's Table 7: trained on images of one kind or of all."""
    return [
        Variant(name=kind, config=config, options=options, images=kind) for kind in (ALL, *KINDS)
    ]


def recipe(config: DSSNetConfig, options: TrainingOptions) -> list[Variant]:
    """The recipe with one ingredient changed at a time."""
    sampling = "images" if options.sampling == "area" else "area"
    average = 0.0 if options.average else 0.995
    dice = 0.0 if options.dice else 1.0
    edge_loss = "l1" if options.edge_loss == "l2" else "l2"
    rates = [float(f"{factor * options.learning_rate:.3g}") for factor in (0.3, 3)]
    changes: dict[str, dict[str, object]] = {
        "unchanged": {},
        f"sampling {sampling}": {"sampling": sampling},
        f"average {average:g}": {"average": average},
        f"dice {dice:g}": {"dice": dice},
        f"edge loss {edge_loss}": {"edge_loss": edge_loss},
        f"augment {'off' if options.augment else 'on'}": {"augment": not options.augment},
        **{f"learning rate {rate:g}": {"learning_rate": rate} for rate in rates},
    }
    return [
        Variant(name=name, config=config, options=replace(options, **changed))
        for name, changed in changes.items()
    ]


GRIDS: dict[str, Callable[[DSSNetConfig, TrainingOptions], list[Variant]]] = {
    "width": width,
    "depth": depth,
    "blocks": blocks,
    "supervisions": supervisions,
    "networks": networks,
    "kinds": kinds,
    "recipe": recipe,
}
