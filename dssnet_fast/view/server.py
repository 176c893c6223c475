"""The web server: which address gets which answer, and nothing else gets one.

It listens on 127.0.0.1 only and answers only those who call it by that name, so other machines
and other sites' pages get nothing. Names in addresses are looked up among the slides that the
folder of results has; no path is made of them.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dssnet_fast.cli import one_line
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.view import pages, slide_picture
from dssnet_fast.view.addresses import (
    Refused,
    classes,
    is_local,
    number,
    slide_address,
    split,
    tile_place,
    whole,
)
from dssnet_fast.view.deepzoom import TILE_PX, DeepZoom
from dssnet_fast.view.library import Library
from dssnet_fast.view.nuclei_picture import FINEST
from dssnet_fast.view.opened import Opened
from dssnet_fast.view.summary import Result

HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
CROP_SIDE_PX = 192
_MAX_CROP_PX = 8192
_IDLE_SECONDS = 30

# The one style sheet that OpenSeadragon 6.1 puts into the page: no outline on touch screens.
_OPENSEADRAGON_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
# No scripts but ours, nothing from elsewhere, in nobody's frame.
_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {_OPENSEADRAGON_STYLE}; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# A report is one file with its styles, pictures and script in it. It comes from the folder of
# results, so it is given an origin of its own: its script reaches nothing here.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        body: The content.
        kind: Its media type.
        kept: Whether the browser may keep it; its address must then change with the content.
        status: Of HTTP.
        policy: The Content-Security-Policy.
        headers: Further ones.
    """

    body: bytes
    kind: str
    kept: bool = False
    status: int = 200
    policy: str = _POLICY
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(library: Library, target: str) -> Answer:
    """The answer to a request for an address.

    Raises:
        Refused: There is nothing at this address.
        InputError: What is there is missing or damaged.
    """
    parts, query = split(target)
    match parts:
        case [""]:
            library.scan()
            page = pages.index_page(library.results.values(), library.refused)
            return Answer(page.encode("utf-8", "replace"), HTML)
        case ["static", *name] if (kind := pages.STATIC_FILES.get("/".join(name))) is not None:
            return Answer(pages.STATIC.joinpath(*name).read_bytes(), kind)
        case ["slides", name] if name in library.results:
            return Answer(b"", TEXT, status=301, headers={"Location": slide_address(name)})
        case ["slides", name, *rest] if (result := library.results.get(name)) is not None:
            return _of_slide(library, result, rest, query)
    raise Refused(404, "there is nothing at this address")


def _of_slide(
    library: Library, result: Result, parts: list[str], query: Mapping[str, list[str]]
) -> Answer:
    match parts:
        case [""]:
            return Answer(pages.viewer_page(result).encode(), HTML)
        case ["summary.json"]:
            return _json(result.values)
        case ["report"] if "report" in result.files:
            return Answer(result.files["report"].read_bytes(), HTML, policy=_REPORT_POLICY)
        case ["view.json"]:
            library.scan()
            with library.open(library.results.get(result.name, result)) as opened:
                return _json(_view(opened))
        case ["slide", level, tile]:
            with library.open(result) as opened:
                return _slide_tile(opened, whole(level), *tile_place(tile, ".jpg"))
        case ["nuclei", level, tile]:
            with library.open(result) as opened:
                picture = opened.nuclei()
                found = picture.tile(
                    whole(level), *tile_place(tile, ".png"), classes(query, "hidden")
                )
            if found is None:
                raise Refused(404, "there is no such tile")
            return Answer(found, "image/png", kept=True)
        case ["crop"]:
            x, y, size = (number(query, key) for key in ("x", "y", "size"))
            if not 1 <= size <= _MAX_CROP_PX:
                raise Refused(400, f"size must be from 1 to {_MAX_CROP_PX} px")
            with library.open(result) as opened:
                return _crop(opened, x, y, size)
        case ["at"]:
            x, y = number(query, "x"), number(query, "y")
            with library.open(result) as opened:
                return _json(_nucleus_at(opened, x, y))
        case ["nucleus", text]:
            with library.open(result) as opened:
                found = opened.table().nucleus(whole(text, 10**12 - 1))
            if found is None:
                raise Refused(404, f"there is no nucleus {text}")
            return _json({"nucleus": found})
    raise Refused(404, "there is nothing at this address")


