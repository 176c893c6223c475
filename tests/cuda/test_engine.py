"""The engine of the CUDA backend on the CPU: whose memory, which stream, when a graph.

A stand-in takes the place of the extension: its plans have one buffer for each thing an engine has
to supply, and running one computes the stage with the torch backend on the memory at the addresses
it is given.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from dssnet_fast import DSSNetConfig, backends, parity, weights
from dssnet_fast.backends import torch_backend
from dssnet_fast.backends.cuda import engine
from dssnet_fast.backends.inputs import ALIGNMENT
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.tiling import Box
from networks import CONFIGS, noise, random_network

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
WNECK = {name: config for name, config in CONFIGS.items() if config.block == "wneck"}


def folded(config: DSSNetConfig | None = None, **changes) -> weights.FoldedWeights:
    return weights.fold_checkpoint(
        from_state(released_state(random_network(config, **changes).float()))
    )


class Role(enum.Enum):
    input = 0
    output = 1
    weights = 2
    workspace = 3


@dataclass
class Buffer:
    name: str
    role: Role
    bytes: int
    offset: int = 0


@dataclass
class Plan:
    stage: str
    output: str
    buffers: list[Buffer]
    shapes: list[tuple]  # of the inputs, then of the outputs: (shape, dtype)
    workspace_bytes: int = 1024


class Sizes:
    """Channels rounded up to 16, as the kernels' are."""

    def __init__(self, network):
        self.width = -(-network["width"] // 16) * 16
        self.features = -(-network["features"] // 16) * 16
        self.y = 32


class Extension:
    """The names of `_native` that the engine uses."""

    Role = Role
    Sizes = Sizes
    Network = dict

    def __init__(self):
        self.plans = 0

    def pack(self, network, precision, operands):
        assert all(value.dtype == np.float32 for value in operands.values())
        return b"packed " + precision.encode()

    def plan(self, *, network, stage, batch, height, width, precision, input, output, device):
        assert device == "properties"
        self.plans += 1
        dtype, sizes = DTYPES[precision], Sizes(network)
        cells = (batch, height // 8, width // 8)
        features = ((*cells, sizes.features), dtype)
        x0 = ((*cells, sizes.width), dtype)
        y = ((batch, height // 2, width // 2, 32), dtype)
        image = ((batch, height, width, network["in_channels"]), torch.uint8)
        if input == "float32":
            image = ((batch, network["in_channels"], height, width), torch.float32)
        answer = ((batch, height, width), torch.uint8)
        if output != "labels":
            answer = ((batch, height, width, network["classes"]), torch.float32)
        taken, given = {
            "all": ([image], [answer]),
            "downsample": ([image], [x0]),
            "extract": ([x0], [features, features]),
            "fuse": ([features, features], [y]),
            "segment": ([y], [answer]),
        }[stage]
        buffers = [Buffer("weights", Role.weights, len(b"packed ") + 4)]
        for number, (shape, kind) in enumerate(taken + given):
            role = Role.input if number < len(taken) else Role.output
            size = torch.empty(shape, dtype=kind, device="meta").nbytes
            buffers.append(Buffer(f"map{number}", role, size))
            # Something in the workspace between the others: addresses go by buffer, not by role.
            buffers.append(Buffer(f"scratch{number}", Role.workspace, 128, 128 * number))
        return Plan(stage, output, buffers, taken + given)


def memory(address: int, shape: tuple, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that lies at an address."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = (ctypes.c_uint8 * count).from_address(address)
    return torch.frombuffer(raw, dtype=dtype).view(shape)


class Runner:
    """Executes plans at once, and keeps a record of how it was asked to."""

    def __init__(self, folded, precision, host):
        self.host = host
        self.config = folded.config
        self.backend = torch_backend.make(folded, torch.device("cpu"), precision)
        self.record = []

    def graph(self, plan, addresses):
        self.record.append(("graph", plan.stage))
        return Graph(self, plan)

    def launch(self, plan, addresses, stream):
        self.record.append(("launch", stream))
        self.execute(plan, addresses)

    def execute(self, plan, addresses):
        assert self.host.is_active, "another device may be torch's current one"
        assert len(addresses) == len(plan.buffers)
        assert all(addresses)
        workspace = {
            address - buffer.offset
            for buffer, address in zip(plan.buffers, addresses, strict=True)
            if buffer.role is Role.workspace
        }
        assert len(workspace) == 1, "each buffer has its offset in one block"
        by_name = {b.name: address for b, address in zip(plan.buffers, addresses, strict=True)}
        assert memory(by_name["weights"], (7,), torch.uint8).numpy().tobytes() == b"packed "
        maps = []
        for number, (shape, dtype) in enumerate(plan.shapes):
            address = by_name[f"map{number}"]
            assert address % ALIGNMENT == 0
            maps.append(memory(address, shape, dtype))
            # Wherever the workspace is, it holds nothing that anybody still reads.
            memory(by_name[f"scratch{number}"], (128,), torch.uint8).fill_(255)
        taken = {"fuse": 2}.get(plan.stage, 1)
        inputs = [self._without_padding(plan.stage, x) for x in maps[:taken]]
        with torch.no_grad():
            if plan.stage in ("all", "segment"):
                name = "infer" if plan.stage == "all" else "segment"
                results = getattr(self.backend, name)(inputs[0], plan.output)
            else:
                results = getattr(self.backend, plan.stage)(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        for to, result in zip(maps[taken:], results, strict=True):
            if to.is_floating_point():
                to.fill_(float("nan"))  # in the padding, too: nobody may read it
            to[tuple(slice(side) for side in result.shape)] = result

    def _without_padding(self, stage, x):
        channels = {"extract": self.config.width, "fuse": self.config.features}.get(stage)
        if channels is None:
            return x
        assert not x[..., channels:].any(), "kernels rely on zeros in the padding"
        return x[..., :channels]


class Graph:
    def __init__(self, runner, plan):
        self.runner, self.plan = runner, plan

    def launch(self, addresses, stream):
        self.runner.record.append(("replay", stream))
        self.runner.execute(self.plan, addresses)


@dataclass
class Host:
    """The CPU as an `engine.Device`."""

    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    properties: object = "properties"
    current: int = 0
    capturing: bool = False
    is_active: bool = False
    kept: list = field(default_factory=list)
    waits: int = 0

    @contextlib.contextmanager
    def active(self):
        before, self.is_active = self.is_active, True
        yield
        self.is_active = before

    def stream(self):
        return self.current

    def is_capturing(self):
        assert self.is_active
        return self.capturing

    def keep_for_stream(self, tensor):
        self.kept.append((tensor, self.current))

    def wait(self):
        self.waits += 1


class Setup:
    def __init__(self, config=None, precision="bf16", **changes):
        self.folded = folded(config, **changes)
        self.host, self.extension = Host(), Extension()
        self.runner = Runner(self.folded, precision, self.host)
        self.expected = self.runner.backend
        self.backend = engine.CudaBackend(
            self.folded, precision, self.host, self.extension, self.runner
        )

    @property
    def record(self):
        return self.runner.record


@pytest.fixture
def setup(monkeypatch):
    # The matrices of the kernels do not matter to the engine, and need the extension's real sizes.
    monkeypatch.setattr(engine, "operands", lambda folded, sizes: {"a": np.zeros(1, np.float32)})
    return Setup()


def images(batch=2, height=16, width=24, channels=3):
    image = torch.from_numpy(noise(batch, height, width, channels))
    return image, (image.permute(0, 3, 1, 2).float() - 128) / 128


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", backends.OUTPUTS)
@pytest.mark.parametrize("kind", [0, 1], ids=["uint8", "float32"])
def test_infer_is_one_plan_on_the_callers_tensors(setup, kind, output):
    image = images()[kind]
    answer = setup.backend.infer(image, output)
    expected = setup.expected.infer(image, output)
    assert answer.dtype == expected.dtype
    assert torch.equal(answer, expected)
    assert setup.extension.plans == 1


def test_a_core_is_one_plan_for_what_it_depends_on(setup):
    image = images(2, 400, 24)[0]
    # Two small blocks: 72 px.
    labels, probability = setup.backend.decide(image, Box(160, 8, 176, 16))
    assert setup.extension.plans == 1
    logits = setup.expected.infer(image[:, 88:248], "logits")[:, 72:88, 8:16]
    assert torch.equal(labels, logits.argmax(3).to(torch.uint8))
    torch.testing.assert_close(probability, logits.softmax(3).amax(3))


def test_edges_come_by_stages(setup):
    """From the features of the kernels, which are computed once."""
    image = images(2, 400, 24)[0]
    core = Box(160, 8, 176, 16)
    answers = setup.backend.decide(image, core, edges=True)
    assert [plan for plan, _ in setup.record] == 4 * ["launch"]
    expected = setup.expected.decide(image, core, edges=True)
    for mine, wanted in zip(answers, expected, strict=True):
        assert torch.equal(mine, wanted)
    setup.record.clear()
    edges = setup.backend.infer_edges(image)
    assert len(setup.record) == 2
    assert torch.equal(edges, setup.expected.infer_edges(image))
    features = setup.expected.extract(setup.expected.downsample(image))
    assert torch.equal(setup.backend.edges(*features), edges)
    with pytest.raises(TypeError, match=r"features must be torch\.bfloat16"):
        setup.backend.edges(*(part.float() for part in features))
    with pytest.raises(ValueError, match="edges: shallow and deep must have one shape"):
        setup.backend.edges(features[0], features[1][:, :1])


def test_stages_pad_and_crop_channels(setup):
    image, x = images()
    x0 = setup.backend.downsample(image)
    assert x0.shape == (2, 2, 3, 9)
    assert torch.equal(x0, setup.expected.downsample(image))
    assert torch.equal(setup.backend.downsample(x.double()), setup.expected.downsample(x))
    shallow, deep = setup.backend.extract(x0)
    assert shallow.shape == deep.shape == (2, 2, 3, 8)
    for mine, theirs in zip((shallow, deep), setup.expected.extract(x0), strict=True):
        assert torch.equal(mine, theirs)
    y = setup.backend.fuse(shallow, deep)
    assert torch.equal(y, setup.expected.fuse(shallow, deep))
    for output in backends.OUTPUTS:
        answer = setup.backend.segment(y, output)
        assert torch.equal(answer, setup.expected.segment(y, output))


def test_any_layout_and_alignment_is_read_rightly_and_left_alone(setup):
    image = images()[0]
    expected = setup.expected.infer(image, "logits")
    shifted = torch.empty(image.numel() + 1, dtype=torch.uint8)[1:].view(image.shape)
    views = {
        "shifted by a byte": shifted.copy_(image),
        "flipped": image.flip(2).flip(2),
        "strided": image.repeat_interleave(2, 2)[:, :, ::2],
        "channels first": image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    }
    for name, view in views.items():
        kept = view.clone()
        assert torch.equal(setup.backend.infer(view, "logits"), expected), name
        assert torch.equal(view, kept), name
    x = images()[1].requires_grad_()
    assert not setup.backend.infer(x, "logits").requires_grad


def test_an_empty_batch_launches_nothing(setup):
    image = images()[0][:0]
    assert setup.backend.infer(image, "labels").shape == (0, 16, 24)
    shallow, deep = setup.backend.extract(setup.backend.downsample(image))
    assert setup.backend.fuse(shallow, deep).shape == (0, 8, 12, 32)
    assert setup.record == []


def test_results_never_share_memory(setup):
    image = images()[0]
    first = setup.backend.infer(image, "logits")
    kept = first.clone()
    for seed in range(4):
        other = torch.from_numpy(noise(2, 16, 24, 3, seed=seed + 1))
        assert setup.backend.infer(other, "logits").data_ptr() != first.data_ptr()
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b, i: b.infer(i.to("meta"), "labels"), ValueError, "network is on cpu, got meta"),
        (lambda b, i: b.infer(i.int(), "labels"), TypeError, r"uint8 or floating.*torch.int32"),
        (lambda b, i: b.infer(i[0], "labels"), ValueError, r"4 dimensions, got \[16, 24, 3\]"),
        (lambda b, i: b.infer(i[:, :15], "labels"), ValueError, "multiples of 8"),
        (lambda b, i: b.infer(i[..., :1], "labels"), ValueError, "3 channels"),
        (lambda b, i: b.extract(torch.zeros(1, 2, 3, 9)), TypeError, "x0 must be torch.bfloat16"),
        (lambda b, i: b.extract(torch.zeros(1, 2, 3, 8)), ValueError, "x0 must have 9 channels"),
        (lambda b, i: b.segment(torch.zeros(2, 3), "labels"), ValueError, "segment: .*4 dim"),
        (
            lambda b, i: b.fuse(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 4, 8)),
            ValueError,
            r"one shape, got \[1, 2, 3, 8\] and \[1, 2, 4, 8\]",
        ),
    ],
)
def test_wrong_tensors_reach_no_kernel(setup, call, error, message):
    with pytest.raises(error, match=message):
        call(setup.backend, images()[0])
    assert setup.record == []


def test_a_plan_that_disagrees_about_sizes_is_not_run(setup, monkeypatch):
    honest = setup.extension.plan

    def larger(**request):
        plan = honest(**request)
        plan.buffers[-2].bytes += 1
        return plan

    monkeypatch.setattr(setup.extension, "plan", larger)
    with pytest.raises(AssertionError, match=r"buffer map1 of a plan has 769 bytes.* 768"):
        setup.backend.infer(images()[0], "labels")
    assert setup.record == []


# --- plans, graphs, streams ----------------------------------------------------------------------


def test_plans_are_made_once_a_shape_input_and_output(setup):
    image, x = images()
    for _ in range(3):
        setup.backend.infer(image, "labels")
    assert setup.extension.plans == 1
    setup.backend.infer(x, "labels")
    setup.backend.infer(image, "logits")
    setup.backend.infer(image[:1], "labels")
    setup.backend.downsample(image)
    assert setup.extension.plans == 5


def test_a_graph_is_made_when_a_plan_comes_again_on_its_stream(setup):
    image = images()[0]
    expected = setup.expected.infer(image, "logits")
    for _ in range(3):
        assert torch.equal(setup.backend.infer(image, "logits"), expected)
    assert setup.record == [("launch", 0), ("graph", "all"), ("replay", 0), ("replay", 0)]
    setup.record.clear()
    setup.host.current = 7
    for _ in range(3):
        assert torch.equal(setup.backend.infer(image, "logits"), expected)
    assert setup.record == [("launch", 7), ("graph", "all"), ("replay", 7), ("replay", 7)]


def test_as_many_graphs_are_kept_as_promised(setup, monkeypatch):
    monkeypatch.setattr(engine, "GRAPHS", 2)
    setup.backend = engine.CudaBackend(
        setup.folded, "bf16", setup.host, setup.extension, setup.runner
    )
    sizes = [(8, 8), (8, 16), (8, 24)]
    for _ in range(2):
        for size in sizes[:2]:
            setup.backend.infer(images(1, *size)[0], "labels")
    assert [kind for kind, _ in setup.record].count("graph") == 2
    setup.backend.infer(images(1, *sizes[0])[0], "labels")
    setup.backend.infer(images(1, *sizes[2])[0], "labels")  # the second was not used for longest
    setup.record.clear()
    setup.backend.infer(images(1, *sizes[0])[0], "labels")
    assert setup.record == [("replay", 0)]
    setup.record.clear()
    setup.backend.infer(images(1, *sizes[1])[0], "labels")
    assert setup.record == [("launch", 0)]


def test_somebody_elses_capture_gets_the_launches(setup):
    image = images()[0]
    for _ in range(2):
        setup.backend.infer(image, "labels")
    setup.record.clear()
    setup.host.capturing = True
    for _ in range(3):
        setup.backend.infer(image, "labels")
    assert setup.record == [("launch", 0)] * 3


def test_weights_are_there_before_other_streams_and_stay_for_them(setup):
    image = images()[0]
    assert setup.host.waits == 1
    setup.backend.infer(image, "labels")
    assert setup.host.kept == []
    setup.host.current = 5
    setup.backend.infer(image, "labels")
    ((tensor, stream),) = setup.host.kept
    assert stream == 5
    assert tensor.numpy().tobytes().startswith(b"packed ")


def test_many_threads(setup):
    cases = [images(1, 8, 8 * (1 + i))[0] for i in range(4)]
    expected = [setup.expected.infer(image, "logits") for image in cases]
    setup.host.active = contextlib.nullcontext  # the stand-in's bookkeeping is for one thread
    setup.host.is_active = True
    wrong = []

    def work(number):
        for _ in range(20):
            answer = setup.backend.infer(cases[number], "logits")
            if not torch.equal(answer, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [kind for kind, _ in setup.record].count("graph") == len(cases)


# --- with the extension --------------------------------------------------------------------------


class RecordingRunner:
    """Takes the plans of the real extension without running them."""

    def __init__(self):
        self.plans = []

    def launch(self, plan, addresses, stream):
        self.plans.append(plan)
        assert len(addresses) == len(plan.buffers)
        assert all(addresses)


@pytest.mark.parametrize("name", WNECK)
@pytest.mark.parametrize("precision", DTYPES)
def test_tensors_have_the_sizes_that_the_planner_says(native, name, precision):
    properties = native.DeviceProperties(
        capability=90, multiprocessors=132, shared_bytes_block=232448, shared_bytes_sm=233472
    )
    config, runner = WNECK[name], RecordingRunner()
    host = Host(properties=properties, capturing=True)
    backend = engine.CudaBackend(folded(config), precision, host, native, runner)
    for batch, height, width in ((1, 8, 8), (3, 40, 24)):
        for image in images(batch, height, width, config.in_channels):
            for output in backends.OUTPUTS:
                backend.infer(image, output)
        x0 = backend.downsample(images(batch, height, width, config.in_channels)[0])
        y = backend.fuse(*backend.extract(torch.zeros_like(x0)))
        for output in backends.OUTPUTS:
            backend.segment(torch.zeros_like(y), output)
    assert len(runner.plans) == 2 * (2 * 3 + 3 + 3)
    assert all(plan.launches for plan in runner.plans)


def test_the_stand_in_computes_what_the_network_does(setup):
    """Otherwise the tests above would compare nothing with nothing."""
    network = random_network().double()
    image = noise(16, 24, 3)
    answer = setup.backend.infer(torch.from_numpy(image)[None], "logits")[0]
    expected = parity.reference_logits(network, image)
    assert parity.relative_error(answer.numpy(), expected) < 0.1
