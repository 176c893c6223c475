"""Augmentation of training crops: rotation, scale, flips, blur and colour jitter, by kornia."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from kornia.constants import DataKey, Resample, SamplePadding
from torch import Tensor, nn


class Augmentation(nn.Module):
    """Changes images and their labels together.

    Randomness comes from torch's global generator. Brightness is changed by a factor, never by a
    difference: that would turn the faint nuclei of a dark image black, with their labels left.

    Args:
        channels: Channels of the images, 1 or 3; saturation and hue need 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels == 3:
            colour = [K.ColorJitter(0.2, 0.2, 0.2, 0.05, p=0.8)]
        else:
            # A factor of the values, in spite of its name.
            colour = [K.RandomContrast((0.8, 1.2), p=0.8)]
        self.both = K.AugmentationSequential(
            K.RandomHorizontalFlip(p=0.5),
            K.RandomVerticalFlip(p=0.5),
            # Mirrored at its borders: no corner is left empty.
            K.RandomAffine(
                degrees=180.0,
                scale=(0.8, 1.25),
                padding_mode=SamplePadding.REFLECTION.name,
                p=0.75,
            ),
            data_keys=["image", "mask"],
            # Labels are names, not quantities: never blend two of them.
            extra_args={
                DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": None},
            },
        )
        self.image_only = nn.Sequential(
            K.RandomGaussianBlur((5, 5), (0.3, 1.5), p=0.2),
            *colour,
        )

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            images: [B, C, H, W] uint8.
            labels: [B, H, W] int32, below 2**24.

        Returns:
            Images [B, C, H, W] float32 in [0, 255] and labels [B, H, W] int32.
        """
        scaled, moved = self.both(images.float() / 255, labels.unsqueeze(1).float())
        return self.image_only(scaled).clamp(0, 1) * 255, moved.squeeze(1).round().int()
