"""What an installation leaves behind: with compilers, without, and with ones that fail.

Most tests run `setup.py` on a copy of the sources with compilers that are scripts: quick, and equal
on every machine. Those marked slow install with pip and the compilers that are really here.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dssnet_fast.backends import native, sources

ROOT = Path(__file__).resolve().parent.parent.parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MODULES = sources.modules(ROOT / "csrc" / "cuda")
IMAGES = Path("dssnet_fast") / sources.IMAGES
SETS = [
    name for name, one in sources.INSTRUCTION_SETS.items() if platform.machine() in one.machines
]

# A compiler that writes its command where the compiled code would be. It refuses sources with the
# line "#error" and the option `refused`, has an assembler without the instruction `unassembled`,
# warns of sources with the line "// warn", and has more `traits`.
SCRIPT = """#!/bin/sh
{traits}
case " $* " in
    *" --version "*) echo "$version"; exit $exit ;;
    *" --list-gpu-code "*) echo "$architectures"; exit $exit ;;
esac
echo "{name} $*" >> "{log}"
source=/dev/null
words="{name}"
for argument; do
    case $argument in *.cpp | *.cu) source=$argument ;; esac
    case $previous in -o) output=$argument ;; *) words="$words ${{argument##*/}}" ;; esac
    previous=$argument
done
if [ -n "$broken" ]; then echo "source.cpp:1: error: $broken"; exit 1; fi
if [ -n "$refused" ]; then
    case " $* " in *" $refused "*) echo "cc: error: unknown option $refused"; exit 1 ;; esac
fi
while read -r line; do
    case $line in
        "#error") echo "source.cpp:1: error: #error"; exit 1 ;;
        "// warn") echo "warning: spilled" ;;
    esac
    if [ -n "$unassembled" ]; then
        case "$line" in *"$unassembled "*)
            echo "source.s:1: Error: no such instruction: $unassembled"; exit 1 ;;
        esac
    fi
