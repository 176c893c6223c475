"""What the benchmarks do on a GPU only, tried without one: peers, queues, clocks, tables."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import torch

from dssnet_fast import bench, benchmark, peers, tensorrt_peer
from dssnet_fast.backends import PRECISIONS
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = {"width": 9, "features": 8, "blocks": 1}


@pytest.fixture
def arena():
    return benchmark.Arena(benchmark.random_network(DSSNetConfig(**SMALL)), CPU)


def test_peers_take_part_on_a_gpu_only():
    names = [c.name for c in benchmark.contestants(torch.device("cuda"), DSSNetConfig())]
    peers = {"reference-max-autotune-fp16", "tensorrt-original-fp16", "tensorrt-folded-fp16"}
    assert peers <= set(names)
    assert len(set(names)) == len(names)
    assert not peers & {c.name for c in benchmark.contestants(CPU, DSSNetConfig())}


# --- TensorRT ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """The reference as ONNX; exporting takes seconds."""
    pytest.importorskip("onnxscript")
    return peers.onnx_model(benchmark.random_network(DSSNetConfig(**SMALL)), "original")


@pytest.mark.parametrize(
    "upsampling", ["nearest", pytest.param("pixel_shuffle", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("graph", peers.GRAPHS)
def test_models_for_tensorrt_compute_the_network(graph, upsampling):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = benchmark.random_network(DSSNetConfig(**SMALL, upsampling=upsampling)).eval()
    x = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted = network.logits(x)
    single = peers.onnx_model(network, graph)
    half = tensorrt_peer.in_half_precision(single)
    for model, limits in ((single, (0, 2e-6)), (half, (2e-5, 3e-3))):
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (got,) = session.run(["logits"], {"image": x.numpy()})
        assert got.dtype == np.float32
        error = benchmark.relative_error(torch.from_numpy(got), wanted)
        assert limits[0] <= error <= limits[1]
    kinds = {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    # Weight normalisation is folded, as everybody who deploys a network does.
    assert not {"Sqrt", "ReduceL2", "ReduceSum"} & {node.op_type for node in single.graph.node}


class FakeTensorRT(types.ModuleType):
    """As much of `tensorrt` as the peer uses; keeps what it was told."""

    def __init__(self, version: int, refuses: str = "") -> None:
        super().__init__("tensorrt")
        self.told: dict[str, object] = {}
        told, names = self.told, types.SimpleNamespace

        def logger(level):
            return level

        logger.ERROR = 1
        self.Logger = logger
        self.NetworkDefinitionCreationFlag = names(EXPLICIT_BATCH=0) if version < 10 else names()
        self.BuilderFlag = names(FP16="FP16") if version < 11 else names()
        self.MemoryPoolType = names(WORKSPACE="WORKSPACE")
        context = names(
            set_input_shape=lambda name, shape: told.update({name: shape}),
            set_tensor_address=lambda name, at: told.update({f"{name} at": at}),
        )
        engine = names(create_execution_context=lambda: context)
        config = names(
            set_memory_pool_limit=lambda pool, limit: None,
            set_flag=lambda flag: told.update(flag=flag),
            add_optimization_profile=lambda profile: None,
        )
        profile = names(set_shape=lambda name, *shapes: told.update(shapes=shapes))
        self.Builder = lambda logger: names(
            create_network=lambda flags: told.update(network=flags),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, config: None if refuses == "build" else b"",
        )
        self.OnnxParser = lambda network, logger: names(
            parse=lambda data: told.update(model=data) or refuses != "parse",
            get_error=lambda number: "unknown operator",
        )
        self.Runtime = lambda logger: names(deserialize_cuda_engine=lambda plan: engine)


@pytest.mark.parametrize("version", [8, 10, 11])
def test_tensorrt_is_asked_for_half_precision(arena, model, monkeypatch, version):
    import onnx

    fake = FakeTensorRT(version)
    monkeypatch.setattr(tensorrt_peer, "onnx_model", lambda reference, graph: model)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    image = arena.image(32, 2)
    engine = tensorrt_peer.Engine(arena.reference, "original", image)
    assert fake.told["network"] == (1 if version < 10 else 0)
    assert fake.told["shapes"] == ((2, 3, 32, 32),) * 3
    assert fake.told["image"] == (2, 3, 32, 32)
    assert engine._logits.shape == (2, 2, 32, 32)
    assert fake.told["logits at"] == engine._logits.data_ptr()
    weights = onnx.load_from_string(fake.told["model"]).graph.initializer
    kinds = {tensor.data_type for tensor in weights if len(tensor.dims) == 4}
    if version < 11:
        assert fake.told["flag"] == "FP16"
        assert kinds == {onnx.TensorProto.FLOAT}
    else:
        assert "flag" not in fake.told
        assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("parse", "TensorRT cannot read the model: unknown operator"),
        ("build", "TensorRT failed to build the network"),
    ],
)
def test_what_tensorrt_refuses_is_named(arena, model, monkeypatch, refuses, message):
    monkeypatch.setattr(tensorrt_peer, "onnx_model", lambda reference, graph: model)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(10, refuses))
    contestant = benchmark.Contestant("trt", "tensorrt", "fp16", variant="folded")
    rows = bench.measure(arena, [arena.contestants[0], contestant], 32, 1, 1, 0)
    assert rows[1]["skipped"] == message


def test_what_tensorrt_raises_is_named(arena, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such device\nmore")

    monkeypatch.setattr(tensorrt_peer, "Engine", fail)
    contestant = benchmark.Contestant("trt", "tensorrt", "fp16", variant="folded")
    rows = bench.measure(arena, [arena.contestants[0], contestant], 32, 1, 1, 0)
    assert rows[1]["skipped"] == "TensorRT failed: no such device"


def test_tensorrt_that_is_not_installed_is_named(arena, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    contestant = benchmark.Contestant("trt", "tensorrt", "fp16", variant="folded")
    with pytest.raises(benchmark.Unavailable, match="needs tensorrt: pip install tensorrt"):
        arena.prepare(contestant, arena.image(32, 1))


def test_peers_may_round_otherwise_but_not_compute_something_else(arena):
    contestant = benchmark.Contestant("trt", "tensorrt", "bf16", variant="folded")
    exact = arena.expected(32, 1)
    low = benchmark.Contestant("", "reference", "bf16", channels_last=True)
    theirs = benchmark.relative_error(arena.prepare(low, arena.image(32, 1))(), exact)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    noise *= exact.norm() / noise.norm()
    error = arena.check(contestant, lambda: exact + 5 * theirs * noise, 32, 1)
    assert error == pytest.approx(5 * theirs, rel=1e-3)
    with pytest.raises(benchmark.WrongAnswer, match="trt: relative error"):
        arena.check(contestant, lambda: exact + 11 * theirs * noise, 32, 1)


# --- time ----------------------------------------------------------------------------------------


class FakeDevice:
    """A stream on which a call takes `seconds`; its events tell the time."""

    def __init__(self, monkeypatch, seconds: float) -> None:
        self.now, self.calls, self.seconds = 0.0, 0, seconds
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        for name in ("device", "stream"):
            monkeypatch.setattr(torch.cuda, name, lambda what: torch.no_grad())

    def event(self, enable_timing):
        assert enable_timing
        event = types.SimpleNamespace(at=None, waited=False)
        event.record = lambda: setattr(event, "at", self.now)
        event.synchronize = lambda: setattr(event, "waited", True)

        def elapsed(end):
            assert end.waited
            return 1e3 * (end.at - event.at)

        event.elapsed_time = elapsed
        return event

    def run(self) -> None:
        self.calls += 1
        self.now += self.seconds


@pytest.mark.parametrize(("seconds", "calls"), [(1e-3, 21), (1e-5, 501), (1.0, 2)])
def test_short_calls_are_timed_in_a_queue(arena, monkeypatch, seconds, calls):
    device = FakeDevice(monkeypatch, seconds)
    arena._stream = object()
    assert arena.timed(device.run) == pytest.approx(seconds)
    assert device.calls == calls


def test_inputs_rotate_over_more_than_the_cache(arena, monkeypatch):
    x = torch.zeros(1, 3, 32, 32)
    assert arena._copies(x) == [x]
    properties = types.SimpleNamespace(L2_cache_size=10 * x.nbytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    arena.device = torch.device("cuda")
    copies = arena._copies(x)
    assert sum(copy.nbytes for copy in copies[1:]) >= 2 * properties.L2_cache_size
    assert len({copy.data_ptr() for copy in copies}) == len(copies)
    seen = []
    run = arena._in_turn(lambda copy: seen.append(copy.data_ptr()), x)
    for _ in range(2 * len(copies)):
        run()
    assert len(set(seen)) == len(copies)
    assert seen[: len(copies)] == seen[len(copies) :]


def test_the_clock_is_read_under_load(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for printed, clock in (("1980", 1980), ("[N/A]", None)):
        command = [sys.executable, "-c", f"import time; time.sleep(0.2); print({printed!r})"]
        monkeypatch.setattr(bench, "_nvidia_smi", lambda device, field, to=command: to)
        assert bench.sm_clock(CPU, lambda: calls.append(1)) == clock
        assert calls
        calls.clear()
    monkeypatch.setattr(bench, "_nvidia_smi", lambda device, field: None)
    assert bench.sm_clock(CPU, lambda: calls.append(1)) is None


# --- results -------------------------------------------------------------------------------------

ROW = {
    "contestant": "fast-cuda-fp16",
    "size": 512,
    "batch": 1,
    "relative_error": 1e-3,
    "median_ms": 0.0512,
    "spread": 0.01,
    "rounds": 5,
    "speed_up": 80.0,
    "images_per_second": 19531.25,
    "gmac_per_second": 277_929.0,
    "alone_ms": 0.0734,
    "sm_mhz": 1980,
}


def test_tables_of_a_gpu_have_clocks_and_calls_alone(capsys):
    skipped = {"contestant": "trt", "size": 512, "batch": 1, "skipped": "needs tensorrt"}
    rows = [ROW, {**ROW, "contestant": "other", "sm_mhz": None}, skipped]
    bench.print_table(rows, 512, 1)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[-3:] == ["alone", "SM", "MHz"]
    assert printed[2].split()[-3:] == ["0.073", "ms", "1980"]
    assert printed[3].split()[-1] == "-"
    table = [line for line in bench.markdown(rows, {}).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {10}
    assert "| 0.0512 ms |" in table[2]


def test_results_are_written_where_asked(tmp_path, capsys):
    from dssnet_fast import cli

    def run(*arguments):
        quick = ["--device", "cpu", "--sizes", "32", "--batches", "1", "--rounds", "1"]
        quick += ["--seconds", "0", "--only", "fast-torch-fp32"]
        return cli.main("bench", bench.make_parser, bench.body, [*quick, *map(str, arguments)])

    assert run("--out", tmp_path / "a.md") == 0
    assert capsys.readouterr().out.startswith("32 x 32 px, batch 1")
    text = (tmp_path / "a.md").read_text()
    assert "| fast-torch-fp32 |" in text
    assert text.startswith("device ")
    assert run("--out", tmp_path / "a.json") == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["contestant"] for row in found["results"]] == ["reference", "fast-torch-fp32"]
    assert run("--out", tmp_path / "a.txt") == 1
    assert "--out must end in .md or .json" in capsys.readouterr().err
    with pytest.raises(InputError):
        bench._check(bench.make_parser().parse_args(["--out", "results"]))


@pytest.mark.gpu
def test_a_gpu_measures_everything_that_is_here():
    arena = benchmark.Arena(None, torch.device("cuda"))
    rows = bench.measure(arena, arena.contestants, 256, 1, 2, 0)
    for row in rows:
        if "skipped" in row:
            assert "needs" in row["skipped"] or "failed" in row["skipped"], row
        else:
            assert row["median_ms"] > 0
            assert row["alone_ms"] > 0
    assert {f"reference-{name}" for name in PRECISIONS if name not in ("fp32", "int8")} <= {
        row["contestant"] for row in rows if "skipped" not in row
    }
