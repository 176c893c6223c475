"""The report of a slide: one HTML file that needs nothing else and asks no network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from dssnet_fast import __version__
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.wsi.writers import charts
from dssnet_fast.wsi.writers import provenance as provenances
from dssnet_fast.wsi.writers.report_style import CSS, JS
from dssnet_fast.wsi.writers.summary import density_per_mm2
from dssnet_fast.wsi.writers.totals import Standout, Totals

_THUMBNAIL_PX = 1600
# The slide's picture is not shown higher than this, in CSS px.
_THUMBNAIL_HIGH = 720
_CROP_PX = 96  # at least, of the analysed image
_CROP_MOST_PX = 512
_CROP_SHOWN_PX = 192

Crop = Callable[[int, int, int], np.ndarray | None]


def write_report(
    path: str | os.PathLike,
    summary: Mapping,
    totals: Totals,
    thumbnail: np.ndarray,
    crop: Crop,
) -> None:
    """Write `NAME_report.html`.

    Args:
        path: The file.
        summary: As from `summary.summary`.
        totals: Of the same nuclei.
        thumbnail: uint8 [h, w, 3], all of the analysed image at any size.
        crop: From (left, top, side) in px of the analysed image to its pixels, uint8
            [side, side, 3], or to None where the slide cannot be read. The square may lie partly
            outside the image, where the pixels may be anything.

    Raises:
        InputError: A picture has the wrong shape or type.
        OSError: The file cannot be written. It is then not there, or is the old one.
    """
    _check(thumbnail, "thumbnail", None)
    page = _page(summary, totals, thumbnail, crop)
    with atomic_write(path) as temporary:
        # Names of files may hold what is no text.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def _check(pixels: np.ndarray, what: str, side: int | None) -> None:
    wrong = pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size
    if wrong or (side is not None and pixels.shape[:2] != (side, side)):
        wanted = "[h, w, 3]" if side is None else f"[{side}, {side}, 3]"
        raise InputError(
            f"report: {what} must be uint8 {wanted}, got {pixels.dtype} {list(pixels.shape)}"
        )


def _page(summary: Mapping, totals: Totals, thumbnail: np.ndarray, crop: Crop) -> str:
    name = escape(summary["name"])
    colours = ["rgb({},{},{})".format(*colour) for colour in summary["class_colours"]]
    galleries = "".join(
        _gallery(title, summary["gallery"][key], standouts, totals, colours, crop)
        for title, key, standouts in (
            ("Largest nuclei", "largest", totals.largest),
            ("Darkest nuclei", "darkest", totals.darkest),
        )
    )
    # Nothing but what is in the file: not even a mistake in it could load or send anything.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{name} · nuclei</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header>\n<p class="kind">Nuclei of a whole slide</p>\n<h1>{name}</h1>\n'
        f"{_figures(summary)}{_unreadable(summary)}</header>\n<main>\n"
        f"<h2>Slide</h2>\n{_slide(summary, totals, thumbnail)}"
        f"{_distributions(totals, colours)}"
        f"{galleries}"
        f"<h2>How this came about</h2>\n{_facts(summary)}"
        f"</main>\n<footer>Written by dssnet_fast {__version__}. For research, not for diagnosis."
        f"</footer>\n<script>{JS}</script>\n</body>\n</html>\n"
    )


def _figures(summary: Mapping) -> str:
    density = density_per_mm2(summary)
    area = summary["statistics"]["area_um2"]["median"]
    od = summary["statistics"]["mean_od"]["mean"]
    figures = [
        ("Nuclei", f"{summary['nuclei']:,}", ""),
        ("Analysed area", f"{summary['analysed_mm2']:,.2f}", "mm²"),
        ("Density", "–" if density is None else f"{density:,.0f}", "per mm²"),
        ("Median nuclear area", "–" if area is None else f"{area:,.1f}", "µm²"),
        ("Mean optical density", "–" if od is None else f"{od:.3f}", ""),
        ("Resolution analysed", f"{summary['analysis_mpp']:.4g}", "µm per px"),
    ]
    return (
        '<dl class="figures">'
        + "".join(
            f"<div><dt>{label}</dt><dd>{value} <small>{unit}</small></dd></div>"
            for label, value, unit in figures
        )
        + "</dl>\n"
    )


def _unreadable(summary: Mapping) -> str:
    count = len(summary["unreadable"])
    if not count:
        return ""
    areas = "1 area of the slide" if count == 1 else f"{count:,} areas of the slide"
    return f'<p class="warn">{areas} could not be read; nuclei there are missing.</p>\n'


def _slide(summary: Mapping, totals: Totals, thumbnail: np.ndarray) -> str:
    frame = totals.frame
    density, most = charts.density_image(totals.density, (totals.cell * frame.mpp / 1000) ** 2)
    rows, columns = totals.density.shape
    # The last cells reach over the image's end.
    wide = f"{100 * columns * totals.cell / frame.width:.4f}%"
    high = f"{100 * rows * totals.cell / frame.height:.4f}%"
    boxes = "".join(
        f'<rect class="unreadable" x="{left / frame.scale:.1f}" y="{top / frame.scale:.1f}"'
        f' width="{(right - left) / frame.scale:.1f}"'
        f' height="{(bottom - top) / frame.scale:.1f}"/>'
        for left, top, right, bottom in summary["unreadable"]
    )
    strongest = float(f"{most:.2g}")
    gradient = charts.density_gradient()
    picture = charts.data_uri("jpeg", charts.jpeg(thumbnail, _THUMBNAIL_PX))
    radius = max(frame.width, frame.height) / 80
    shown = f"max-width:{_THUMBNAIL_HIGH * frame.width / frame.height:.0f}px"
    return (
        '<div class="card"><div class="controls">'
        '<label><input type="checkbox" id="density" checked autocomplete="off">Nuclear density'
        '</label><span class="scale">0'
        f'<i style="background:{gradient}"></i>{strongest:,.0f} per mm²</span></div>\n'
        f'<div class="slide" style="{shown}">'
        f'<img alt="The slide" src="{picture}">'
        f'<img class="density" alt="Density of nuclei" style="width:{wide};height:{high}"'
        f' src="{charts.data_uri("png", density)}">'
        f'<svg viewBox="0 0 {frame.width} {frame.height}" preserveAspectRatio="none"'
        f' aria-hidden="true">{boxes}<g id="place"><circle class="under" r="{radius:.1f}"/>'
        f'<circle class="over" r="{radius:.1f}"/></g></svg></div></div>\n'
    )


def _distributions(totals: Totals, colours: Sequence[str]) -> str:
    if not len(totals):
        return "<h2>Measurements</h2>\n<p>No nuclei were found.</p>\n"
    present = [index for index in range(1, len(colours)) if totals.per_class[index]]
    legend = "".join(
        f"<li>{_dot(colours[index])}{escape(totals.class_names[index])}</li>" for index in present
    )
    made = [f'<h2>Measurements</h2>\n<ul class="classes">{legend}</ul>\n<div class="charts">']
    for title, values, unit, digits, share in (
        ("Area", totals.area_um2, "µm²", 1, 0.99),
        ("Mean optical density", totals.mean_od, "", 3, 0.995),
        ("Eccentricity", totals.eccentricity, "", 3, 1.0),
    ):
        label = f"Histogram of nuclei: {title}"
        drawn = charts.histogram(values, label, unit, colours, digits, share)
        made.append(f'<section class="card"><h3>{title}</h3>{drawn}</section>\n')
    made.append(
        '</div>\n<div class="card wide" style="margin-top:16px"><table class="numbers"><tr>'
        "<th>Class</th><th>Nuclei</th><th>Share</th><th>Median area µm²</th><th>Mean area µm²</th>"
        "<th>Mean OD</th><th>Median eccentricity</th></tr>"
    )
    for index in present:
        count = int(totals.per_class[index])
        made.append(
            f"<tr><td>{_dot(colours[index])}{escape(totals.class_names[index])}</td>"
            f"<td>{count:,}</td><td>{100 * count / len(totals):.1f} %</td>"
            f"<td>{totals.area_um2.quantile(0.5, index):,.1f}</td>"
            f"<td>{totals.area_um2.mean(index):,.1f}</td><td>{totals.mean_od.mean(index):.3f}</td>"
            f"<td>{totals.eccentricity.quantile(0.5, index):.3f}</td></tr>"
        )
    made.append("</table></div>\n")
    return "".join(made)


def _gallery(
    title: str,
    listed: Sequence[Mapping],
    standouts: Sequence[Standout],
    totals: Totals,
    colours: Sequence[str],
    crop: Crop,
) -> str:
    if not standouts:
        return ""
    made = [f'<h2>{title}</h2>\n<ol class="gallery">\n']
    for facts, one in zip(listed, standouts, strict=True):
        colour = colours[one.class_index]
        kind = escape(totals.class_names[one.class_index])
        link = f"./#x={facts['x']}&amp;y={facts['y']}&amp;id={one.id}"
        made.append(
            f'<li data-x="{one.x:.1f}" data-y="{one.y:.1f}">'
            f'<button type="button" title="Show nucleus {one.id} on the slide">'
            f"{_crop(one, colour, crop)}</button>"
            f'<p><b title="{kind}">{_dot(colour)}{_area(facts["area_um2"])} µm²</b>'
            f"OD {facts['mean_od']:.3f}"
            f'<span class="soft">{facts["x"]:.0f}, {facts["y"]:.0f}</span>'
            f'<span class="soft">#{one.id} <a class="viewer" href="{link}">open</a></span>'
            "</p></li>\n"
        )
    made.append("</ol>\n")
    return "".join(made)


def _crop(one: Standout, colour: str, crop: Crop) -> str:
    left, top, right, bottom = one.bounds
    extent = max(right - left, bottom - top)
    side = min(max(_CROP_PX, extent * 3 // 2), _CROP_MOST_PX)
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    pixels = crop(left, top, side)
    if pixels is None:
        return '<span class="missing">could not be read</span>'
    _check(pixels, "a crop", side)
    path = charts.outline_path(one.rings, left, top)
    image = charts.data_uri("jpeg", charts.jpeg(pixels, _CROP_SHOWN_PX))
    return (
        f'<svg viewBox="0 0 {side} {side}"><image width="{side}" height="{side}" href="{image}"/>'
        f'<path class="under" d="{path}"/><path class="over" stroke="{colour}" d="{path}"/></svg>'
    )


def _facts(summary: Mapping) -> str:
    width, height = summary["slide_size"]
    analysed_width, analysed_height = summary["analysis_size"]
    facts = [
        ("Slide", summary["slide"]),
        ("Read as", summary["reader"]),
        ("Size of the slide", f"{width:,} × {height:,} px"),
        (
            "Resolution of the slide",
            f"{summary['slide_mpp']:.5g} µm per px ({summary['mpp_source']})",
        ),
        (
            "Analysed at",
            f"{summary['analysis_mpp']:.5g} µm per px, {analysed_width:,} × {analysed_height:,} px",
        ),
        ("Positions count from", "{}, {} px".format(*summary["origin"])),
        *provenances.as_text(summary["provenance"]).items(),
        ("Files", ", ".join(summary["files"].values())),
    ]
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>\n" for key, value in facts
    )
    return f'<div class="card"><table>\n{rows}</table></div>\n'


def _area(um2: float) -> str:
    return f"{um2:,.1f}" if um2 < 1000 else f"{um2:,.0f}"


def _dot(colour: str) -> str:
    return f'<i class="dot" style="background:{colour}"></i>'