def _view(opened: Opened) -> dict[str, object]:
    """What the page has to know of a slide beside its summary: what can be shown, and how."""
    result = opened.result
    problems = {}
    for part, need in (("slide", opened.slide), ("nuclei", opened.nuclei), ("table", opened.table)):
        try:
            need()
        except InputError as error:
            problems[part] = one_line(error)
    return {
        "summary": result.values,
        "stamp": result.stamp,
        "tile": TILE_PX,
        "nuclei_size": [FINEST * side for side in result.values["analysis_size"]],
        "problems": problems,
    }


def _slide_tile(opened: Opened, level: int, column: int, row: int) -> Answer:
    box = DeepZoom(*opened.result.slide_size).box(level, column, row)
    if box is None:
        raise Refused(404, "there is no such tile")
    try:
        return Answer(opened.slide().tile(level, column, row), "image/jpeg", kept=True)
    except InputError:
        # The page says what is missing; its nuclei still need something to lie on.
        return Answer(slide_picture.plain((box.width, box.height)), "image/jpeg")


def _crop(opened: Opened, x: float, y: float, size: float) -> Answer:
    left, top = opened.result.origin
    try:
        made = opened.slide().crop(x + left, y + top, size, CROP_SIDE_PX)
        return Answer(made, "image/jpeg", kept=True)
    except InputError:
        return Answer(slide_picture.plain((CROP_SIDE_PX, CROP_SIDE_PX)), "image/jpeg")


def _nucleus_at(opened: Opened, x: float, y: float) -> dict[str, object]:
    left, top = opened.result.origin
    scale = opened.result.values["scale"]
    found = opened.nuclei().id_at((x + left) / scale, (y + top) / scale)
    if not found:
        return {"nucleus": None}
    nucleus = opened.table().nucleus(found)
    if nucleus is None:
        raise InputError(f"the map of nuclei has nucleus {found}, and the table does not")
    return {"nucleus": nucleus}


def _json(values: object) -> Answer:
    return Answer(json.dumps(values).encode(), JSON)


class Server(ThreadingHTTPServer):
    """The server of a folder of results."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, library: Library, port: int) -> None:
        self.library = library
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell of an error outside of answers in a line; browsers that hang up are none."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            _tell(error)


def make_server(library: Library, port: int) -> Server:
    """A server on a port of 127.0.0.1; port 0 takes a free one.

    Raises:
        InputError: The port is taken or not allowed.
    """
    try:
        return Server(library, port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "is in use" if error.errno == errno.EADDRINUSE else "is not allowed"
            raise InputError(f"port {port} {why}; take a free one with --port 0") from error
        raise


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "dssnet_fast"
    sys_version = ""
    timeout = _IDLE_SECONDS
    server: Server

    def do_GET(self) -> None:
        self._send(self._answer())

    do_HEAD = do_GET

    def _not_allowed(self) -> None:
        # What came with the request is not read, so nothing after it can be.
        self.close_connection = True
        refused = _text(405, "only GET and HEAD")
        self._send(Answer(refused.body, TEXT, status=405, headers={"Allow": "GET, HEAD"}))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _not_allowed

    def _answer(self) -> Answer:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not is_local(hosts[0]):
            return _text(403, "this server is for http://127.0.0.1 and http://localhost only")
        try:
            return answer(self.server.library, self.path)
        except Refused as refused:
            return _text(refused.status, str(refused))
        except (InputError, OSError) as error:
            return _text(500, one_line(error))
        except Exception as error:
            _tell(error)
            return _text(500, "an error of the server; its terminal says which")

    def _send(self, given: Answer) -> None:
        self.send_response(given.status)
        self.send_header("Content-Type", given.kind)
        self.send_header("Content-Length", str(len(given.body)))
        self.send_header("Cache-Control", "private, max-age=86400" if given.kept else "no-store")
        self.send_header("Content-Security-Policy", given.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        for name, value in given.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(given.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that could not be read, in the form of all other answers."""
        self.close_connection = True
        self._send(_text(code, message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page asks for hundreds of tiles."""


def _text(status: int, message: str) -> Answer:
    return Answer((message + "\n").encode("utf-8", "replace"), TEXT, status=status)


def _tell(error: BaseException) -> None:
    print(f"dssnet_fast.view: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
