"""The architecture of a DSSNet as one frozen, validated value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from .errors import InputError

BLOCKS = ("wneck", "wdsr_b", "bottleneck", "basic")
UPSAMPLINGS = ("nearest", "pixel_shuffle")

# 3x3 convolutions in a row inside one block: how many low-resolution cells it looks to each side.
_BLOCK_RADIUS_CELLS = {"wneck": 3, "wdsr_b": 1, "bottleneck": 1, "basic": 2}


@dataclass(frozen=True, kw_only=True)
class DSSNetConfig:
    """Everything that fixes a DSSNet's shapes. The defaults are the paper's network.

    Attributes:
        in_channels: Channels of the image, 1 or 3.
        classes: Segmentation classes with the background, 2 to 16.
        width: Channels of the down-sampled features, 9 to 36 (paper, Table 2).
        features: Channels of the feature extraction at 1/8 resolution, 4 to 128.
        blocks: Number of feature extraction blocks, 1 to 16 (paper, Table 3).
        block: Kind of block (paper, Fig. 5): `wneck`, `wdsr_b`, `bottleneck` or `basic`.
        super_resolution: Whether the training-only reconstruction branch exists (paper, Table 4).
        edge: Whether the edge branch exists (paper, Table 4).
        upsampling: How the FFM goes from 1/8 to 1/2 resolution: `nearest` (as released) or
            `pixel_shuffle` (learned: 1x1 convolution to 16 times the channels, then PixelShuffle).

    Raises:
        InputError: A field is outside its range; the message names field, value and range.
    """

    in_channels: int = 3
    classes: int = 2
    width: int = 30
    features: int = 42
    blocks: int = 10
    block: str = "wneck"
    super_resolution: bool = True
    edge: bool = True
    upsampling: str = "nearest"

    def __post_init__(self) -> None:
        _require_one_of("in_channels", self.in_channels, (1, 3))
        _require_within("classes", self.classes, 2, 16)
        _require_within("width", self.width, 9, 36)
        _require_within("features", self.features, 4, 128)
        _require_within("blocks", self.blocks, 1, 16)
        _require_one_of("block", self.block, BLOCKS)
        _require_one_of("super_resolution", self.super_resolution, (False, True))
        _require_one_of("edge", self.edge, (False, True))
        _require_one_of("upsampling", self.upsampling, UPSAMPLINGS)

    @property
    def fused(self) -> int:
        """Channels of the FFM: the head's features beside the blocks' output."""
        return 2 * self.features

    @property
    def answer_context_px(self) -> int:
        """What of `context_px` the FFM and the segmentation head reach, of the maps at 1/8."""
        return 2 + 2 * 2 + 2

    @property
    def edge_answer_context_px(self) -> int:
        """What of `edge_context_px` the FFM and the edge head reach, in whole cells of 8 px.

        Their five 3x3 convolutions at 1/2 resolution reach 10 px.
        """
        return 2 * 8

    @property
    def context_px(self) -> int:
        """Pixels to each side of an output pixel that can influence it; a multiple of 8.

        Counted backwards through the 3x3 convolutions: the segmentation head reaches 2 px at full
        and 2 * 2 px at 1/2 resolution, the FFM 2 px, each block `r` cells and the head 1 cell of
        8 px, the down-samplers 4 + 2 + 1 px and the stem 1 px. For crops that begin at a multiple
        of 8 this is exact: 264 px for ten W-NECK blocks.
        """
        return self.answer_context_px + self._features_context_px

    @property
    def edge_context_px(self) -> int:
        """The same for the edge map, a cell more: 272 px for ten W-NECK blocks."""
        return self.edge_answer_context_px + self._features_context_px

    @property
    def _features_context_px(self) -> int:
        cells = 1 + self.blocks * _BLOCK_RADIUS_CELLS[self.block]
        return 8 * cells + 4 + 2 + 1 + 1

    def to_dict(self) -> dict[str, int | str | bool]:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> DSSNetConfig:
        """The config that `to_dict` described.

        Raises:
            InputError: A field is unknown, missing or out of range.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            given = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise InputError(f"config must have exactly the fields {sorted(known)}, got {given}")
        return cls(**values)


def default_class_names(classes: int) -> list[str]:
    """Names for `classes` classes, background first, where nobody gave better ones."""
    if classes == 2:
        return ["background", "nucleus"]
    return ["background"] + [f"nucleus {number}" for number in range(1, classes)]


def _require_within(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"config: {name} must be an integer from {low} to {high}, got {value!r}")


def _require_one_of(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
        raise InputError(f"config: {name} must be one of {allowed}, got {value!r}")
