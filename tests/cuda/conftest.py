"""What the tests of the CUDA backend share: the extension, and a driver that runs nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

import dssnet_fast
import dssnet_fast.backends.native as installed
import dssnet_fast.backends.sources as sources

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
UNUSED_S = 7 * 24 * 3600  # after which a build is thrown away
OPTIONS = (
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Wpedantic", "-Werror"),
)


class Builder:
    """Compiles with g++, and keeps what it has compiled from one run of the tests to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kept in folder.glob("*/"):
            if time.time() - kept.stat().st_mtime > UNUSED_S:
                shutil.rmtree(kept, ignore_errors=True)

    def make(self, command: Sequence[str], inputs: Sequence[Path], name: str) -> Path:
        """A file called `name`, made by `command` and "-o"; inputs and command decide its folder.

        Raises:
            RuntimeError: The compiler failed; the message is what it said.
        """
        state = hashlib.sha256("\0".join((*command, sys.version)).encode())
        for path in inputs:
            state.update(hashlib.sha256(path.read_bytes()).digest())
        kept = self.folder / state.hexdigest()[:24]
        if not (kept / name).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as begun:
                done = subprocess.run(
                    [*command, "-o", str(Path(begun, name))], capture_output=True, text=True
                )
                if done.returncode != 0:
                    raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
                # Somebody else's run may do the same now; a whole file takes the place of another.
                kept.mkdir(exist_ok=True)
                os.replace(Path(begun, name), kept / name)
        os.utime(kept)
        return kept / name

    def extension(self, *options: str) -> Path:
        """The extension `_native` of the sources here, with the CPU's portable kernels only."""
        import pybind11

        files = [p for p in sources.extension_files(CSRC) if sources.instruction_set(p) is None]
        headers = [path for path in files if path.suffix != ".cpp"]
        folders = (sysconfig.get_path("include"), pybind11.get_include())
        include = [f"-isystem{folder}" for folder in folders]

        def compile_one(path: Path) -> Path:
            own = sources.CPU_OPTIONS[1:] if path.parent.name == "cpu" else ()
            command = ["g++", *OPTIONS, *own, *options, *include, "-c", str(path)]
            return self.make(command, [path, *headers], path.name + ".o")

        with ThreadPoolExecutor(os.cpu_count()) as workers:
            objects = list(workers.map(compile_one, [p for p in files if p.suffix == ".cpp"]))
        link = ["g++", "-shared", *options, *map(str, objects), "-ldl", "-pthread"]
        return self.make(link, objects, f"_native{sysconfig.get_config_var('EXT_SUFFIX')}")

    def stand_in(self, *options: str, without: str | None = None) -> Path:
        """The library of stand_in.cpp; `without` is a function of the driver that it lacks."""
        source, header = HERE / "stand_in.cpp", HERE / "stand_in_types.h"
        compiled = self.make(
            ["g++", *OPTIONS, *options, "-c", str(source)], [source, header], "stand_in.o"
        )
        link = ["g++", "-shared", "-Wl,-soname,libcuda.so.1", *options, str(compiled)]
        inputs = [compiled]
        if without is not None:
            script = self.folder / f"without_{without}.map"
            script.write_text(f"{{ global: *; local: {without}; }};\n")
            link.append(f"-Wl,--version-script={script}")
            inputs.append(script)
        return self.make([*link, "-ldl", "-lpthread"], inputs, "libcuda.so.1")


@pytest.fixture(scope="session")
def builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    if not sys.platform.startswith("linux"):
        pytest.skip("the extension is built on Linux only")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    pytest.importorskip("pybind11")
    cache = getattr(request.config, "cache", None)
    return Builder(cache.mkdir("dssnet_native") if cache else tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session")
def native(request: pytest.FixtureRequest) -> ModuleType:
    """The extension of the sources here: the installed one if it is, otherwise one built now."""
    if installed.problem() is None:
        return installed.module()
    path = request.getfixturevalue("builder").extension()
    if installed.NAME in sys.modules:
        pytest.fail(f"{installed.NAME} is of other sources than csrc/, and loaded: install again")
    spec = importlib.util.spec_from_file_location(installed.NAME, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[installed.NAME] = dssnet_fast._native = module
    return module


@pytest.fixture(scope="session")
def stand_in(builder: Builder) -> Path:
    """A libcuda.so.1 that runs nothing and keeps books; see stand_in.cpp."""
    return builder.stand_in()
