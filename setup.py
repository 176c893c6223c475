"""Which folders are packages, and how C++ and CUDA get into them. The rest is in pyproject.toml.

What cannot be built here, for want of a compiler, is left out with one line that says so; the
package works without it, and `python -m dssnet_fast.info` repeats the line. An error in the
project's own sources stops the build.

Environment:
    DSSNET_FAST_CUDA=0  no kernel images: NVRTC compiles the kernels at first use.
    DSSNET_FAST_CUDA_ARCHITECTURES="80;90"  images for these compute capabilities only.
    DSSNET_FAST_BUILD=optional  what fails to compile is left out, too.
    CXX  the C++ compiler; otherwise the first of c++, g++ and clang++ on PATH.
    CUDA_HOME  the toolkit with nvcc; otherwise nvcc on PATH.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
KEPT = ROOT / "build" / "compiled"
EXTENSION = "dssnet_fast._native"
CXX_OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")

_PYTHON_PROBE = "#include <Python.h>\n#include <string>\nint main() { return 0; }\n"
_KERNEL_PROBE = (
    "struct P { int* p; };\n"
    'extern "C" __global__ void probe(const __grid_constant__ P p) { *p.p = 1; }\n'
)


def _module_at(path: Path):
    # The package cannot be imported yet; this module of it imports the standard library only.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sources = _module_at(ROOT / "dssnet_fast" / "backends" / "sources.py")


class LeftOut(Exception):
    """What is missing here for a part to be built; the message ends up in the manifest."""


class Failed(Exception):
    """A compiler refused the project's own sources; the message is the command and its output."""


def say(line: str) -> None:
    """Tell the one who installs."""
    print(f"dssnet_fast: {line}", file=sys.stderr, flush=True)


def run(command: Sequence[str]) -> str:
    """Run a compiler.

    Returns:
        What it printed on both streams.

    Raises:
        Failed: Its exit code is not 0.
    """
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise Failed(f"{shlex.join(command)}\n{done.stdout}")
    return done.stdout.strip()


def made(
    command: Sequence[str], inputs: list[Path], suffix: str, recipe: Sequence[str]
) -> tuple[Path, str]:
    """The output of a compiler, from an earlier build if that had the same inputs and recipe.

    Args:
        command: Without the output's name.
        inputs: All files that the compiler reads of ours.
        suffix: Of the output.
        recipe: What else decides about the output: options and versions. Paths are left out, for
            pip builds in a new folder each time.

    Returns:
        The output and the compiler's messages.
    """
    key = hashlib.sha256(json.dumps(list(recipe)).encode())
    for path in inputs:
        key.update(hashlib.sha256(path.read_bytes()).digest())
    output = KEPT / (key.hexdigest() + suffix)
    messages = output.with_suffix(".txt")
    if not (output.is_file() and messages.is_file()):
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as folder:
            begun = Path(folder, output.name)
            (begun.parent / messages.name).write_text(run([*command, "-o", str(begun)]))
            os.replace(begun.parent / messages.name, messages)
            os.replace(begun, output)
    return output, messages.read_text()


def first_error(failed: Failed) -> str:
    """The first line of a compiler's output that speaks of an error, or its first line."""
    command, *lines = [line.strip() for line in str(failed).splitlines() if line.strip()]
    said = lines or [f"{command} failed"]
    return next((line for line in said if "error" in line.lower()), said[0])