done < "$source"
echo "$words" > "$output"
"""
FAULTS = ("broken", "refused", "unassembled")
NVCC = {
    "version": "Cuda compilation tools, release 13.0, V13.0.88",
    "architectures": "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120",
}


class Tree:
    """A copy of the sources, and compilers beside it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.tools, self.log = folder / "tree", folder / "tools", folder / "log"
        self.root.mkdir(parents=True)
        self.tools.mkdir()
        compiled = shutil.ignore_patterns("*.so", "__pycache__", "images", "models")
        for name in ("csrc", "dssnet_fast", "kernels", "python_ref"):
            shutil.copytree(ROOT / name, self.root / name, ignore=compiled)
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, self.root / name)
        self.add("c++", version="c++ 12.2.0")
        self.add("nvcc", **NVCC)
        self.add("ptxas")

    def add(self, name: str, exit=0, **traits: str) -> None:
        empty = dict.fromkeys(("version", "architectures", *FAULTS), "")
        lines = [f"{key}={shlex.quote(value)}" for key, value in (empty | traits).items()]
        tool = self.tools / name
        tool.write_text(
            SCRIPT.format(traits="\n".join([*lines, f"exit={exit}"]), log=self.log, name=name)
        )
        tool.chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.tools / name).unlink()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if name in ("HOME", "TMPDIR")}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**kept, "PATH": str(self.tools), **environment},
            capture_output=True,
            text=True,
        )

    def build(self, **environment: str) -> str:
        """Build in place, as an editable install does; what was said on stderr."""
        done = self.run("setup.py", "build_ext", "--inplace", **environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    @property
    def manifest(self) -> dict:
        return json.loads((self.root / IMAGES / sources.MANIFEST).read_text())

    @property
    def extension(self) -> Path:
        return self.root / "dssnet_fast" / f"_native{SUFFIX}"

    def images(self) -> set[str]:
        return {path.name for path in (self.root / IMAGES).iterdir()} - {sources.MANIFEST}

    def compiled(self) -> list[str]:
        """Tools that compiled something other than a probe since this was last asked."""
        return [command[0] for command in self.commands()]

    def commands(self) -> list[list[str]]:
        """What they were told."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split() for line in lines if "/probe." not in line]

    def units(self) -> list[Path]:
        """What of C++ is compiled here: not what is for another kind of processor."""
        return [
            path
            for path in sources.extension_files(self.root / "csrc")
            if path.suffix == ".cpp" and sources.instruction_set(path) in (None, *SETS)
        ]


@pytest.fixture
def tree(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pybind11")
    if not sys.platform.startswith("linux"):
        pytest.skip("the extension is built on Linux only")
    return Tree(tmp_path)


def expected_images(architectures):
    return {f"{m}.ptx" for m in MODULES} | {
        f"{m}.sm_{a}.cubin" for m in MODULES for a in architectures
    }


# --- setup.py ------------------------------------------------------------------------------------


def test_everything_is_built_and_recorded(tree):
    assert tree.build() == ""
    manifest = tree.manifest
    assert manifest["problem"] is None
    assert manifest["compiler"] == "nvcc 13.0.88"
    assert manifest["architectures"] == list(sources.ARCHITECTURES)
    assert manifest["warnings"] == {}
    kernels = tree.root / "csrc" / "cuda"
    assert manifest["source_sha256"] == sources.digest(sources.kernel_files(kernels), kernels)
    assert manifest["extension"] == {
        "file": f"_native{SUFFIX}",
        "compiler": "c++ 12.2.0",
        "problem": None,
        "warnings": {},
        "left_out": {},
        "source_sha256": sources.digest(
            sources.extension_files(tree.root / "csrc"), tree.root / "csrc"
        ),
    }
    assert tree.images() == expected_images(sources.ARCHITECTURES)
    link = tree.extension.read_text().split()
    assert link[:2] == ["c++", "-shared"]
    assert [word for word in link if word.startswith("-l")] == ["-ldl"]
    # Assembled from the very PTX that lies beside it.
    image = (tree.root / IMAGES / f"{MODULES[0]}.sm_90.cubin").read_text().split()
    assert image[:3] == ["ptxas", "-arch=sm_90", "--warn-on-spills"]
    assert image[3].endswith(".ptx")


def test_only_what_changed_is_compiled_again(tree):
    tree.build()
    first = tree.compiled()
    units = tree.units()
    plans = [path for path in units if path.parent.name != "cpu"]
    per_module = 1 + len(sources.ARCHITECTURES)
    assert len(first) == len(units) + 1 + len(MODULES) * per_module
    tree.build()
    assert tree.compiled() == []
    with open(tree.root / "csrc" / "cuda" / f"{MODULES[0]}.cu", "a") as file:
        file.write("// changed\n")
    before = tree.manifest["source_sha256"]
    tree.build()
    # The stand-in's PTX does not depend on the source, so its images are up to date.
    assert tree.compiled() == ["nvcc"]
    assert tree.manifest["source_sha256"] != before
    with open(units[0], "a") as file:
        file.write("// changed\n")
    tree.build()
    assert tree.compiled() == ["c++"]
    with open(next((tree.root / "csrc" / "cuda").glob("*.h")), "a") as file:
        file.write("// changed\n")
    tree.build()
    again = tree.compiled()
    assert again.count("nvcc") == len(MODULES)
    assert again.count("c++") == len(plans), "the plans share headers with the kernels"
    with open(tree.root / "csrc" / "cpu" / "kernels.inl", "a") as file:
        file.write("// changed\n")
    tree.build()
    again = tree.compiled()
    assert again == ["c++"] * (len(units) - len(plans)), "the CPU's kernels have their own"
    tree.add("c++", version="c++ 13.1.0")
    tree.build()
    assert tree.compiled() == ["c++"] * (len(units) + 1)
    tree.add("nvcc", **NVCC | {"version": "V13.1.20"})
    tree.build()
    assert set(tree.compiled()) == {"nvcc", "ptxas"}
    assert tree.manifest["compiler"] == "nvcc 13.1.20"


def test_without_a_cpp_compiler_nothing_is_built_and_it_is_said(tree):
    tree.build()
    tree.remove("c++")
    said = tree.build()
    assert said == (
        "dssnet_fast: no C++ compiler, built without the backends cuda and cpu "
        "(install g++ and reinstall to get it)\n"
    )
    assert tree.manifest["extension"]["problem"] == "no C++ compiler"
    assert tree.manifest["extension"]["file"] is None
    assert tree.manifest["problem"] == "the extension that runs them was not built"
    assert tree.images() == set(), "images of an earlier build are left"
    assert not tree.extension.exists(), "the extension of an earlier build is left"


def test_a_compiler_that_cannot_compile_is_none(tree):
    tree.add("c++", version="c++ 12.2.0", broken="Python.h: No such file or directory")
    assert "built without the backends cuda and cpu" in tree.build()
    assert tree.manifest["extension"]["problem"] == (
        "c++ cannot compile for Python: source.cpp:1: error: Python.h: No such file or directory"
    )


def unit_of(command: list[str]) -> Path | None:
    """The file that a command compiles."""
    return next((Path(word) for word in command if word.endswith(".cpp")), None)


def machine_options(command: list[str]) -> list[str]:
    """Those that let the compiler use more than every processor of this kind has."""
    return [word for word in command if word.startswith("-m")]


def test_each_instruction_set_is_compiled_for_its_processors_and_nothing_else_is(tree):
    """One instruction too many in what runs everywhere ends the process on an older processor."""
    tree.build()
    commands = {unit_of(command): command for command in tree.commands() if unit_of(command)}
    assert set(commands) == set(tree.units())
    for path, command in commands.items():
        assert "-march=native" not in command
        assert "-mtune=native" not in command
        name = sources.instruction_set(path)
        own = sources.INSTRUCTION_SETS[name].options if name else ()
        assert machine_options(command) == [one for one in own if one.startswith("-m")], path.name
        assert set(own) <= set(command)
        is_cpu = path.parent.name == "cpu"
        # Those that choose among the sets know all of them.
        defined = [word for word in command if word.startswith("-DDSSNET_FAST_")]
        assert defined == [f"-DDSSNET_FAST_{one.upper()}" for one in SETS] * is_cpu
        assert ("-O3" in command) == is_cpu
        assert "-ffast-math" not in command
    portable = tree.root / "csrc" / "cpu" / "portable.cpp"
    assert machine_options(commands[portable]) == []


def test_other_processors_kernels_are_not_compiled(tree):
    tree.build()
    units = {unit_of(command).stem for command in tree.commands() if unit_of(command)}
    assert {name for name in units if name in sources.INSTRUCTION_SETS} == set(SETS)
    assert tree.manifest["extension"]["left_out"] == {}
    for name in sources.INSTRUCTION_SETS:
        assert (tree.root / "csrc" / "cpu" / f"{name}.cpp").is_file()


def test_what_a_compiler_does_not_know_is_left_out_with_one_line(tree):
    if not SETS:
        pytest.skip(f"there is nothing for {platform.machine()}")
    option = sources.INSTRUCTION_SETS[SETS[-1]].options[-1]
    tree.add("c++", version="c++ 9.1.0", refused=option)
    lacking = [name for name in SETS if option in sources.INSTRUCTION_SETS[name].options]
    said = tree.build()
    why = f"cc: error: unknown option {option}"
    assert said == "".join(
        f"dssnet_fast: {name}: {why}; built without CPU kernels for it\n" for name in lacking
    )
    assert tree.manifest["extension"]["left_out"] == dict.fromkeys(lacking, why)
    assert tree.manifest["extension"]["problem"] is None
    assert tree.extension.exists()
    commands = tree.commands()
    stems = {unit_of(command).stem for command in commands if unit_of(command)}
    assert not stems & set(lacking)
    assert set(SETS) - set(lacking) <= stems
    # Nothing calls what is not there.
    for command in commands:
        assert not {f"-DDSSNET_FAST_{name.upper()}" for name in lacking} & set(command)
    told = tree.run("-m", "dssnet_fast.info", PYTHONPATH="").stdout
    assert all(f"  {name:<12} not in this build: {why}\n" in told for name in lacking)
    # A newer compiler builds all of it.
    tree.add("c++", version="c++ 14.2.0")
    assert tree.build() == ""
    assert tree.manifest["extension"]["left_out"] == {}


def test_what_an_assembler_does_not_know_is_left_out_too(tree):
    """It may be older than its compiler, which takes the option for what it cannot assemble."""
    if not SETS:
        pytest.skip(f"there is nothing for {platform.machine()}")
    newest = sources.INSTRUCTION_SETS[SETS[-1]].newest.split()[-4]
    tree.add("c++", version="c++ 12.2.0", unassembled=newest)
    lacking = [name for name in SETS if newest in sources.INSTRUCTION_SETS[name].newest.split()]
    tree.build()
    why = f"source.s:1: Error: no such instruction: {newest}"
    assert tree.manifest["extension"]["left_out"] == dict.fromkeys(lacking, why)
    assert tree.extension.exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64: the assembler is for it")
def test_an_assembler_that_is_really_old(tmp_path):
    from cpu.compiled import setup_script

    script, compiler, assembler = setup_script(), shutil.which("g++"), shutil.which("as")
    if compiler is None or assembler is None:
        pytest.skip("no g++, or no assembler of its own")
    tool = tmp_path / "as"
    tool.write_text(
        "#!/bin/sh\n"
        "for word; do case $word in *.s)\n"
        "    if grep -q vdpbf16ps $word; then\n"
        '        echo "$word:1: Error: no such instruction: vdpbf16ps" >&2; exit 1\n'
        "    fi;;\n"
        "esac; done\n"
        f'exec {assembler} "$@"\n'
    )
    tool.chmod(0o755)
    usable, left_out = script.usable_instruction_sets([compiler, f"-B{tmp_path}/"])
    all_of_them, _ = script.usable_instruction_sets([compiler])
    assert {"avx2"} <= set(usable) <= set(all_of_them)
    if "avx512_bf16" not in all_of_them:
        pytest.skip("g++ has no AVX-512 BF16 in any case")
    assert set(all_of_them) - set(usable) == {"avx512_bf16", "amx"} & set(all_of_them)
    assert all("no such instruction: vdpbf16ps" in left_out[n] for n in {*all_of_them} - {*usable})


def test_a_named_compiler_is_the_only_one(tree):
    assert "no C++ compiler 'g++-99'" in tree.build(CXX="g++-99")
    tree.add("mine", version="mine 1.0")
    assert tree.build(CXX="mine -m64") == ""
    assert tree.manifest["extension"]["compiler"] == "mine 1.0"
    assert tree.extension.read_text().startswith("mine -m64 -shared")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tree: tree.remove("nvcc"), "no nvcc"),
        (lambda tree: tree.remove("ptxas"), "no ptxas beside nvcc"),
        (lambda tree: tree.add("nvcc", exit=1), "/nvcc --version failed"),
        (
            lambda tree: tree.add("nvcc", **NVCC, broken="unsupported GNU version"),
            "nvcc cannot compile: source.cpp:1: error: unsupported GNU version",
        ),
        (
            lambda tree: tree.add("nvcc", **NVCC | {"version": "V12.3.107"}),
            "nvcc 12.3.107 is older than 12.4",
        ),
        (lambda tree: tree.add("nvcc", **NVCC | {"version": "what?"}), "tells no version"),
    ],
    ids=["absent", "no ptxas", "does not run", "refuses g++", "old", "unknown"],
)
def test_without_nvcc_nvrtc_will_do(tree, change, reason):
    tree.build()
    change(tree)
    said = tree.build()
    assert reason in said
    assert said.startswith("dssnet_fast: ")
    assert said.endswith(", kernels will be compiled by NVRTC at first use\n")
    assert said.count("\n") == 1
    assert reason in tree.manifest["problem"]
    assert tree.manifest["extension"]["problem"] is None
    assert tree.extension.exists()
    assert tree.images() == set()


def test_kernels_can_be_left_out(tree):
    assert "DSSNET_FAST_CUDA=0, kernels will be compiled by NVRTC" in tree.build(
        DSSNET_FAST_CUDA="0"
    )
    assert tree.images() == set()
    assert "nvcc" not in tree.compiled()


def test_nvcc_is_found_in_cuda_home(tree):
    home = tree.root.parent / "toolkit" / "bin"
    home.mkdir(parents=True)
    for name in ("nvcc", "ptxas"):
        shutil.move(tree.tools / name, home / name)
    assert "no nvcc" in tree.build()
    assert tree.build(CUDA_HOME=str(home.parent)) == ""
    assert tree.images() == expected_images(sources.ARCHITECTURES)


def test_architectures_can_be_chosen(tree):
    for asked in ("90;80", "80, 90", " 80 90 ;"):
        tree.build(DSSNET_FAST_CUDA_ARCHITECTURES=asked)
        assert tree.manifest["architectures"] == [80, 90]
        assert tree.images() == expected_images([80, 90])
    for wrong in ("9.0", "75", "sm_80", "", "80;next"):
        done = tree.run("setup.py", "build_ext", "--inplace", DSSNET_FAST_CUDA_ARCHITECTURES=wrong)
        assert done.returncode != 0
        assert (
            f"numbers such as 80;90 that this nvcc knows (80 86 89 90 100 120), got {wrong!r}"
            in (done.stderr)
        )


def test_an_nvcc_that_does_not_know_all_architectures_builds_the_others(tree):
    tree.add("nvcc", **NVCC | {"version": "V12.6.20", "architectures": "sm_80 sm_86 sm_89 sm_90"})
    assert "knows no sm_100, sm_120; devices of those take the PTX" in tree.build()
    assert tree.manifest["architectures"] == [80, 86, 89, 90]


@pytest.mark.parametrize(
    "source", ["runtime/runner.cpp", "cpu/portable.cpp", f"cuda/{MODULES[0]}.cu"]
)
def test_an_error_in_our_sources_stops_the_build(tree, source):
    with open(tree.root / "csrc" / source, "a") as file:
        file.write("#error\n")
    done = tree.run("setup.py", "build_ext", "--inplace")
    assert done.returncode != 0
    assert "source.cpp:1: error: #error" in done.stderr
    assert source in done.stderr, "the command names the file"
    assert "DSSNET_FAST_BUILD=optional" in done.stderr
    said = tree.build(DSSNET_FAST_BUILD="optional")
    assert "compiling failed: source.cpp:1: error: #error" in said
    problem = (tree.manifest if source.endswith(".cu") else tree.manifest["extension"])["problem"]
    assert problem == "compiling failed: source.cpp:1: error: #error"


def test_warnings_are_said_and_kept(tree):
    for source in ("runtime/runner.cpp", f"cuda/{MODULES[0]}.cu"):
        with open(tree.root / "csrc" / source, "a") as file:
            file.write("// warn\n")
    for _ in range(2):  # compiled, and taken from the build before
        said = tree.build()
        assert f"dssnet_fast: {MODULES[0]}.ptx: warning: spilled\n" in said
        assert tree.manifest["warnings"] == {f"{MODULES[0]}.ptx": "warning: spilled"}
        assert tree.manifest["extension"]["warnings"] == {
            "csrc/runtime/runner.cpp": "warning: spilled"
        }


def test_what_is_installed_here_was_compiled_without_warnings():
    build = native.build()
    if build is None:
        pytest.skip("nothing is compiled here")
    assert build.manifest["warnings"] == {}
    assert build.manifest["extension"]["warnings"] == {}


# --- distributions -------------------------------------------------------------------------------


def distribution(tree: Tree, kind: str) -> Path:
    tree.run("-c", "import shutil; shutil.rmtree('dist', ignore_errors=True)")
    done = tree.run("-c", f"from setuptools import build_meta; build_meta.build_{kind}('dist')")
    assert done.returncode == 0, done.stderr
    (path,) = (tree.root / "dist").iterdir()
    return path


def test_the_wheel_has_what_runs_and_nothing_else(tree):
    tree.build()  # what an editable install has left there
    (tree.root / IMAGES / "old.sm_80.cubin").touch()
    with zipfile.ZipFile(distribution(tree, "wheel")) as wheel:
        names = set(wheel.namelist())
        assert SUFFIX.split(".")[1].split("-")[1] in wheel.filename
        assert "linux" in wheel.filename
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dssnet_fast"}
    assert f"dssnet_fast/_native{SUFFIX}" in names
    found = {Path(name).name for name in names if name.startswith(IMAGES.as_posix())}
    assert found == expected_images(sources.ARCHITECTURES) | {sources.MANIFEST}
    kernels = {Path(name).name for name in names if name.startswith("dssnet_fast/csrc/")}
    assert kernels == {path.name for path in sources.kernel_files(ROOT / "csrc" / "cuda")}
    assert not any(name.endswith(".cpp") for name in names)

    # A file that is no more, and a build without compilers: nothing of the earlier one is left.
    (tree.root / "build" / "lib" / "dssnet_fast").mkdir(parents=True, exist_ok=True)
    (tree.root / "csrc" / "cuda" / f"{MODULES[0]}.cu").unlink()
    tree.remove("c++", "nvcc")
    with zipfile.ZipFile(distribution(tree, "wheel")) as wheel:
        names = set(wheel.namelist())
        manifest = json.loads(wheel.read((IMAGES / sources.MANIFEST).as_posix()))
    assert not any("_native" in name for name in names)
    assert {name for name in names if name.startswith(IMAGES.as_posix())} == {
        (IMAGES / sources.MANIFEST).as_posix()
    }
    assert f"dssnet_fast/csrc/cuda/{MODULES[0]}.cu" not in names
    assert manifest["extension"]["problem"] == "no C++ compiler"


def test_the_sdist_has_what_the_wheel_is_built_from(tree, tmp_path):
    tree.build()
    with tarfile.open(distribution(tree, "sdist")) as sdist:
        sdist.extractall(tmp_path / "sdist", filter="data")
    (root,) = (tmp_path / "sdist").iterdir()
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    wanted = {
        path.relative_to(tree.root).as_posix()
        for folder in ("csrc", "kernels", "python_ref", "dssnet_fast")
        for path in (tree.root / folder).rglob("*")
        if path.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh", ".py")
    }
    assert wanted <= names
    assert not any(name.endswith((".so", ".cubin", ".ptx", ".pyc")) for name in names)
    before = distribution(tree, "wheel")
    with zipfile.ZipFile(before) as wheel:
        expected = set(wheel.namelist())
    tree.root = root
    with zipfile.ZipFile(distribution(tree, "wheel")) as wheel:
        assert set(wheel.namelist()) == expected


def test_the_digest_is_of_names_and_contents(tmp_path):
    def digest(**files):
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        return sources.digest([tmp_path / name for name in files], tmp_path)

    first = digest(a="one", b="two")
    assert digest(b="two", a="one") == first
    others = [digest(a="one", b="owt"), digest(a="one", c="two"), digest(a="onetwo", b="")]
    assert len({first, *others, digest(a="one")}) == 5


# --- finding it ----------------------------------------------------------------------------------


@pytest.fixture
def look(monkeypatch):
    """What a process would find that has imported the package from somewhere."""

    def forget():
        for cached in (native.build, native.kernels_digest, native._load):
            cached.cache_clear()

    def found(package: Path, *path: Path) -> tuple[str | None, Path | None, str | None]:
        """Problem of the extension, where it is, problem of the images.

        Args:
            package: The folder of the package `dssnet_fast`.
            path: `sys.path`.
        """
        forget()
        homes = [package, package.parent]  # as dssnet_fast/__init__.py sets it in a checkout
        here = SimpleNamespace(__file__=str(package / "__init__.py"), __path__=map_to_str(homes))
        monkeypatch.setattr(native, "dssnet_fast", here)
        monkeypatch.setattr(sys, "path", map_to_str(path))
        build = native.build()
        if build is None:
            return native.problem(), None, None
        return native.problem(), build.package, build.images_problem()

    yield found
    monkeypatch.undo()
    forget()


def map_to_str(paths):
    return [str(path) for path in paths]


def append(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


def test_what_is_wrong_with_a_build_is_said(tree, look):
    package = tree.root / "dssnet_fast"
    problem, *nothing = look(package)
    assert problem == "nothing is compiled here; run: pip install . (or -e .) in the checkout"
    assert nothing == [None, None]
    tree.build()
    problem, where, images = look(package)
    assert "cannot be loaded" in problem, "the stand-in's extension is text"
    assert where == package
    assert images is None

    tree.extension.rename(tree.extension.with_name("_native.cpython-39.so"))
    assert "was built for another Python" in look(package)[0]
    # The latest build was for that one; what lies here for this one is older.
    manifest = tree.manifest
    manifest["extension"]["file"] = "_native.cpython-39.so"
    (tree.root / IMAGES / sources.MANIFEST).write_text(json.dumps(manifest))
    tree.extension.touch()
    assert "was built for another Python" in look(package)[0]

    append(tree.root / "csrc" / "cuda" / f"{MODULES[0]}.cu", "// changed")
    assert look(package)[2] == (
        f"the images in {package} are of other sources; install again with: pip install ."
    )

    tree.build()
    append(tree.root / "csrc" / "plan" / "plan.h", "// changed")
    problem, _, images = look(package)
    assert problem == (
        f"the build in {package} is of other sources; install again with: pip install ."
    )
    assert images is None

    tree.remove("c++")
    tree.build()
    problem, _, images = look(package)
    assert problem == "its extension was not built: no C++ compiler at install"
    assert images == "not built: the extension that runs them was not built at install"

    (tree.root / IMAGES / sources.MANIFEST).write_text("{")
    assert "nothing is compiled here" in look(package)[0]


def test_a_checkout_takes_the_installed_copys_build(tree, look, tmp_path):
    """As after `pip install .`: compiled into site-packages, run in the checkout's root."""
    package, site = tree.root / "dssnet_fast", tmp_path / "site"
    with zipfile.ZipFile(distribution(tree, "wheel")) as wheel:
        wheel.extractall(site)
    installed = site / "dssnet_fast"
    problem, where, images = look(package, tree.root, site)
    assert "cannot be loaded" in problem
    assert where == installed
    assert images is None
    # One that is of other sources is named, not used.
    header = tree.root / "csrc" / "plan" / "plan.h"
    before = header.read_text()
    append(header, "// changed")
    assert look(package, tree.root, site)[0].startswith(f"the build in {installed} is of other")
    # The checkout's own build comes first when it is up to date, second when it is not.
    tree.build()
    assert look(package, tree.root, site)[1] == package
    header.write_text(before)
    assert look(package, tree.root, site)[1] == installed
    # Installed, it looks nowhere else, and needs no C++ sources to be sure.
    shutil.rmtree(tree.root / "csrc" / "plan")
    problem, where, images = look(installed, tree.root, site)
    assert "cannot be loaded" in problem
    assert where == installed
    assert images is None
    (installed / f"_native{SUFFIX}").unlink()
    header.parent.mkdir()
    header.write_text(before)
    tree.build()
    problem, where, _ = look(installed, tree.root, site)
    assert "was built for another Python" in problem
    assert where == installed


def test_the_extension_is_loaded_under_its_name(native):
    import dssnet_fast
    from dssnet_fast import _native

    assert _native is native is dssnet_fast._native
    assert native.__name__ == "dssnet_fast._native"


# --- pip and the compilers that are here ---------------------------------------------------------


class Environment:
    """A virtual environment that sees the packages here, all but this one, and what pip puts in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.site = Path(
            self.output("-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        )
        # Folders named in a .pth file come last, and their own .pth files (those of editable
        # installs) do not count.
        packages = [entry for entry in sys.path if Path(entry).name == "site-packages"]
        (self.site / "here.pth").write_text("\n".join(packages))

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        python = self.folder / "bin" / "python"
        return subprocess.run([python, *arguments], capture_output=True, text=True, **options)

    def output(self, *arguments: str, **options) -> str:
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


LOAD = (
    "from dssnet_fast.backends import native\n"
    "problem = native.problem()\n"
    "if problem is None:\n"
    "    import dssnet_fast._native as found\n"
    "    assert found is native.module()\n"
    "print(problem or found.__file__)"
)
SITUATIONS = {
    "nvcc": ("c++", "nvcc"),
    "no nvcc": ("c++",),
    "no g++": (),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("situation", "editable"), [("nvcc", False), ("no nvcc", True), ("no g++", False)]
)
def test_pip_installs_a_package_that_works(tree, tmp_path, situation, editable):
    path = os.environ["PATH"].split(os.pathsep)
    if situation == "no nvcc":
        path = [folder for folder in path if not Path(folder, "nvcc").exists()]
    elif situation == "no g++":
        path = []
    for tool in SITUATIONS[situation]:
        if shutil.which(tool, path=os.pathsep.join(path)) is None:
            pytest.skip(f"{tool} is not here, or not without nvcc")
    shutil.copytree(ROOT / "dssnet_fast" / "models", tree.root / "dssnet_fast" / "models")
    # What the installation under test has compiled need not be compiled again.
    (ROOT / "build" / "compiled").mkdir(parents=True, exist_ok=True)
    (tree.root / "build").mkdir()
    (tree.root / "build" / "compiled").symlink_to(ROOT / "build" / "compiled")
    environment = {
        **{
            k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH", "PYTHONPATH")
        },
        "PATH": os.pathsep.join(path),
        "DSSNET_FAST_CUDA_ARCHITECTURES": "80",
        "DSSNET_FAST_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    made = Environment(tmp_path / "env")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", made.folder / "bin" / "python"]
        + ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        + ["-e"] * editable
        + [tree.root],
        env=environment,
        check=True,
    )

    # Wherever it is started, it finds what was compiled, or knows why nothing was.
    for cwd in (tmp_path, tree.root):
        loaded = made.output("-c", LOAD, cwd=cwd, env=environment)
        if situation == "no g++":
            assert loaded == "its extension was not built: no C++ compiler at install"
        else:
            home = tree.root if editable else made.site
            assert loaded == str(home / "dssnet_fast" / f"_native{SUFFIX}")
    info = made.output("-m", "dssnet_fast.info", cwd=tree.root, env=environment)
    facts = json.loads(
        made.output("-m", "dssnet_fast.info", "--json", cwd=tmp_path, env=environment)
    )["cuda"]
    assert (
        facts["images"]["problem"]
        == {
            "nvcc": None,
            "no nvcc": "not built: no nvcc at install",
            "no g++": "not built: the extension that runs them was not built at install",
        }[situation]
    )
    assert facts["images"]["architectures"] == ([80] if situation == "nvcc" else [])
    assert facts["extension"]["problem"] == (loaded if situation == "no g++" else None)
    for part in ("extension", "images", "nvrtc", "driver"):
        assert facts[part]["problem"] is None or facts[part]["problem"] in info
    assert ("images     sm_80 and PTX by nvcc" in info) == (situation == "nvcc")

    image = sorted((ROOT / "examples" / "images").iterdir())[0]
    made.output("-m", "dssnet_fast.segment", image, "--out", "out", cwd=tmp_path, env=environment)
    assert (tmp_path / "out" / f"{image.stem}_labels.png").is_file()
    if not editable:
        assert not list(tree.root.glob("dssnet_fast/_native*"))
        # The build belongs to the sources it was made from.
        append(tree.root / "csrc" / "plan" / "plan.h", "// changed")
        if situation != "no g++":
            assert "is of other sources" in made.output("-c", LOAD, cwd=tree.root, env=environment)
            assert "_native" in made.output("-c", LOAD, cwd=tmp_path, env=environment)
