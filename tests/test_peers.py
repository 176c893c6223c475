"""ONNX Runtime and OpenVINO as contestants on a CPU: right answers, equal terms, clear refusals."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import int8_errors
from dssnet_fast import backends, bench, benchmark, onnxruntime_peer, openvino_peer, peers
from dssnet_fast.python_ref.config import DSSNetConfig

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SMALL = DSSNetConfig(width=9, features=8, blocks=1, classes=3)
PEERS = {"onnxruntime": onnxruntime_peer, "openvino": openvino_peer}
NAMES = [
    f"{kind}-{graph}-{precision}"
    for kind, peer in PEERS.items()
    for graph in peers.GRAPHS
    for precision in (*peer.PRECISIONS, "int8-reduced")
]


@pytest.fixture(scope="module")
def arena():
    return benchmark.Arena(benchmark.random_network(SMALL), CPU)


def named(arena, name):
    return next(one for one in arena.contestants if one.name == name)


def prepared(arena, name, image):
    """The contestant and its call; skips where it cannot run."""
    if name.startswith("fast") and name not in {one.name for one in arena.contestants}:
        pytest.skip(f"{name} cannot run here")
    contestant = named(arena, name)
    try:
        return contestant, arena.prepare(contestant, image)
    except benchmark.Unavailable as error:
        if " failed: " in str(error):
            raise
        pytest.skip(f"{name}: {error}")


# --- who takes part ------------------------------------------------------------------------------


def test_peers_take_part_on_a_cpu_only(arena):
    assert set(NAMES) <= {contestant.name for contestant in arena.contestants}
    on_a_gpu = benchmark.contestants(torch.device("cuda"), SMALL)
    assert not {contestant.kind for contestant in on_a_gpu} & set(PEERS)


def test_pytorch_has_no_int8_run_of_the_reference(monkeypatch):
    able = {"torch": ("fp32", "bf16"), "cpu": ("fp32", "int8")}
    monkeypatch.setattr(backends, "available", lambda device, config: able)
    monkeypatch.setitem(backends.PRECISIONS, "int8", torch.int8)
    names = [contestant.name for contestant in benchmark.contestants(CPU, SMALL)]
    assert "reference-bf16" in names
    assert "fast-cpu-int8" in names
    assert not [name for name in names if name.startswith("reference-int8")]


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_peers_compute_the_network(arena, name):
    image = arena.image(32, 2)
    contestant, run = prepared(arena, name, image)
    error = arena.check(contestant, run, 32, 2)
    assert contestant.reduced is name.endswith("-reduced")
    low, high = {"fp32": (0, 2e-5), "bf16": (1e-4, 5e-2), "int8": (1e-4, 5e-2)}[
        contestant.precision
    ]
    assert low <= error <= high
    # Neither the image nor the answer is copied: the call sees what the image has become.
    before = run().clone()
    image.neg_()
    with torch.no_grad():
        expected = arena.reference.logits(image)
    answer = run()
    assert benchmark.relative_error(answer, expected) <= 2 * error + 1e-6
    assert benchmark.relative_error(before, expected) > 2 * error + 1e-6
    assert run().data_ptr() == answer.data_ptr()


def test_exporting_leaves_the_reference_alone():
    pytest.importorskip("onnxscript")
    network = benchmark.random_network(SMALL).eval()
    x = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = network.logits(x)
        peers.onnx_model(network, "original")
        assert torch.equal(network.logits(x), before)


def test_networks_are_exported_once(arena, monkeypatch):
    contestant, _ = prepared(arena, "onnxruntime-original-fp32", arena.image(32, 1))
    monkeypatch.setattr(peers, "onnx_model", None)
    answer = arena.prepare(contestant, arena.image(48, 1))()
    assert answer.shape == (1, 3, 48, 48)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", PEERS)
def test_peers_have_as_many_threads_as_pytorch(arena, kind, threads):
    prepared(arena, f"{kind}-original-fp32", arena.image(32, 1))
    torch.set_num_threads(threads)
    try:
        engine = PEERS[kind].Engine(
            arena._models["original"], "fp32", arena.samples, arena.image(32, 1)
        )
    finally:
        torch.set_num_threads(1)
    if kind == "openvino":
        assert engine.compiled.get_property("INFERENCE_NUM_THREADS") == threads
    else:
        assert engine.session.get_session_options().intra_op_num_threads == threads


# --- int8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PEERS)
def test_reduced_weights_have_seven_bits(arena, kind):
    """Two of them times 255 are at most 32,767, where 16 bits saturate."""
    prepared(arena, f"{kind}-original-int8-reduced", arena.image(32, 1))
    largest = {}
    for reduced in (False, True):
        given = arena._models["original"]
        if kind == "openvino":
            import openvino

            given = openvino.Core().read_model(given.SerializeToString())
            done = openvino_peer.quantised(given, arena.samples, reduced)
            constants = [one for one in done.get_ops() if one.get_type_name() == "Constant"]
            weights = [one.data for one in constants if one.get_element_type() == openvino.Type.i8]
        else:
            from onnx import numpy_helper

            done = onnxruntime_peer.quantised(given, arena.samples, reduced)
            arrays = [numpy_helper.to_array(one) for one in done.graph.initializer]
            weights = [one for one in arrays if one.dtype == np.int8 and one.ndim == 4]
        assert len(weights) > 10
        largest[reduced] = max(int(np.abs(one.astype(int)).max()) for one in weights)
    assert largest == {False: 127, True: 64}


@pytest.mark.slow
def test_reduced_int8_is_right_without_vnni(arena, tmp_path):
    """And the default is not, on which the words in docs/performance.md rest."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or platform.machine() != "x86_64":
        pytest.skip("needs qemu-x86_64 (Debian: qemu-user) on an x86-64 processor")
    for name in ("onnxruntime-original-int8", "openvino-original-int8", "fast-cpu-int8"):
        prepared(arena, name, arena.image(32, 1))
    int8_errors.prepare(tmp_path, 32, arena.reference)
    command = [sys.executable, "-W", "ignore", "-m", "tests.int8_errors", "answer", str(tmp_path)]
    errors = []
    for emulated in ([], [emulator, "-cpu", "Haswell"]):
        done = subprocess.run([*emulated, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        errors.append({name: float(error) for name, error, _ in lines})
    here, there = errors
    assert set(here) == set(there) == {name for name in NAMES if "int8" in name} | {"fast-cpu-int8"}
    for name, error in there.items():
        if name.endswith("-original-int8"):
            assert error > 3 * here[f"{name}-reduced"]
        elif not name.endswith("-folded-int8"):  # it may saturate or not
            assert error < 1.2 * here[name]


@pytest.mark.parametrize("kind", PEERS)
def test_wrong_answers_in_eight_bits_name_the_remedy(arena, kind):
    exact = arena.expected(32, 1)
    wrong = exact.mean((2, 3), keepdim=True).expand_as(exact)
    for name, told in ((f"{kind}-folded-int8", True), (f"{kind}-folded-int8-reduced", False)):
        with pytest.raises(benchmark.WrongAnswer) as caught:
            arena.check(named(arena, name), lambda: wrong, 32, 1)
        assert str(caught.value).startswith(f"{name}: ")
        assert ("VNNI" in str(caught.value)) is told
        assert (f"{kind}-folded-int8-reduced)" in str(caught.value)) is told


def test_answers_that_are_not_finite_are_told_from_those_of_another_shape(arena, monkeypatch):
    exact = arena.expected(32, 1)
    broken = exact.clone()
    broken[0, 0, 0, :3] = float("nan")
    contestants = [arena.contestants[0], named(arena, "openvino-folded-int8")]
    prepare = arena.prepare
    for answer, told in (
        (broken, "0.10% of the logits are not finite"),
        (exact[..., 1:], "logits must be of shape [1, 3, 32, 32], got [1, 3, 32, 31]"),
    ):
        monkeypatch.setattr(
            arena,
            "prepare",
            lambda one, image, answer=answer: (
                (lambda: answer) if one is contestants[1] else prepare(one, image)
            ),
        )
        rows = bench.measure(arena, contestants, 32, 1, 1, 0)
        assert rows[1]["skipped"] == told


@pytest.mark.parametrize("kind", PEERS)
def test_quantising_prints_nothing(arena, kind, capfd, caplog):
    prepared(arena, f"{kind}-original-int8", arena.image(32, 1))
    assert capfd.readouterr().out == ""
    assert not [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    if kind == "openvino":
        assert not logging.getLogger("nncf").isEnabledFor(logging.WARNING)


def test_int8_is_calibrated_on_images_of_the_arenas_kind(arena, monkeypatch):
    calibrate = pytest.importorskip("dssnet_fast.calibrate")
    own = benchmark.Arena(arena.reference, CPU)
    seen = []
    monkeypatch.setattr(
        calibrate, "calibrate", lambda folded, images: seen.extend(images), raising=False
    )
    assert own._calibrated.tensors.keys() == own._folded.tensors.keys()
    assert len(seen) == len(own.samples)
    for image, sample in zip(seen, own.samples, strict=True):
        assert image.dtype == np.uint8
        normalised = (torch.from_numpy(image).permute(2, 0, 1).float() - 128) / 128
        assert torch.equal(normalised, sample)
    assert not torch.equal(own.samples, own.image(256, len(own.samples)))


def test_fast_int8_passes_its_check(arena):
    found = [c for c in arena.contestants if (c.kind, c.precision) == ("fast", "int8")]
    if not found:
        pytest.skip("no backend has int8 here")
    for contestant in found:
        run = arena.prepare(contestant, arena.image(64, 1))
        assert 1e-4 <= arena.check(contestant, run, 64, 1) <= 5e-2


INT8 = benchmark.Contestant("eight", "fast", "int8", "cpu")


def test_int8_may_round_but_not_compute_something_else(arena):
    exact = arena.expected(32, 1)
    varying = exact - exact.mean((0, 2, 3), keepdim=True)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    noise = noise.mean(1, keepdim=True).expand_as(exact)  # labels stay as they are
    noise = noise * varying.norm() / noise.norm()
    error = arena.check(INT8, lambda: exact + 0.2 * noise, 32, 1)
    assert error == pytest.approx(0.2 * float(varying.norm() / exact.norm()), rel=1e-3)
    for wrong in (exact + 0.4 * noise, exact.mean((2, 3), keepdim=True).expand_as(exact)):
        with pytest.raises(benchmark.WrongAnswer, match="eight: "):
            arena.check(INT8, lambda answer=wrong: answer, 32, 1)


@pytest.mark.parametrize(("pixels", "right"), [(20, True), (40, False)])
def test_int8_may_change_few_labels(arena, monkeypatch, pixels, right):
    monkeypatch.setattr(benchmark, "INT8_TOLERANCE", 1e6)  # labels alone decide
    answer = arena.expected(32, 1).clone()
    first = answer.view(3, -1)[:, :pixels]
    first.copy_(first.roll(1, 0))
    if right:
        arena.check(INT8, lambda: answer, 32, 1)
    else:
        with pytest.raises(benchmark.WrongAnswer, match="of pixels have the reference's label"):
            arena.check(INT8, lambda: answer, 32, 1)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("onnxruntime", "onnxruntime-folded-int8"),
        ("openvino", "openvino-original-bf16"),
        ("onnxscript", "openvino-original-fp32"),
        ("nncf", "openvino-original-int8"),
    ],
)
def test_what_is_not_installed_is_named(arena, monkeypatch, package, name):
    if package == "nncf":
        pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, package, None)
    contestants = [arena.contestants[0], named(arena, name)]
    rows = bench.measure(arena, contestants, 32, 1, 1, 0)
    assert rows[1]["skipped"] == f"needs {package}: pip install 'dssnet_fast[peers]'"


