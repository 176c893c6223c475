"""What `setup.py` compiled, found and checked: the extension `_native` and the kernel images.

They lie in the package's folder. In a checkout that is the folder of the sources, which an editable
install fills; after a plain `pip install .` it holds nothing compiled, and the installed copy
elsewhere on `sys.path` does. A build counts only if it was made from the sources that lie here:
launch plans, kernels and their parameter blocks fit together or crash.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import dssnet_fast
import dssnet_fast.backends.sources as sources

NAME = "dssnet_fast._native"
_AGAIN = "install again with: pip install ."


@dataclass(frozen=True)
class Build:
    """What `setup.py` left in one folder.

    Attributes:
        package: The folder: a package `dssnet_fast`.
        manifest: See `BuildCompiled.run` in `setup.py`.
    """

    package: Path
    manifest: dict

    @property
    def images(self) -> Path:
        """The folder of the kernel images."""
        return self.package / sources.IMAGES

    @property
    def extension(self) -> Path:
        """Where the extension is, if there is one for this Python."""
        return self.package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"

    def extension_problem(self) -> str | None:
        """Why the extension cannot be used; None when it can."""
        facts = self.manifest["extension"]
        if facts["problem"]:
            return f"its extension was not built: {facts['problem']} at install"
        if facts["file"] != self.extension.name or not self.extension.is_file():
            return f"its extension was built for another Python ({facts['file']}); {_AGAIN}"
        csrc = kernel_sources().parent
        # An installed package lies without the C++ sources, with the extension made from them.
        is_checkout = (csrc / "plan").is_dir()
        if is_checkout and facts["source_sha256"] != sources.digest(
            sources.extension_files(csrc), csrc
        ):
            return f"the build in {self.package} is of other sources; {_AGAIN}"
        return None

    def images_problem(self) -> str | None:
        """Why the kernel images cannot be used; None when they can."""
        if self.manifest["problem"]:
            return f"not built: {self.manifest['problem']} at install"
        if self.manifest["source_sha256"] != kernels_digest():
            return f"the images in {self.package} are of other sources; {_AGAIN}"
        return None


def kernel_sources() -> Path:
    """The folder `csrc/cuda`: in the package where installed, beside it in a checkout."""
    return next(
        folder for home in dssnet_fast.__path__ if (folder := Path(home, sources.KERNELS)).is_dir()
    )


@functools.cache
def kernels_digest() -> str:
    """SHA-256 of the sources of the kernels."""
    kernels = kernel_sources()
    return sources.digest(sources.kernel_files(kernels), kernels)


def _packages() -> list[Path]:
    own = Path(dssnet_fast.__file__).resolve().parent
    if (own / "python_ref").is_dir():
        return [own]
    others = (Path(entry, "dssnet_fast").resolve() for entry in sys.path)
    return list(dict.fromkeys([own, *others]))


@functools.cache
def build() -> Build | None:
    """The build to use: the first whose extension can be used, else the first there is."""
    found = []
    for package in _packages():
        try:
            manifest = json.loads((package / sources.IMAGES / sources.MANIFEST).read_text())
        except (OSError, ValueError):
            continue
        found.append(Build(package, manifest))
    usable = (one for one in found if one.extension_problem() is None)
    return next(usable, found[0] if found else None)


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    found = build()
    if found is None:
        return None, "nothing is compiled here; run: pip install . (or -e .) in the checkout"
    problem = found.extension_problem()
    if problem is not None:
        return None, problem
    spec = importlib.util.spec_from_file_location(NAME, found.extension)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, f"its extension cannot be loaded: {error}"
    # What `import dssnet_fast._native` would have done, had it known where to look.
    sys.modules[NAME] = module
    dssnet_fast._native = module
    return module, None


def problem() -> str | None:
    """Why the extension cannot be used here; None when it can."""
    return _load()[1]


def module() -> ModuleType:
    """The extension.

    Raises:
        ImportError: It cannot be used; see `problem`.
    """
    loaded, why = _load()
    if loaded is None:
        raise ImportError(f"dssnet_fast._native: {why}")
    return loaded
