"""The open files of one slide, each opened when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.view.summary import Result

if TYPE_CHECKING:
    from dssnet_fast.view.nuclei_picture import NucleiPicture
    from dssnet_fast.view.nucleus_table import NucleusTable
    from dssnet_fast.view.slide_picture import SlidePicture


class Opened:
    """A slide and its results.

    Each method opens a file or says, as an InputError, why it cannot; the others go on working.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self._lock = threading.Lock()
        self._parts: dict[str, object] = {}

    def slide(self) -> SlidePicture:
        """The slide as a picture.

        Raises:
            InputError: It is gone, unreadable or another one than was analysed.
        """
        return self._part("slide", self._open_slide)

    def nuclei(self) -> NucleiPicture:
        """The nuclei as a picture.

        Raises:
            InputError: A map is missing, damaged or of another slide.
        """
        return self._part("nuclei", self._open_nuclei)

    def table(self) -> NucleusTable:
        """The numbers of the nuclei.

        Raises:
            InputError: The table is missing, damaged or of another slide.
        """
        return self._part("table", self._open_table)

    def close(self) -> None:
        """Close all files."""
        for part in self._parts.values():
            if not isinstance(part, InputError):
                part.close()

    def _part(self, kind: str, make: Callable[[], object]) -> object:
        with self._lock:
            if kind not in self._parts:
                try:
                    self._parts[kind] = make()
                except InputError as error:
                    # The files are what they are until their stamp changes.
                    self._parts[kind] = error
            part = self._parts[kind]
        if isinstance(part, InputError):
            raise InputError(str(part))
        return part

    def _open_slide(self) -> SlidePicture:
        from dssnet_fast.slides.slide import open_slide
        from dssnet_fast.view.slide_picture import SlidePicture

        recorded = self.result.values["slide"]
        if self.result.slide is None:
            raise InputError(
                f"slide {recorded} is not there; if it has moved, name its new folder with --slides"
            )
        slide = open_slide(self.result.slide)
        found = slide.levels[0].width, slide.levels[0].height
        if found != self.result.slide_size:
            slide.close()
            raise InputError(
                f"slide {self.result.slide} is {found[0]} x {found[1]} px, and these results are "
                f"of one of {self.result.slide_size[0]} x {self.result.slide_size[1]} px"
            )
        return SlidePicture(slide)

    def _open_nuclei(self) -> NucleiPicture:
        from dssnet_fast.view.label_map import LabelMap
        from dssnet_fast.view.nuclei_picture import NucleiPicture

        maps = []
        try:
            for kind in ("labels", "nuclei"):
                maps.append(LabelMap(self._file(kind)))
                found = [maps[-1].width, maps[-1].height]
                expected = self.result.values["analysis_size"]
                if found != expected:
                    raise InputError(
                        f"{self._file(kind).name}: is {found[0]} x {found[1]} px, and the "
                        f"summary says {expected[0]} x {expected[1]}"
                    )
        except InputError:
            for one in maps:
                one.close()
            raise
        return NucleiPicture(*maps, self.result.values["class_colours"])

    def _open_table(self) -> NucleusTable:
        from dssnet_fast.view.nucleus_table import NucleusTable

        table = NucleusTable(self._file("parquet"))
        if len(table) != self.result.values["nuclei"]:
            table.close()
            raise InputError(
                f"{self._file('parquet').name}: has {len(table)} nuclei, and the summary says "
                f"{self.result.values['nuclei']}"
            )
        return table

    def _file(self, kind: str) -> Path:
        if kind not in self.result.files:
            named = self.result.values["files"].get(kind)
            raise InputError(f"{named} is not there" if named else f"there is no file of {kind}")
        return self.result.files[kind]
