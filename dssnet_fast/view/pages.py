"""The pages as HTML: everything that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from dssnet_fast.view.addresses import slide_address
from dssnet_fast.view.deepzoom import TILE_PX, DeepZoom
from dssnet_fast.view.nuclei_picture import FINEST
from dssnet_fast.view.summary import Result

STATIC = Path(__file__).parent / "static"
# What is served as it lies there, and as what.
STATIC_FILES = {
    "openseadragon/openseadragon.min.js": "text/javascript; charset=utf-8",
    "common.css": "text/css; charset=utf-8",
    "index.css": "text/css; charset=utf-8",
    "viewer.css": "text/css; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "classes.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "gallery.js": "text/javascript; charset=utf-8",
    "nucleus.js": "text/javascript; charset=utf-8",
    "place.js": "text/javascript; charset=utf-8",
    "scale_bar.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def index_page(results: Iterable[Result], refused: Iterable[str]) -> str:
    """The page of all slides."""
    results, refused = list(results), list(refused)
    total = sum(result.values["nuclei"] for result in results)
    notes = "".join(f"<li>{escape(one)}</li>" for one in refused)
    return _filled(
        "index.html",
        total=f"{_count(len(results), 'slide')} · {_count(total, 'nucleus', 'nuclei')}",
        refused=f'<section class="refused"><h2>Not shown</h2><ul>{notes}</ul></section>'
        if refused
        else "",
        cards="".join(map(_card, results)),
    )


def viewer_page(result: Result) -> str:
    """The page of one slide; its script asks for the rest."""
    return _filled(
        "viewer.html",
        name=escape(result.name),
        report='<a class="button" id="report" href="report">Report</a>'
        if "report" in result.files
        else "",
    )


def _card(result: Result) -> str:
    values = result.values
    address = slide_address(result.name)
    slide = DeepZoom(*result.slide_size)
    nuclei = DeepZoom(*(FINEST * side for side in values["analysis_size"]))
    query = f"?v={result.stamp}"
    layers = f'<img src="{address}slide/{_thumbnail(slide)}/0_0.jpg{query}" alt="" loading="lazy">'
    if {"labels", "nuclei"} <= set(result.files):
        layers += (
            f'<img src="{address}nuclei/{_thumbnail(nuclei)}/0_0.png{query}" alt="" loading="lazy">'
        )
    legend = "".join(
        f'<li><svg class="dot" viewBox="0 0 2 2" aria-hidden="true"><circle cx="1" cy="1" r="1" '
        f'fill="rgb({colour[0]},{colour[1]},{colour[2]})"/></svg>{escape(name)} '
        f"<b>{values['nuclei_per_class'].get(name, 0):,}</b></li>"
        for name, colour in list(zip(values["class_names"], values["class_colours"], strict=True))[
            1:
        ]
    )
    area = values["analysed_mm2"]
    facts = [_count(values["nuclei"], "nucleus", "nuclei"), f"{area:,.2f} mm²"]
    if area > 0:
        facts.append(f"{values['nuclei'] / area:,.0f} per mm²")
    width, height = result.slide_size
    report = f'<a href="{address}report">Report</a>' if "report" in result.files else ""
    gone = "" if result.slide else '<p class="gone">The slide’s file is not there.</p>'
    return (
        f'<article class="card"><a class="picture" href="{address}" tabindex="-1" '
        f'aria-hidden="true"><span class="layers">{layers}</span></a><div class="text">'
        f'<h2><a href="{address}">{escape(result.name)}</a></h2>'
        f'<p>{" · ".join(facts)}</p><ul class="legend">{legend}</ul>{gone}'
        f'<p class="small">{width:,} × {height:,} px · {values["slide_mpp"]:.4g} µm/px {report}</p>'
        "</div></article>"
    )


def _thumbnail(pyramid: DeepZoom) -> int:
    """The finest level that is a single tile."""
    return min(pyramid.last, TILE_PX.bit_length() - 1)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _filled(template: str, **parts: str) -> str:
    from string import Template

    return Template((STATIC / template).read_text("utf-8")).substitute(parts)
