"""`python -m dssnet_fast.view`: look at a folder of results in the browser."""

from __future__ import annotations

import argparse
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from dssnet_fast import cli


def make_parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    parser = cli.parser("view", "Look at the results of python -m dssnet_fast.wsi in the browser.")
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of results")
    parser.add_argument(
        "--port", default=8765, type=_port, help="port on 127.0.0.1; 0 takes any free one"
    )
    parser.add_argument(
        "--slides",
        type=Path,
        metavar="FOLDER",
        help="where slides lie that are no longer where they were analysed",
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, open no browser"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `cli.run` for exit codes. Ctrl-C ends it with 0."""
    return cli.main("view", make_parser, _view, argv)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text}")
    return int(text)


def _view(arguments: argparse.Namespace) -> int:
    cli.need_packages("wsi", ("openslide", "pyarrow"))
    from dssnet_fast.view.library import Library
    from dssnet_fast.view.server import make_server

    library = Library(arguments.dir, arguments.slides)
    for reason in library.refused:
        print(f"dssnet_fast.view: refused: {reason}", file=sys.stderr)
    server = make_server(library, arguments.port)
    with server:
        address = f"http://127.0.0.1:{server.server_port}/"
        count = len(library.results)
        print(f"{count} slide{'' if count == 1 else 's'} at {address} (Ctrl-C ends)", flush=True)
        if not arguments.no_browser:
            # Some browsers are waited for; the page needs the server meanwhile.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    library.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
