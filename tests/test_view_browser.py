"""The viewer's page in a browser: what is drawn, what a click shows, where links lead.

Chromium is driven with Playwright's Python package, without the browsers that it would download.
DSSNET_FAST_CHROMIUM names another Chromium than the one on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import threading

import numpy as np
import pytest

from dssnet_fast.view.library import Library
from dssnet_fast.view.server import make_server
from view_folder import CLASSES, draw_slide, write_results, write_slide

CHROMIUM = os.environ.get("DSSNET_FAST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("no chromium on PATH", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTH, HEIGHT = 1330, 710
ORIGIN = (40, 30)
DRAWN = "#slide .openseadragon-canvas canvas"


@pytest.fixture(scope="module")
def drawn():
    return draw_slide(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def found(tmp_path_factory, drawn):
    """The nuclei and the address of a server of slides `one` and `gone`."""
    base = tmp_path_factory.mktemp("browser")
    image, labels = drawn
    slide = write_slide(base / "one.tiff", image)
    size, random = (WIDTH, HEIGHT), np.random.default_rng(0)
    od = random.uniform(0.2, 0.9, labels.shape)
    (base / "out").mkdir()
    nuclei = write_results(
        base / "out", "one", slide, labels, slide_size=size, origin=ORIGIN, od=od
    )
    write_results(base / "out", "gone", base / "none", labels, slide_size=size)
    library = Library(base / "out")
    server = make_server(library, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield nuclei, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)
    library.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page of which no error on the console and no failed request is forgiven."""
    errors: list[str] = []
    made = browser.new_page(viewport={"width": 1200, "height": 800}, reduced_motion="reduce")
    made.on("console", lambda said: errors.append(said.text) if said.type != "log" else None)
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on(
        "response",
        lambda answer: errors.append(answer.url) if answer.status >= 400 else None,
    )
    made.on("request", lambda asked: errors.append(asked.url) if _leaves(asked.url) else None)
    yield made
    made.close()
    assert errors == []


def _leaves(address: str) -> bool:
    return not address.startswith(("http://127.0.0.1:", "data:", "blob:"))


def colours(page) -> dict[str, int]:
    """How many px of the drawn slide are violet (nuclei), green and yellow (outlines)."""
    return page.evaluate(
        """(selector) => {
          const canvas = document.querySelector(selector);
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
          copy.drawImage(canvas, 0, 0);
          const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
          const count = {violet: 0, green: 0, yellow: 0};
          for (let i = 0; i < data.length; i += 4) {
            const [r, g, b] = [data[i], data[i + 1], data[i + 2]];
            if (g > 170 && r < 90 && b < 120) count.green += 1;
            if (r > 200 && g > 150 && b < 90) count.yellow += 1;
            if (b > 120 && g < 90 && r < 140) count.violet += 1;
          }
          return count;
        }""",
        DRAWN,
    )


