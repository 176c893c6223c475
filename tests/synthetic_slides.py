"""Synthetic slides of liquid-based cytology, of any size, with known nuclei.

    python tests/synthetic_slides.py OUT.tiff --size 12000 --kind svs

Pale cells with dark nuclei lie scattered and in clusters on glass that is a little uneven and
noisy, with some debris. All of it follows from the seed and the place alone, square by square, so
that a slide is made in one pass with little memory.
"""

from __future__ import annotations

import argparse
import functools
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KINDS = ("tiff", "svs", "ome", "plain")
QUALITY = 88  # of JPEG

_SQUARE = 512  # px: tiles, and squares that nuclei are drawn for
_STRIP = 64  # rows
_STEP = 4  # from one level to the next
_GLASS = np.array([243, 242, 240], np.float32)
_NUCLEUS = np.array([0.72, 0.86, 0.46], np.float32)  # optical density, red to blue
_CYTOPLASMS = np.array([[0.17, 0.07, 0.08], [0.04, 0.16, 0.09], [0.10, 0.11, 0.05]], np.float32)
_DEBRIS = np.array([0.35, 0.42, 0.55], np.float32)


@dataclass(frozen=True)
class Truth:
    """The nuclei of a slide, ellipses in level-0 px; all arrays are float64 [N].

    Attributes:
        x: Centre; pixel (row r, column c) is the square from (c, r) to (c + 1, r + 1).
        y: Centre.
        major: Longer semi-axis.
        minor: Shorter semi-axis.
        angle: Of the longer one, radians from the x axis towards the y axis.
    """

    x: np.ndarray
    y: np.ndarray
    major: np.ndarray
    minor: np.ndarray
    angle: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def make_slide(
    path: str | Path,
    width: int,
    height: int,
    *,
    kind: str = "tiff",
    mpp: float = 0.5,
    seed: int = 0,
    density: float = 40.0,
    contrast: float = 1.0,
) -> Truth:
    """Write a slide and return its nuclei.

    Args:
        path: The file.
        width: px.
        height: px.
        kind: `tiff`: pyramid of JPEG tiles, which OpenSlide calls generic-tiff; `svs`: the same as
            Aperio writes it; `ome`: OME-TIFF, levels as SubIFDs; `plain`: strips, one level.
        mpp: Micrometres per px, 0.25 or more. Cells have the same size in micrometres.
        seed: Of everything.
        density: Nuclei for each 10^6 px, about.
        contrast: How much cells absorb, 1 for the usual.
    """
    if kind not in KINDS or mpp < 0.25:
        raise ValueError(f"make_slide: kind must be one of {KINDS}, mpp at least 0.25")
    scene = _Scene(width, height, 0.5 / mpp, seed, density, contrast)
    if kind == "plain":
        _write_strips(Path(path), scene, mpp)
    else:
        _write_pyramid(Path(path), scene, kind, mpp)
    return scene.truth()


# What there is to see.