def probe(command: Sequence[str], suffix: str, program: str) -> None:
    """Compile a program that any working compiler accepts.

    Raises:
        Failed: This one does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe{suffix}")
        source.write_text(program)
        run([*command, str(source), "-o", str(Path(folder, "probe.out"))])


def _relative(files: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in files]


def compile_extension(workers: ThreadPoolExecutor) -> tuple[Path, dict[str, object]]:
    """The compiled extension, and what the manifest says of it.

    Raises:
        LeftOut: There is no compiler, or it cannot compile for this Python.
        Failed: The sources are wrong.
    """
    if not sys.platform.startswith("linux"):
        raise LeftOut(f"it is built on Linux only, and this is {sys.platform}")
    named = os.environ.get("CXX")
    found = shlex.split(named) if named else None
    if found is None:
        found = [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    if not found or not shutil.which(found[0]):
        raise LeftOut("no C++ compiler" + (f" {named!r}" if named else ""))
    try:
        import pybind11
    except ImportError as error:
        raise LeftOut("no pybind11") from error
    folders = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    include = [f"-I{folder}" for folder in (*sorted(folders), pybind11.get_include())]
    compiler = [*found, *CXX_OPTIONS, *include]
    try:
        version = run([*found, "--version"]).splitlines()[0]
        probe([*compiler, "-c"], ".cpp", _PYTHON_PROBE)
    except (Failed, OSError, IndexError) as error:
        why = first_error(error) if isinstance(error, Failed) else str(error)
        raise LeftOut(f"{found[0]} cannot compile for Python: {why}") from error
    files = sources.extension_files(CSRC)
    # The CPU's kernels and the rest share nothing, so that a change to one recompiles only that.
    headers = {
        is_cpu: [p for p in files if p.suffix != ".cpp" and (p.parent.name == "cpu") == is_cpu]
        for is_cpu in (False, True)
    }
    sets, left_out = usable_instruction_sets(compiler)
    defines = [f"-DDSSNET_FAST_{name.upper()}" for name in sets]
    recipe = [*found, *CXX_OPTIONS, version, pybind11.__version__, sys.version]

    def compile_one(path: Path) -> tuple[Path, str]:
        options = []
        if path.parent.name == "cpu":
            options += [*defines, *sources.CPU_OPTIONS]
        if (name := sources.instruction_set(path)) is not None:
            options += sources.INSTRUCTION_SETS[name].options
        command = [*compiler, *options, "-c", str(path)]
        read = [path, *headers[path.parent.name == "cpu"], CSRC / "bind.h"]
        return made(command, read, ".o", [*recipe, *options])

    units = [
        path
        for path in files
        if path.suffix == ".cpp" and sources.instruction_set(path) in (None, *sets)
    ]
    compiled = dict(zip(_relative(units), workers.map(compile_one, units), strict=True))
    objects = [output for output, _ in compiled.values()]
    link = [*found, "-shared", *map(str, objects), "-ldl", "-pthread"]
    extension = made(link, objects, ".so", recipe)[0]
    facts = {"compiler": version, "warnings": warnings_of(compiled), "left_out": left_out}
    return extension, facts


def usable_instruction_sets(
    compiler: Sequence[str], machine: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """Those that compiler and assembler know, and for each other one why not.

    Args:
        compiler: A command.
        machine: The kind of processor it compiles for; this one's by default.
    """
    usable, left_out = [], {}
    for name, one in sources.INSTRUCTION_SETS.items():
        if (machine or platform.machine()) not in one.machines:
            continue
        try:
            # A compiler may be newer than its assembler, and takes the options all the same.
            program = f'void probe() {{ __asm__ volatile("{one.newest}"); }}\n'
            probe([*compiler, *one.options, "-c"], ".cpp", program)
            usable.append(name)
        except Failed as failed:
            left_out[name] = first_error(failed)
            say(f"{name}: {left_out[name]}; built without CPU kernels for it")
    return usable, left_out


def warnings_of(compiled: dict[str, tuple[Path, str]]) -> dict[str, str]:
    """What compilers had to say, for the manifest; also told now."""
    found = {name: messages for name, (_, messages) in compiled.items() if messages}
    for name, messages in found.items():
        say(f"{name}: {messages}")
    return found


def find_nvcc() -> tuple[str, str]:
    """Paths of nvcc and ptxas.

    Raises:
        LeftOut: There is none, or it cannot compile.
    """
    if os.environ.get("DSSNET_FAST_CUDA") == "0":
        raise LeftOut("DSSNET_FAST_CUDA=0")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = os.pathsep.join(filter(None, (home and str(Path(home, "bin")), os.environ.get("PATH"))))
    nvcc = shutil.which("nvcc", path=path)
    if nvcc is None:
        raise LeftOut("no nvcc")
    ptxas = shutil.which("ptxas", path=os.pathsep.join((str(Path(nvcc).parent), path)))
    if ptxas is None:
        raise LeftOut("no ptxas beside nvcc")
    try:
        version = nvcc_version(nvcc)
        probe([nvcc, "-ptx", *_ptx_options()], ".cu", _KERNEL_PROBE)
    except (Failed, OSError) as error:
        why = first_error(error) if isinstance(error, Failed) else str(error)
        raise LeftOut(f"nvcc cannot compile: {why}") from error
    if version < sources.OLDEST_COMPILER:
        oldest = ".".join(map(str, sources.OLDEST_COMPILER))
        raise LeftOut(f"nvcc {'.'.join(map(str, version))} is older than {oldest}")
    return nvcc, ptxas


def nvcc_version(nvcc: str) -> tuple[int, ...]:
    """The release, such as (13, 0, 88).

    Raises:
        LeftOut: It is not the nvcc we know.
        Failed: It does not run.
    """
    printed = re.search(r"\bV(\d+)\.(\d+)\.(\d+)", run([nvcc, "--version"]))
    if printed is None:
        raise LeftOut(f"{nvcc} tells no version")
    return tuple(map(int, printed.groups()))


def _ptx_options() -> list[str]:
    return [*sources.NVCC_OPTIONS, f"-arch=compute_{sources.PTX_ARCHITECTURE}"]


def wanted_architectures(nvcc: str) -> list[int]:
    """Compute capabilities to build images for: those asked for, or all that nvcc knows.

    Raises:
        SystemExit: One that was asked for is not one that this nvcc knows.
    """
    known = {int(name) for name in re.findall(r"\bsm_(\d+)\b", run([nvcc, "--list-gpu-code"]))}
    asked = os.environ.get("DSSNET_FAST_CUDA_ARCHITECTURES")
    if asked is None:
        unknown = [str(one) for one in sources.ARCHITECTURES if one not in known]
        if unknown:
            say(f"this nvcc knows no sm_{', sm_'.join(unknown)}; devices of those take the PTX")
        return [one for one in sources.ARCHITECTURES if one in known]
    names = re.split(r"[;,\s]+", asked.strip(";, "))
    wrong = [name for name in names if not name.isdecimal() or int(name) not in known]
    if wrong:
        raise SystemExit(
            f"dssnet_fast: DSSNET_FAST_CUDA_ARCHITECTURES must be numbers such as 80;90 that this "
            f"nvcc knows ({' '.join(map(str, sorted(known)))}), got {asked!r}"
        )
    return sorted({int(name) for name in names})


def compile_kernels(workers: ThreadPoolExecutor) -> tuple[dict[str, Path], dict[str, object]]:
    """Kernel images, file name to file, and what the manifest says of them.

    Each image is assembled from the PTX that ships beside it: one program for every device, and
    the one that the tests run.

    Raises:
        LeftOut: There is no nvcc that works.
        Failed: The sources are wrong.
    """
    nvcc, ptxas = find_nvcc()
    version = f"nvcc {'.'.join(map(str, nvcc_version(nvcc)))}"
    architectures = wanted_architectures(nvcc)
    kernels = CSRC / "cuda"
    files = sources.kernel_files(kernels)
    headers = [path for path in files if path.suffix != ".cu"]

    def compile_one(module: str) -> tuple[Path, str]:
        source = kernels / f"{module}.cu"
        command = [nvcc, "-ptx", *_ptx_options(), str(source)]
        return made(command, [source, *headers], ".ptx", [*_ptx_options(), version])

    def assemble_one(job: tuple[Path, int]) -> tuple[Path, str]:
        ptx, architecture = job
        options = [f"-arch=sm_{architecture}", "--warn-on-spills"]
        return made([ptxas, *options, str(ptx)], [ptx], ".cubin", [*options, version])

    modules = sources.modules(kernels)
    images = dict(
        zip([f"{name}.ptx" for name in modules], workers.map(compile_one, modules), strict=True)
    )
    jobs = {
        f"{module}.sm_{architecture}.cubin": (images[f"{module}.ptx"][0], architecture)
        for module in modules
        for architecture in architectures
    }
    images.update(zip(jobs, workers.map(assemble_one, jobs.values()), strict=True))
    facts = {
        "compiler": version,
        "architectures": architectures,
        "warnings": warnings_of(images),
    }
    return {name: image for name, (image, _) in images.items()}, facts


class BuildCompiled(build_ext):
    """Fills the package with what is compiled: extension, kernel images, and their manifest.

    In an editable install the package's folder is that of the sources.
    """

    def run(self) -> None:
        """Build what can be built here."""
        kernels = CSRC / "cuda"
        manifest = {
            "extension": {
                "file": None,
                "compiler": None,
                "warnings": {},
                "left_out": {},
                "source_sha256": sources.digest(sources.extension_files(CSRC), CSRC),
                "problem": None,
            },
            "source_sha256": sources.digest(sources.kernel_files(kernels), kernels),
            "compiler": None,
            "architectures": [],
            "warnings": {},
            "problem": None,
        }
        extension, images = None, {}
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            try:
                extension, facts = self._part(compile_extension, workers)
                manifest["extension"].update(facts)
            except LeftOut as reason:
                manifest["extension"]["problem"] = str(reason)
                manifest["problem"] = "the extension that runs them was not built"
                say(
                    f"{reason}, built without the backends cuda and cpu "
                    "(install g++ and reinstall to get it)"
                )
            else:
                try:
                    images, facts = self._part(compile_kernels, workers)
                    manifest.update(facts)
                except LeftOut as reason:
                    manifest["problem"] = str(reason)
                    say(f"{reason}, kernels will be compiled by NVRTC at first use")
        self._fill(extension, images, manifest)

    def _part(self, compile_part, workers: ThreadPoolExecutor):
        try:
            return compile_part(workers)
        except Failed as failed:
            if os.environ.get("DSSNET_FAST_BUILD") == "optional":
                print(failed, file=sys.stderr)
                raise LeftOut(f"compiling failed: {first_error(failed)}") from failed
            say("compiling failed; DSSNET_FAST_BUILD=optional installs without this part")
            raise SystemExit(str(failed)) from failed

    def _fill(self, extension: Path | None, images: dict[str, Path], manifest: dict) -> None:
        """Put everything into the package's folder and remove what an earlier build left there."""
        target = self._package() / Path(self.get_ext_filename(EXTENSION)).name
        folder = self._package() / sources.IMAGES
        target.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if extension is not None:
            manifest["extension"]["file"] = target.name
            shutil.copyfile(extension, target)
        for name, image in images.items():
            shutil.copyfile(image, folder / name)
        (folder / sources.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if not self.inplace:
            kernels = self._package() / sources.KERNELS
            shutil.rmtree(kernels, ignore_errors=True)
            kernels.mkdir(parents=True)
            for path in sources.kernel_files(CSRC / "cuda"):
                shutil.copyfile(path, kernels / path.name)

    def _package(self) -> Path:
        return Path(self.get_ext_fullpath(EXTENSION)).parent

    def get_outputs(self) -> list[str]:
        """Files of the build folder that `run` makes, or would make if it were not in place."""
        return sorted(self._outputs())

    def get_output_mapping(self) -> dict[str, str]:
        """For each of `get_outputs`, the file in the sources that an editable install takes."""
        return self._outputs() if self.inplace else {}

    def _outputs(self) -> dict[str, str]:
        package, built = self._package(), Path(self.build_lib, "dssnet_fast")
        files = [*package.glob(f"_native{sysconfig.get_config_var('EXT_SUFFIX')}")]
        files += (package / sources.IMAGES).glob("*")
        found = {str(built / path.relative_to(package)): str(path) for path in files}
        kernels = CSRC / "cuda" if self.inplace else package / sources.KERNELS
        for path in sources.kernel_files(kernels):
            found[str(built / sources.KERNELS / path.name)] = str(path)
        return found


setup(
    # `kernels` and `python_ref` are top-level folders of the repository, but nothing except
    # `dssnet_fast` may land at the top level of site-packages.
    packages=[
        "dssnet_fast",
        "dssnet_fast.backends",
        "dssnet_fast.backends.cpu",
        "dssnet_fast.backends.cuda",
        "dssnet_fast.backends.triton",
        "dssnet_fast.kernels",
        "dssnet_fast.python_ref",
        "dssnet_fast.slides",
        "dssnet_fast.study",
        "dssnet_fast.view",
        "dssnet_fast.wsi",
        "dssnet_fast.wsi.writers",
    ],
    package_dir={
        "dssnet_fast": "dssnet_fast",
        "dssnet_fast.kernels": "kernels",
        "dssnet_fast.python_ref": "python_ref",
    },
    package_data={
        "dssnet_fast": ["models/*.safetensors", "models/*.md", "py.typed"],
        "dssnet_fast.view": ["static/*.*", "static/openseadragon/*"],
    },
    # The files are for sdists and wheel tags; BuildCompiled decides what is compiled, and how.
    ext_modules=[
        Extension(
            EXTENSION,
            sources=_relative([p for p in sources.extension_files(CSRC) if p.suffix == ".cpp"]),
        )
    ],
    cmdclass={"build_ext": BuildCompiled},
)