def wait_for(page, holds) -> None:
    """Wait until something holds. Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(200):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"drawn: {colours(page)}, address: {page.url}")


def until(page, condition) -> None:
    """Wait until what is drawn fulfils a condition."""
    wait_for(page, lambda: condition(colours(page)))


def open_slide(page, address: str, place: str = "", name: str = "one") -> None:
    page.goto(f"{address}/slides/{name}/{place}")
    page.wait_for_selector(DRAWN)


def numbers(page) -> dict[str, str]:
    """What the panel says of the picked nucleus."""
    page.wait_for_selector("#nucleus-numbers:not([hidden]) dl")
    return dict(
        page.eval_on_selector_all(
            "#nucleus-numbers dl div",
            "rows => rows.map(r => [...r.children].map(c => c.innerText))",
        )
    )


def on_screen(page, x: float, y: float) -> tuple[float, float]:
    """Where a point of the outputs is on the screen, from what the address says is the centre."""
    page.wait_for_timeout(400)
    place = dict(re.findall(r"([xyz])=([-\d.]+)", page.url))
    box = page.locator("#slide").bounding_box()
    zoom = float(place["z"])
    return (
        box["x"] + box["width"] / 2 + (x - float(place["x"])) * zoom,
        box["y"] + box["height"] / 2 + (y - float(place["y"])) * zoom,
    )


def test_the_index_leads_to_a_slide(page, found):
    page.goto(found[1] + "/")
    every = "[...document.images].every(image => image.complete && image.naturalWidth)"
    wait_for(page, lambda: page.evaluate(every))
    page.click("role=link[name='one']")
    page.wait_for_selector(DRAWN)
    assert page.title() == "one · dssnet_fast"


def test_slide_and_nuclei_are_drawn(page, found):
    nuclei, address = found
    open_slide(page, address)
    until(page, lambda c: c["green"] > 500 and c["yellow"] > 500)
    counts = page.eval_on_selector_all("#classes b", "all => all.map(one => one.innerText)")
    assert counts == [str((nuclei.class_index == kind).sum()) for kind in (1, 2)]
    assert page.locator("#problems").is_hidden()
    # 0.25 um/px: the bar is as long as it says.
    text = page.locator("#scale").inner_text()
    length, unit = re.fullmatch(r"(\d+) (µm|mm)", text.strip()).groups()
    page.wait_for_url("**z=*")
    zoom = float(re.search(r"z=([\d.]+)", page.url)[1])
    width = page.locator("#scale span").bounding_box()["width"]
    expected = float(length) * (1000 if unit == "mm" else 1) / 0.25 * zoom
    assert width == pytest.approx(expected, rel=0.02)


def test_a_click_shows_the_numbers_and_the_outline(page, found):
    nuclei, address = found
    number = int(np.argmax(nuclei.area)) + 1
    x, y = nuclei.x[number - 1] - ORIGIN[0], nuclei.y[number - 1] - ORIGIN[1]
    open_slide(page, address)
    until(page, lambda c: c["green"] > 500)
    page.mouse.click(*on_screen(page, x, y))
    said = numbers(page)
    assert said["Number"] == str(number)
    value, unit = said["Area"].split()
    assert (float(value), unit) == (pytest.approx(nuclei.area[number - 1] / 16, abs=0.051), "µm²")
    assert said["x, y"] == f"{x:.1f}, {y:.1f} px"
    assert page.locator(".who").inner_text().startswith(CLASSES[nuclei.class_index[number - 1]])
    page.wait_for_url(f"**id={number}")
    outline = page.locator("#drawing .outline").bounding_box()
    left, top, right, bottom = nuclei.bounds[number - 1] - np.tile(ORIGIN, 2)
    corners = [*on_screen(page, left, top), *on_screen(page, right, bottom)]
    drawn = [outline["x"], outline["y"], outline["x"] + outline["width"],
             outline["y"] + outline["height"]]  # fmt: skip
    assert np.abs(np.subtract(drawn, corners)).max() < 3
    # Glass: nothing is picked any more.
    page.mouse.click(*on_screen(page, 3 - ORIGIN[0], 3 - ORIGIN[1]))
    page.wait_for_selector("#nucleus-numbers", state="hidden")
    assert page.locator("#drawing .outline").get_attribute("d") == ""


def test_the_gallery_jumps_to_its_nucleus(page, found):
    nuclei, address = found
    open_slide(page, address)
    for tab, value in (("Darkest", None), ("Largest", nuclei.area)):
        page.click(f"role=tab[name='{tab}']")
        page.click("#gallery-strip button:first-child")
        page.wait_for_selector("#gallery-strip button[aria-current=true]")
        number = int(numbers(page)["Number"])
        if value is not None:
            assert value[number - 1] == value.max()
        page.wait_for_url(f"**id={number}")
        x, y = on_screen(page, nuclei.x[number - 1] - ORIGIN[0], nuclei.y[number - 1] - ORIGIN[1])
        box = page.locator("#slide").bounding_box()
        assert box["x"] < x < box["x"] + box["width"]
        assert box["y"] < y < box["y"] + box["height"]
        assert float(re.search(r"z=([\d.]+)", page.url)[1]) >= 1


def test_links_lead_to_places_and_nuclei(page, found):
    nuclei, address = found
    x, y = nuclei.x[99] - ORIGIN[0], nuclei.y[99] - ORIGIN[1]
    open_slide(page, address, f"#x={x:.1f}&y={y:.1f}&id=100")
    assert numbers(page)["Number"] == "100"
    page.wait_for_url("**z=*id=100")
    assert float(re.search(r"x=([-\d.]+)", page.url)[1]) == pytest.approx(x, abs=1)
    assert float(re.search(r"y=([-\d.]+)", page.url)[1]) == pytest.approx(y, abs=1)
    # An id alone finds its place, and a changed address is followed.
    page.evaluate("location.hash = '#id=50'")
    page.wait_for_url("**z=*id=50")
    assert numbers(page)["Number"] == "50"
    assert float(re.search(r"x=([-\d.]+)", page.url)[1]) == pytest.approx(
        nuclei.x[49] - ORIGIN[0], abs=1
    )
    # What makes no sense is passed by.
    page.evaluate("location.hash = '#x=a&y=&id=-3&z=0'")
    page.wait_for_selector("#nucleus-numbers", state="hidden")


def test_the_report_leads_to_places_and_reads_nothing_here(browser, found):
    # Its attempt to read the summary is an error on the console, so not the strict page.
    page = browser.new_page()
    page.goto(found[1] + "/slides/one/report")
    assert page.title() == "Report with a script"
    assert page.evaluate("window.spied") == "nothing"
    page.click("text=open")
    page.wait_for_selector(DRAWN)
    assert numbers(page)["Number"] == "20"
    page.wait_for_url("**/slides/one/#x=300.5&y=200.5&z=*&id=20")
    page.close()


def test_the_overlay_can_be_hidden_dimmed_and_divided(page, found):
    open_slide(page, found[1])
    until(page, lambda c: c["green"] > 500 and c["yellow"] > 500)
    page.keyboard.press("o")
    until(page, lambda c: c["green"] == c["yellow"] == 0 and c["violet"] > 5000)
    assert page.locator("#overlay").get_attribute("aria-pressed") == "false"
    page.click("#overlay")
    until(page, lambda c: c["green"] > 500 and c["yellow"] > 500)
    page.locator("#opacity").fill("10")
    until(page, lambda c: c["green"] == c["yellow"] == 0)
    page.locator("#opacity").fill("100")
    page.uncheck("#classes li:first-child input")
    until(page, lambda c: c["green"] == 0 and c["yellow"] > 500)
    page.check("#classes li:first-child input")
    page.uncheck("#classes li:last-child input")
    until(page, lambda c: c["green"] > 500 and c["yellow"] == 0)


def test_keys_move_the_slide(page, found):
    open_slide(page, found[1], "#x=500&y=300&z=2")
    page.wait_for_url("**x=500.0**")

    def place():
        page.wait_for_timeout(400)
        return [float(value) for value in re.findall(r"[xyz]=([-\d.]+)", page.url)]

    before = place()
    page.keyboard.press("ArrowRight")
    right = place()
    assert right[0] > before[0] + 20
    page.keyboard.press("ArrowUp")
    up = place()
    assert up[1] < right[1] - 20
    page.keyboard.press("+")
    closer = place()
    assert closer[2] > up[2] * 1.2
    page.keyboard.press("-")
    assert place()[2] == pytest.approx(up[2], rel=0.01)
    # OpenSeadragon's own keys would turn and mirror the slide.
    page.locator(".openseadragon-canvas").first.focus()
    page.keyboard.press("r")
    page.keyboard.press("f")
    page.keyboard.press("ArrowRight")
    again = place()
    assert again[0] > up[0]
    assert again[1] == pytest.approx(up[1], abs=0.2)
    page.keyboard.press("0")
    assert place()[2] < 1


def test_without_the_slide_nuclei_are_still_drawn_and_told(page, found):
    open_slide(page, found[1], "#id=5", "gone")
    until(page, lambda c: c["violet"] == 0 and c["green"] + c["yellow"] > 500)
    assert "is not there" in page.locator("#problems").inner_text()
    assert numbers(page)["Number"] == "5"


@pytest.mark.parametrize("width", [800, 560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_windows_and_dark_ones(page, found, width, scheme):
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(color_scheme=scheme)
    open_slide(page, found[1], "#id=5")
    numbers(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.locator("header button:visible, header a:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", background))) > 380
    assert light is (scheme == "light")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


def test_every_control_has_a_name_and_can_be_reached(page, found):
    open_slide(page, found[1], "#id=5")
    numbers(page)
    for control in page.locator("button:visible, a:visible, input:visible").all():
        name = control.evaluate(
            "e => (e.getAttribute('aria-label') || (e.closest('label') ?? e).innerText).trim()"
        )
        assert name, control.evaluate("e => e.outerHTML")
    seen = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    assert {"overlay", "opacity", "zoom-in", "home", "theme", "toggle-panel"} <= seen