class _Scene:
    def __init__(self, width, height, scale, seed, density, contrast):
        self.width, self.height = width, height
        self._scale, self._seed, self._contrast = scale, seed, contrast
        self._anchors = density * _SQUARE**2 / 1e6 / 2.2  # 2.2 nuclei for each, on average
        rng = np.random.default_rng([seed, 1])
        self._noise = rng.normal(0, 1.6, (8, _SQUARE, _SQUARE, 3)).astype(np.float32)
        self._chromatin = _smooth_noise(rng, 256)
        # Kept for the squares of three rows, which is what drawing row by row looks at.
        self.things = functools.lru_cache(4 * (width // _SQUARE + 3))(self._things)

    def truth(self) -> Truth:
        found = [
            nuclei
            for row in range(-1, self.height // _SQUARE + 2)
            for column in range(-1, self.width // _SQUARE + 2)
            if len(nuclei := self.things(row, column)[1])
        ]
        nuclei = np.concatenate(found)[:, :5] if found else np.zeros((0, 5))
        inside = (nuclei[:, :2] >= 0).all(1) & (nuclei[:, :2] < (self.width, self.height)).all(1)
        return Truth(*(column.copy() for column in nuclei[inside].T))

    def _things(self, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        """What is drawn for a square: cytoplasms and debris, and nuclei.

        Each is float64 [N, 9]: centre x, y, semi-axes, angle, optical density of three colours, and
        how many px its border is soft.
        """
        rng = np.random.default_rng([self._seed, 2, row + 2, column + 2])
        pale, nuclei = [], []
        scale = self._scale
        for _ in range(rng.poisson(self._anchors)):
            at = rng.uniform(0, _SQUARE, 2)
            clustered = rng.random() < 0.12
            count = int(rng.integers(5, 18)) if clustered else 1
            reach = rng.uniform(17, 21) * np.sqrt(count) if clustered else 0
            stain = _CYTOPLASMS[rng.integers(len(_CYTOPLASMS))] * rng.uniform(0.6, 1.3)
            stain *= 0.6 if clustered else 1  # its cells overlap
            for _ in range(count):
                offset = rng.uniform(-1, 1, 2) * reach
                centre = at + offset * scale
                major = rng.uniform(8.5, 12) if clustered else rng.uniform(8.5, 15)
                major, minor = major * scale, max(major * rng.uniform(0.65, 1), 8) * scale
                angle = rng.uniform(0, np.pi)
                dark = _NUCLEUS * rng.uniform(0.75, 1.25)
                nuclei.append([*centre, max(major, minor), min(major, minor), angle, *dark, 1.6])
                wide = rng.uniform(20, 34) if clustered else rng.uniform(34, 85)
                aside = rng.normal(0, 0.12, 2) * wide
                axes = wide * scale, wide * rng.uniform(0.65, 1) * scale
                pale.append([*(centre + aside * scale), *axes, rng.uniform(0, np.pi), *stain, 7])
        for _ in range(rng.poisson(1.2)):
            axes = rng.uniform(1, 3.5, 2) * scale
            pale.append(
                [*rng.uniform(0, _SQUARE, 2), *axes, 0, *_DEBRIS * rng.uniform(0.2, 1), 1.5]
            )
        corner = np.zeros(9)
        corner[:2] = column * _SQUARE, row * _SQUARE
        return tuple(np.array(kind).reshape(-1, 9) + corner for kind in (pale, nuclei))

    def square(self, row: int, column: int) -> np.ndarray:
        """uint8 [512, 512, 3], the pixels of a square; beyond the slide's border it goes on."""
        left, top = column * _SQUARE, row * _SQUARE
        along_x = np.arange(left, left + _SQUARE, dtype=np.float32) / max(self.width, 1)
        along_y = np.arange(top, top + _SQUARE, dtype=np.float32) / max(self.height, 1)
        light = 1 - 0.03 * (along_x - 0.5) ** 2 - 0.03 * (along_y[:, None] - 0.5) ** 2
        seen = light[:, :, None] * _GLASS
        around = [
            self.things(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)
        ]
        for kind in (0, 1):  # nuclei lie over cytoplasms
            for things in around:
                for thing in things[kind]:
                    self._draw(seen, thing, left, top, textured=kind == 1)
        which = np.random.default_rng([self._seed, 3, row + 2, column + 2]).integers(8)
        seen += self._noise[which]
        return np.clip(seen + 0.5, 0, 255).astype(np.uint8)

    def _draw(self, seen: np.ndarray, thing: np.ndarray, left: int, top: int, textured: bool):
        x, y, major, minor, angle = thing[:5]
        softness = thing[8] * self._scale
        radius = max(major, minor) + softness
        first_x, last_x = max(int(x - radius - left), 0), min(int(x + radius - left) + 2, _SQUARE)
        first_y, last_y = max(int(y - radius - top), 0), min(int(y + radius - top) + 2, _SQUARE)
        if first_x >= last_x or first_y >= last_y:
            return
        dx = (np.arange(first_x, last_x) + 0.5 + left - x).astype(np.float32)
        dy = (np.arange(first_y, last_y) + 0.5 + top - y).astype(np.float32)[:, None]
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
        outside = np.sqrt((along / np.float32(major)) ** 2 + (across / np.float32(minor)) ** 2)
        inside = np.clip((1 - outside) * np.float32(min(major, minor) / softness) + 0.5, 0, 1)
        if textured:
            rows = (np.arange(first_y, last_y) + top) % 256
            columns = (np.arange(first_x, last_x) + left) % 256
            inside *= 1 + 0.25 * self._chromatin[rows[:, None], columns]
        density = thing[5:8].astype(np.float32) * np.float32(-np.log(10) * self._contrast)
        seen[first_y:last_y, first_x:last_x] *= np.exp(inside[:, :, None] * density)


def _smooth_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """float32 [side, side], periodic, standard deviation 1, grains of some px."""
    frequency = np.fft.fftfreq(side)
    weight = np.exp(-(frequency**2 + frequency[:, None] ** 2) * (2 * np.pi * 2.0) ** 2 / 2)
    smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * weight).real
    return (smooth / smooth.std()).astype(np.float32)


# Files.


class _Level:
    """Takes rows of pixels from the top down, keeps them as JPEG tiles, and has a level below."""

    def __init__(self, width: int, height: int, pool: ThreadPoolExecutor):
        self.width, self.height = width, height
        self.tiles: list[bytes] = []
        small = min(width, height) // _STEP < _SQUARE // 2
        self.below = None if small else _Level(width // _STEP, height // _STEP, pool)
        self._pool = pool
        self._missing = height
        self._rows = np.zeros((0, width, 3), np.uint8)

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows, a multiple of `_STEP` unless they are the last."""
        from PIL import Image

        self._missing -= len(rows)
        self._rows = np.concatenate([self._rows, rows]) if len(self._rows) else rows
        while len(self._rows) >= _SQUARE or (not self._missing and len(self._rows)):
            band, self._rows = self._rows[:_SQUARE], self._rows[_SQUARE:]
            parts = [band[:, left : left + _SQUARE] for left in range(0, self.width, _SQUARE)]
            self.tiles += self._pool.map(_jpeg, parts)
        if self.below is not None:
            part = rows[: len(rows) // _STEP * _STEP, : self.below.width * _STEP]
            if len(part):
                self.below.add(np.asarray(Image.fromarray(part).reduce(_STEP)))


def _jpeg(pixels: np.ndarray) -> bytes:
    """A tile of 512 x 512 px, whose border goes on where pixels are lacking."""
    import imagecodecs

    height, width, _ = pixels.shape
    if (height, width) != (_SQUARE, _SQUARE):
        pixels = np.pad(pixels, ((0, _SQUARE - height), (0, _SQUARE - width), (0, 0)), "edge")
    return imagecodecs.jpeg8_encode(
        np.ascontiguousarray(pixels),
        level=QUALITY,
        colorspace="RGB",
        outcolorspace="YCBCR",
        subsampling="420",
    )


def _bands(scene: _Scene, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
    """The slide's pixels, 512 rows at a time."""
    columns = range(-(-scene.width // _SQUARE))
    for row in range(-(-scene.height // _SQUARE)):
        squares = list(pool.map(lambda column, row=row: scene.square(row, column), columns))
        band = np.concatenate(squares, axis=1)[:, : scene.width]
        yield band[: scene.height - row * _SQUARE]


def _write_pyramid(path: Path, scene: _Scene, kind: str, mpp: float) -> None:
    import tifffile

    def finest() -> Iterator[bytes]:
        for band in _bands(scene, pool):
            top.add(band)
            yield from top.tiles
            top.tiles.clear()

    pixels_per_cm = 10000 / mpp
    shared = {
        "dtype": np.uint8,
        "photometric": "ycbcr",
        "compression": "jpeg",
        "subsampling": (2, 2),
        "tile": (_SQUARE, _SQUARE),
        "software": False,
    }
    with (
        ThreadPoolExecutor(2) as pool,
        tifffile.TiffWriter(path, bigtiff=True, ome=kind == "ome") as writer,
    ):
        top = _Level(scene.width, scene.height, pool)
        levels = []
        level = top.below
        while level is not None:
            levels.append(level)
            level = level.below
        first = dict(shared, shape=(scene.height, scene.width, 3))
        lower = dict(shared, subfiletype=1, metadata=None)
        if kind == "ome":
            first["metadata"] = {
                "axes": "YXS",
                "PhysicalSizeX": mpp,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": mpp,
                "PhysicalSizeYUnit": "µm",
                "UUID": str(uuid.UUID(int=0)),  # or tifffile would draw one
            }
            writer.write(finest(), **first, subifds=len(levels))
        elif kind == "svs":
            size = f"{scene.width}x{scene.height}"
            head = f"Aperio Image Library v0.0.0 \r\n{size} [0,0 {size}] ({_SQUARE}x{_SQUARE})"
            first |= {
                "metadata": None,
                "description": f"{head} JPEG/YCC Q={QUALITY}|AppMag = 20|MPP = {mpp:.4f}",
            }
            writer.write(finest(), **first)
            del lower["subfiletype"]
            _write_thumbnail(writer, levels[-1] if levels else None, head)
        else:
            first |= {
                "metadata": None,
                "resolution": (pixels_per_cm, pixels_per_cm),
                "resolutionunit": "CENTIMETER",
            }
            writer.write(finest(), **first)
        for level in levels:
            writer.write(iter(level.tiles), shape=(level.height, level.width, 3), **lower)


def _write_thumbnail(writer, level: _Level | None, head: str) -> None:
    """The second page of an SVS: a small strip image of the whole."""
    import imagecodecs

    if level is None:
        return
    tiles = [imagecodecs.jpeg8_decode(tile) for tile in level.tiles]
    across = -(-level.width // _SQUARE)
    rows = [np.concatenate(tiles[at : at + across], 1) for at in range(0, len(tiles), across)]
    pixels = np.concatenate(rows)[: level.height, : level.width]
    pixels = pixels[:: max(level.height // 512, 1), :: max(level.width // 512, 1)]
    writer.write(
        pixels,
        photometric="rgb",
        compression="adobe_deflate",
        rowsperstrip=_STRIP,
        software=False,
        metadata=None,
        description=f"{head} -> {pixels.shape[1]}x{pixels.shape[0]} - |AppMag = 20",
    )


def _write_strips(path: Path, scene: _Scene, mpp: float) -> None:
    import imagecodecs
    import tifffile

    with ThreadPoolExecutor(2) as pool:

        def strips() -> Iterator[bytes]:
            for band in _bands(scene, pool):
                for top in range(0, len(band), _STRIP):
                    yield imagecodecs.zlib_encode(band[top : top + _STRIP].tobytes(), level=1)

        tifffile.imwrite(
            path,
            strips(),
            shape=(scene.height, scene.width, 3),
            dtype=np.uint8,
            photometric="rgb",
            compression="adobe_deflate",
            rowsperstrip=_STRIP,
            resolution=(10000 / mpp, 10000 / mpp),
            resolutionunit="CENTIMETER",
            software=False,
            metadata=None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic cytology slide.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=12000, help="width and height, px")
    parser.add_argument("--kind", choices=KINDS, default="svs")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--density", type=float, default=40.0, help="nuclei for each 10^6 px")
    parser.add_argument("--contrast", type=float, default=1.0)
    options = parser.parse_args()
    truth = make_slide(
        options.out,
        options.size,
        options.size,
        kind=options.kind,
        mpp=options.mpp,
        seed=options.seed,
        density=options.density,
        contrast=options.contrast,
    )
    print(f"{options.out}: {options.size} x {options.size} px, {len(truth)} nuclei")


if __name__ == "__main__":
    main()
