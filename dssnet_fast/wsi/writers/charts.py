"""Pictures of the report: histograms as SVG, density maps and crops as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

from dssnet_fast.wsi.writers.totals import Distribution

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 24, 36
_BARS = 40

# From few to many: legible over pale stained tissue, and in order of lightness.
_DENSITY_COLOURS = np.array(
    [(66, 10, 104), (120, 28, 109), (187, 55, 84), (237, 105, 37), (251, 180, 26), (252, 255, 164)]
)


def histogram(
    values: Distribution,
    title: str,
    unit: str,
    colours: Sequence[str],
    digits: int,
    share: float = 1.0,
) -> str:
    """A histogram as an SVG element, the classes on top of each other.

    Args:
        values: With at least one value.
        title: What is counted, for readers that cannot see it.
        unit: Of the values, or an empty string.
        colours: CSS colours of the classes, background first.
        digits: Decimals of the median.
        share: Of the values that are drawn where they are. The few above are counted in the last
            bar.
    """
    used = values.counts.any(axis=0).nonzero()[0]
    low = int(used[0])
    high = int(values.quantile(share) / values.step) + 1
    per_bar = max(1, -(-(high - low) // _BARS))
    step = per_bar * values.step
    # Bars begin at round multiples of their width.
    first_bar = low // per_bar
    bars = -(-high // per_bar) - first_bar
    counts = np.zeros((len(values.counts), bars), np.int64)
    bar = np.minimum(np.arange(values.counts.shape[1]) // per_bar - first_bar, bars - 1)
    for of_class, bins in zip(counts, values.counts, strict=True):
        np.add.at(of_class, bar[low:], bins[low:])
    start, end = first_bar * step, (first_bar + bars) * step
    most = int(counts.sum(axis=0).max())
    tick_y = _round_step(most, 3, whole=True)
    top = -(-most // tick_y) * tick_y

    def at_x(value: float) -> str:
        return _number(_LEFT + (value - start) / (end - start) * (_WIDTH - _LEFT - _RIGHT))

    def at_y(count: float) -> str:
        return _number(_HEIGHT - _BOTTOM - count / top * (_HEIGHT - _TOP - _BOTTOM))

    parts = [
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{escape(title)}">'
    ]
    for count in range(0, int(top) + 1, int(tick_y)):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at_y(count)}"'
            f' y2="{at_y(count)}"/><text x="{_LEFT - 7}" y="{at_y(count)}" dy="3.5"'
            f' text-anchor="end">{_short(count)}</text>'
        )
    tick_x = _round_step(end - start, 6)
    for index in range(int(np.ceil(start / tick_x - 1e-9)), int(np.floor(end / tick_x + 1e-9)) + 1):
        parts.append(
            f'<text x="{at_x(index * tick_x)}" y="{_HEIGHT - _BOTTOM + 16}"'
            f' text-anchor="middle">{_number(index * tick_x, 4)}</text>'
        )
    if unit:
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(unit)}</text>'
        )
    for index in range(bars):
        below = 0
        left, right = start + index * step, start + (index + 1) * step
        label = f"{_number(left, 4)} to {_number(right, 4)} {unit}".strip()
        if index == bars - 1 and share < 1:
            label = f"{_number(left, 4)} {unit}".strip() + " and more"
        total = int(counts[:, index].sum())
        if not total:
            continue
        parts.append(f"<g><title>{escape(label)}: {total:,}</title>")
        for kind, count in enumerate(counts[:, index].tolist()):
            if not count:
                continue
            x, width = float(at_x(left)) + 0.5, float(at_x(right)) - float(at_x(left)) - 1
            y, bottom = at_y(below + count), at_y(below)
            parts.append(
                f'<rect x="{_number(x)}" y="{y}" width="{_number(width)}"'
                f' height="{_number(float(bottom) - float(y))}" fill="{colours[kind]}"/>'
            )
            below += count
        parts.append("</g>")
    median = values.quantile(0.5)
    near_right = (median - start) / (end - start) > 0.7
    parts.append(
        f'<line class="median" x1="{at_x(median)}" x2="{at_x(median)}" y1="{_TOP - 8}"'
        f' y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text class="median" x="{at_x(median)}" dx="{-6 if near_right else 6}" y="{_TOP - 8}"'
        f' dy="3" text-anchor="{"end" if near_right else "start"}">'
        f"median {median:,.{digits}f}{' ' + escape(unit) if unit else ''}</text></svg>"
    )
    return "".join(parts)


def density_image(density: np.ndarray, cell_mm2: float) -> tuple[bytes, float]:
    """A density map to be laid over the slide.

    Args:
        density: int [rows, columns], nuclei in each cell.
        cell_mm2: Area of a cell.

    Returns:
        A PNG with as many px as there are cells, transparent where there are no nuclei, and the
        nuclei per mm² of its strongest colour.
    """
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(density.astype(np.float64), 1.2, mode="constant")
    present = smooth[smooth > 0.02]
    # A few packed cells shall not make everything else pale.
    most = float(np.quantile(present, 0.995)) if len(present) else 1.0
    share = np.clip(smooth / most, 0, 1)
    at = share * (len(_DENSITY_COLOURS) - 1)
    channels = [
        np.interp(at, np.arange(len(_DENSITY_COLOURS)), _DENSITY_COLOURS[:, channel])
        for channel in range(3)
    ]
    alpha = np.where(smooth > 0.02, 235 * np.clip(share * 2.5, 0, 1) ** 0.5, 0)
    pixels = np.rint(np.stack([*channels, alpha], axis=-1)).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(made, "PNG", optimize=True)
    return made.getvalue(), most / cell_mm2


def density_gradient() -> str:
    """The colours of `density_image` as CSS."""
    colours = ",".join("rgb({},{},{})".format(*colour) for colour in _DENSITY_COLOURS.tolist())
    return f"linear-gradient(90deg,{colours})"


def jpeg(pixels: np.ndarray, longest_px: int) -> bytes:
    """uint8 [h, w, 3] as a JPEG, made smaller where a side is longer than that."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    picture.save(made, "JPEG", quality=85, subsampling=0)
    return made.getvalue()


def data_uri(kind: str, data: bytes) -> str:
    """A file as a link that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def outline_path(rings: Sequence[np.ndarray], left: int, top: int) -> str:
    """Rings as the `d` of an SVG path, from (left, top) on."""
    made = []
    for ring in rings:
        moved = ring[:-1] - (left, top)
        made.append("M" + "L".join(f"{x} {y}" for x, y in moved.tolist()) + "Z")
    return "".join(made)


def _round_step(span: float, parts: int, whole: bool = False) -> float:
    """1, 2 or 5 times a power of ten that divides a span into about so many parts."""
    rough = span / parts
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return max(1, round(step)) if whole else float(step)


def _number(value: float, digits: int = 2) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _short(count: int) -> str:
    if count >= 1_000_000:
        return f"{_number(count / 1e6)}M"
    return f"{_number(count / 1e3)}k" if count >= 10_000 else f"{count:,}"
