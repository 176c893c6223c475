"""What callers give to backends with kernels of our own: checked, and laid out for reading."""

from __future__ import annotations

import torch
from torch import Tensor

from dssnet_fast.backends import image_size

ALIGNMENT = 16  # bytes; kernels move data in chunks of this size


def check_image(image: Tensor, channels: int) -> tuple[int, int, int]:
    """Batch, height and width of what `Backend.downsample` takes.

    Raises:
        ValueError: Its shape is another.
        TypeError: It is neither uint8 nor floating point.
    """
    if image.ndim != 4:
        raise ValueError(f"an image must have 4 dimensions, got {list(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"an image must be uint8 or floating point, got {image.dtype}")
    size = image_size(image)
    found = image.shape[3 if image.dtype == torch.uint8 else 1]
    if found != channels or size[1] % 8 or size[2] % 8:
        raise ValueError(
            f"an image must have {channels} channels and sides that are "
            f"multiples of 8, got {list(image.shape)} {image.dtype}"
        )
    return size


def map_size(stage: str, x: Tensor, scale: int) -> tuple[int, int, int]:
    """Batch, height and width of the images behind a map at 1/scale of their resolution.

    Raises:
        ValueError: It is no map.
    """
    if x.ndim != 4:
        raise ValueError(f"{stage}: a map must have 4 dimensions, got {list(x.shape)}")
    return x.shape[0], scale * x.shape[1], scale * x.shape[2]


def check_map(name: str, x: Tensor, channels: int, dtype: torch.dtype) -> None:
    """Raise ValueError or TypeError unless a map has these channels and this dtype."""
    if x.shape[-1] != channels:
        raise ValueError(f"{name} must have {channels} channels, got {list(x.shape)}")
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {x.dtype}")


def readable_features(
    stage: str,
    shallow: Tensor,
    deep: Tensor,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Shallow and deep features that are as they should be, as `readable` gives them.

    Raises:
        ValueError, TypeError: See `check_features` and `check_map`.
    """
    check_features(stage, shallow, deep)
    for part in (shallow, deep):
        check_map("features", part, channels, dtype)
    return readable(shallow, device), readable(deep, device)


def check_features(stage: str, shallow: Tensor, deep: Tensor) -> None:
    """Raise ValueError unless both have one shape."""
    if shallow.shape != deep.shape:
        raise ValueError(
            f"{stage}: shallow and deep must have one shape, "
            f"got {list(shallow.shape)} and {list(deep.shape)}"
        )


def readable(x: Tensor, device: torch.device) -> Tensor:
    """The tensor as kernels read it: contiguous and aligned to `ALIGNMENT`.

    Raises:
        ValueError: It is on another device.
    """
    if x.device != device:
        raise ValueError(f"the network is on {device}, got {x.device}")
    x = x.detach().contiguous()
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()
