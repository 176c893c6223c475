"""The package as such: light to import, importable from a checkout, imports in one direction."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dssnet_fast

ROOT = Path(__file__).parent.parent
ROOMS = {
    "python_ref": ROOT / "python_ref",
    "kernels": ROOT / "kernels",
    "dssnet_fast": ROOT / "dssnet_fast",
}


def python(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_loads_nothing_heavy_and_opens_no_socket():
    """Standard library only, so it costs milliseconds; the first use of FastDSSNet loads torch."""
    code = (
        "import sys, socket, json\n"
        "socket.socket = None\n"
        "before = set(sys.modules)\n"
        "import dssnet_fast\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = json.loads(python("-c", code))
    outside = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert outside == {"dssnet_fast"}


def test_loading_a_model_touches_no_gpu():
    code = (
        "import torch\n"
        "from dssnet_fast import FastDSSNet, DSSNetConfig\n"
        "from dssnet_fast.python_ref.network import DSSNet\n"
        "FastDSSNet.from_reference(DSSNet(DSSNetConfig(blocks=1)), device='cpu')\n"
        "print(torch.cuda.is_initialized())"
    )
    assert python("-c", code).strip() == "False"


def test_loading_a_model_imports_no_compiler():
    """torch._dynamo, and sympy with it, would take ten times as long as everything else."""
    code = (
        "import torch, sys, json\n"
        "before = set(sys.modules)\n"
        "from dssnet_fast import FastDSSNet\n"
        "FastDSSNet.pretrained(device='cpu', backend='torch')\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = json.loads(python("-c", code))
    assert "dssnet_fast.weights" in loaded
    for name in ("torch._dynamo", "torch._inductor", "sympy", "triton"):
        assert name not in loaded


@pytest.mark.parametrize(
    "command", ["segment", "wsi", "view", "convert", "train", "evaluate", "bench", "info"]
)
def test_commands_start_in_a_checkout_and_elsewhere(command, tmp_path):
    assert "usage: python -m dssnet_fast." in python("-m", f"dssnet_fast.{command}", "--help")
    module = f"{command}.__main__" if (ROOT / "dssnet_fast" / command).is_dir() else command
    elsewhere = python(
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"import dssnet_fast.{module} as c; c.make_parser().print_help()",
        cwd=tmp_path,
    )
    assert command in elsewhere


def test_an_unknown_option_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "dssnet_fast.convert", "--nonsense"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 2


def test_public_names_exist():
    for name in dssnet_fast.__all__:
        assert getattr(dssnet_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dssnet_fast.nothing  # noqa: B018


def test_info_says_what_runs_and_why_not_the_rest():
    found = json.loads(python("-m", "dssnet_fast.info", "--json"))
    assert found["dssnet_fast"] == dssnet_fast.__version__
    assert found["backends"]["cpu"]["torch"]["fp32"] is None
    assert found["auto"]["backend"] in found["backends"]["cpu"]
    text = python("-m", "dssnet_fast.info")
    for reasons in found["backends"]["cpu"].values():
        assert all(reason in text for reason in reasons.values() if reason)
    assert "fp32  ready" in text


def test_the_list_of_commands_is_complete():
    listed = python("-m", "dssnet_fast")
    for path in ROOMS["dssnet_fast"].rglob("*.py"):
        if "cli.main(" in path.read_text():
            name = path.parent.name if path.stem == "__main__" else path.stem
            assert f"python -m dssnet_fast.{name}" in listed


def imports(path: Path):
    """Names of the modules that a file imports anywhere in it, absolute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("room", ["python_ref", "kernels"])
def test_lower_rooms_import_nothing_from_above(room):
    for path in ROOMS[room].rglob("*.py"):
        for name in imports(path):
            assert not name.startswith("dssnet_fast"), f"{path} imports {name}"
            assert not name.startswith(".."), f"{path} imports {name}"


@pytest.mark.parametrize(
    ("room", "below"),
    [
        ("slides", ("python_ref", "tiling")),
        ("view", ("python_ref", "tiling", "slides", "nuclei", "cli")),
    ],
)
def test_rooms_for_slides_know_only_those_below(room, below):
    allowed = tuple(f"dssnet_fast.{name}" for name in (room, *below))
    for path in (ROOMS["dssnet_fast"] / room).rglob("*.py"):
        for name in imports(path):
            if name.startswith("dssnet_fast."):
                assert name.startswith(allowed), f"{path} imports {name}"


def test_nothing_imports_the_studies():
    studies = ROOMS["dssnet_fast"] / "study"
    for room in ROOMS.values():
        for path in room.rglob("*.py"):
            if studies not in path.parents:
                assert not any("study" in name for name in imports(path)), path


def test_modules_import_in_one_direction():
    """No cycles among the modules of dssnet_fast."""
    graph = {}
    for path in ROOMS["dssnet_fast"].rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        graph[name] = {i for i in imports(path) if i.startswith("dssnet_fast")}
    # `from dssnet_fast import model` names the package; look at the submodules it brings.
    for path in ROOMS["dssnet_fast"].rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in graph:
                brought = {f"{node.module}.{alias.name}" for alias in node.names} & set(graph)
                graph[name] |= brought
    # The package's own front door knows its rooms lazily; backends are loaded by name.
    graph["dssnet_fast"] = set()
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"import cycle: {' -> '.join((*above, name))}"
        if name in done or name not in graph:
            return
        for other in sorted(graph[name]):
            visit(other, (*above, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_every_folder_of_modules_is_installed():
    """A folder that `setup.py` does not name is missing from wheels only."""
    named = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Constant) and str(node.value).startswith("dssnet_fast")
    }
    for path in ROOMS["dssnet_fast"].rglob("__init__.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert package in named, f"setup.py does not name {package}"
