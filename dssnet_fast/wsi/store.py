"""What lies in the output folder: results, records of finished slides, tiles of unfinished ones.

`.dssnet_fast/NAME.slide.json` says that a slide is done and what its results were made from.
`.dssnet_fast/NAME/` holds the tiles that are done of a slide that is not. Everything is written
aside and renamed, so a killed run leaves whole tiles only, and the next one goes on from them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from dssnet_fast.jobs import RECORDS, Job
from dssnet_fast.outputs import write_json
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write, remove_leftovers

# Endings of a slide's results, by what they are.
RESULTS = {
    "labels": "_labels.ome.tif",
    "nuclei": "_nuclei.ome.tif",
    "geojson": ".geojson.gz",
    "parquet": ".parquet",
    "report": "_report.html",
    "summary": ".json",
}


@contextlib.contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Keep other runs out of an output folder for the length of the block.

    Raises:
        InputError: Another run writes there.
    """
    try:
        import fcntl
    except ImportError:  # not there on Windows, where nothing keeps two runs apart
        yield
        return
    with open(out / RECORDS / "lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--out {out}: another run is writing there; wait for it") from error
        except OSError:
            pass  # a file system without locks
        yield


class SlideStore:
    """The files of one slide.

    Args:
        out: The output folder; `RECORDS` exists in it.
        job: The slide.
    """

    def __init__(self, out: Path, job: Job) -> None:
        self._tiles = out / RECORDS / job.name
        self._record = out / RECORDS / f"{job.name}.slide.json"
        self.results = {what: out / (job.name + ending) for what, ending in RESULTS.items()}

    def finished(self, made_from: dict) -> dict | None:
        """The record of the slide, if its results are all there and were made from that."""
        record = _read_json(self._record)
        if record is None or record.get("made_from") != made_from:
            return None
        return record if all(path.is_file() for path in self.results.values()) else None

    def begin(self, made_from: dict) -> set[int]:
        """Get ready for tiles, and keep those of an earlier run that were made from the same.

        Returns:
            Their numbers.
        """
        self._record.unlink(missing_ok=True)
        remove_leftovers([*self.results.values(), self._record])
        for path in self.results.values():
            path.unlink(missing_ok=True)
        plan = self._tiles / "plan.json"
        if _read_json(plan) != made_from:
            shutil.rmtree(self._tiles, ignore_errors=True)
            self._tiles.mkdir(parents=True)
            write_json(plan, made_from)
        done = set()
        for path in self._tiles.iterdir():
            if path.suffix == ".tile" and path.stem.isdecimal():
                done.add(int(path.stem))
            elif path != plan:
                path.unlink()
        return done

    def tile(self, number: int) -> Path:
        """The file of a tile."""
        return self._tiles / f"{number:06}.tile"

    def keep(self, number: int, data: bytes) -> None:
        """Store a tile.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        with atomic_write(self.tile(number)) as temporary:
            temporary.write_bytes(data)

    def finish(self, record: dict) -> None:
        """Say that the slide is done, and remove its tiles."""
        write_json(self._record, record)
        shutil.rmtree(self._tiles, ignore_errors=True)


def _read_json(path: Path) -> dict | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None
