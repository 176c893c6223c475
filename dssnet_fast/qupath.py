"""How a nucleus is named and coloured, in QuPath's GeoJSON and in every picture of ours."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence

import numpy as np

# Colours of classes 1 to 15, chosen to stand out from black and gray as well as from the purple,
# pink, blue and white of stained tissue.
CLASS_COLOURS = (
    (0, 230, 60),
    (255, 200, 0),
    (0, 200, 255),
    (255, 70, 0),
    (150, 255, 0),
    (255, 0, 160),
    (0, 255, 200),
    (255, 130, 60),
    (60, 120, 255),
    (220, 255, 90),
    (0, 160, 110),
    (255, 60, 60),
    (120, 220, 255),
    (200, 150, 0),
    (190, 90, 255),
)

_ID_NAMESPACE = uuid.UUID("6f1d0c5e-5b0f-5d1c-9a53-7a1c7f3c8e21")


def nucleus_uuids(identity: str, numbers: Iterable[int]) -> list[str]:
    """The UUIDs (version 5) of nuclei of one image or slide.

    Args:
        identity: Something that tells the image from others.
        numbers: The nuclei's ids in the image.
    """
    # As uuid.uuid5 makes them, which takes four times as long.
    begun = hashlib.sha1(_ID_NAMESPACE.bytes + f"{identity}/".encode("utf-8", "surrogatepass"))
    digests = []
    for number in numbers:
        made = begun.copy()
        made.update(b"%d" % number)
        digests.append(made.digest())
    octets = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, begun.digest_size).copy()
    octets[:, 6] = octets[:, 6] & 0x0F | 0x50
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    digits = octets[:, :16].tobytes().hex()
    return [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-{digits[at + 12 : at + 16]}"
        f"-{digits[at + 16 : at + 20]}-{digits[at + 20 : at + 32]}"
        for at in range(0, len(digits), 32)
    ]


def classification(class_index: int, class_names: Sequence[str]) -> dict:
    """What QuPath calls the classification of an object.

    Args:
        class_index: 1 or more.
        class_names: Names of the classes, background first.
    """
    return {"name": class_names[class_index], "color": list(CLASS_COLOURS[class_index - 1])}