def test_float32_does_without_nncf(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    openvino_peer.require("fp32")


def test_nncf_is_told_to_send_nothing(monkeypatch):
    monkeypatch.delenv("NNCF_CI", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(benchmark.Unavailable):
        openvino_peer.require("int8")
    assert openvino_peer.os.environ["NNCF_CI"]


def test_precisions_that_the_cpu_lacks_are_named(arena, monkeypatch):
    fake = types.ModuleType("openvino")
    fake.Core = lambda: types.SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setitem(sys.modules, "openvino", fake)
    with pytest.raises(benchmark.Unavailable, match="OpenVINO has no bf16 on this CPU"):
        arena.prepare(named(arena, "openvino-original-bf16"), arena.image(32, 1))


@pytest.mark.parametrize("step", ["require", "export", "build", "run"])
def test_engines_that_fail_are_named(arena, monkeypatch, step):
    def fail(*arguments):
        raise RuntimeError("Exception from src/core.cpp:105:\nno such layer\nmore")

    monkeypatch.setattr(onnxruntime_peer, "require", lambda precision: None)
    monkeypatch.setattr(onnxruntime_peer, "Engine", lambda *arguments: None)
    monkeypatch.setattr(peers, "onnx_model", lambda reference, graph: None)
    where, name = {
        "require": (onnxruntime_peer, "require"),
        "export": (peers, "onnx_model"),
        "build": (onnxruntime_peer, "Engine"),
        "run": (onnxruntime_peer, "Engine"),
    }[step]
    broken = types.SimpleNamespace(run=fail)
    monkeypatch.setattr(where, name, (lambda *arguments: broken) if step == "run" else fail)
    own = benchmark.Arena(arena.reference, CPU)
    rows = bench.measure(
        own, [own.contestants[0], named(own, "onnxruntime-original-fp32")], 32, 1, 1, 0
    )
    assert rows[1]["skipped"] == "onnxruntime failed: no such layer"
