"""What a user can choose about the analysis of slides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.separate import Separation, check, choose
from dssnet_fast.weights import check_mpp
from dssnet_fast.wsi import layout
from dssnet_fast.wsi.network import Network

ORIGINS = ("bounds", "level0")


@dataclass(frozen=True)
class Options:
    """All that results depend on beside the slide and the network.

    Attributes:
        mpp: Micrometres per px of the slide's finest level, whatever the file says; None to
            believe it.
        assume_mpp: The same, for slides that do not say.
        model_mpp: Micrometres per px of the images that the network knows; None for what its
            weight file says.
        region: None for the whole slide; "x,y,width,height" in px of the finest level; or a
            GeoJSON file of annotations, in px as QuPath counts them.
        skip: Whether empty glass is passed by.
        context: Px around a tile that are computed as well; None for as many as it takes to be
            exact.
        tile: Height and width of the largest tile, px of the analysed image; None for what suits
            the device.
        separate: How touching nuclei are told apart, see `separate.choose`.
        interior_probability: Likewise; None for what is best for the network's kind of answers.
        min_area: Smallest nucleus, µm².
        simplify: How far outlines in GeoJSON may move to have fewer points, px of the analysed
            image.
        origin: What (0, 0) is in outputs: the corner of the part that QuPath shows (`bounds`), or
            of the finest level (`level0`). They differ for MIRAX and some others only.
        keep_going: Whether a slide of which parts cannot be read gives results without them.

    Raises:
        InputError: A value is out of its range.
    """

    mpp: float | None = None
    assume_mpp: float | None = None
    model_mpp: float | None = None
    region: str | None = None
    skip: bool = True
    context: int | None = None
    tile: tuple[int, int] | None = None
    separate: str = "auto"
    interior_probability: tuple[float, ...] | None = None
    min_area: float = 4.0
    simplify: float = 0.0
    origin: str = "bounds"
    keep_going: bool = False

    def __post_init__(self) -> None:
        for name in ("mpp", "assume_mpp", "model_mpp"):
            if getattr(self, name) is not None:
                check_mpp(getattr(self, name))
        if self.context is not None and (self.context < 0 or self.context != int(self.context)):
            raise InputError(f"context must be a whole number of px, 0 or more, got {self.context}")
        if self.tile is not None:
            layout.check_tile(self.tile)
        check(self.separate, self.interior_probability)
        for name in ("min_area", "simplify"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.origin not in ORIGINS:
            raise InputError(f"origin must be one of {ORIGINS}, got {self.origin!r}")

    def separation(self, net: Network) -> Separation:
        """How nuclei of a network are told apart.

        Raises:
            InputError: By edges, and the weights have no edge head.
        """
        return choose(self.separate, net.has_edges, self.interior_probability)

    def to_dict(self) -> dict[str, object]:
        """As JSON knows it; a file of annotations with its digest."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("tile", "interior_probability"):
            values[name] = values[name] and list(values[name])
        if self.region is not None and Path(self.region).is_file():
            digest = hashlib.sha256(Path(self.region).read_bytes()).hexdigest()
            values["region"] = {"file": Path(self.region).name, "sha256": digest}
        return values
