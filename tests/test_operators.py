"""The operators that torch.compile and torch.export see, and how they find packed weights."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from torch._dynamo import lookup_backend
from torch.export import Dim
from torch.library import opcheck

from dssnet_fast import FastDSSNet, backends, operators, weights
from dssnet_fast.backends import BackendUnavailable
from dssnet_fast.operators import Operators
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.tiling import Box
from networks import noise, random_network

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "rgb, nearest": {},
    "gray, pixel_shuffle": {"in_channels": 1, "classes": 3, "upsampling": "pixel_shuffle"},
}
ANY_SIZE = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}


def make(seed: int = 0, precision: str = "fp32", **changes) -> FastDSSNet:
    network = random_network(seed=seed, **{"blocks": 1, **changes})
    return FastDSSNet.from_reference(network, "cpu", "torch", precision)


def normalised(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def cloned(net: FastDSSNet) -> Operators:
    """The operators of a network on weights that nobody has packed."""
    network = net._operators()
    return network._replace(weights=[weight.clone() for weight in network.weights])


def calls(graph: torch.fx.Graph) -> list[str]:
    """The stages that a graph calls."""
    names = [str(node.target).split(".") for node in graph.nodes]
    return [name[1] for name in names if name[0] == "dssnet_fast"]


class Graphs(list):
    """A backend of torch.compile that runs graphs as they are and keeps them."""

    def __call__(self, module, inputs):
        self.append(module.graph)
        return lookup_backend("aot_eager")(module, inputs)


@pytest.fixture
def packed(monkeypatch):
    """Counts what operators pack themselves, into a cache of the test's own."""
    counted, pack = [], operators._pack

    def counting(network):
        counted.append(network.precision)
        return pack(network)

    monkeypatch.setattr(operators, "_pack", counting)
    monkeypatch.setattr(operators, "_cache", operators._Cache())
    return counted


@pytest.fixture
def graphs():
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


# --- each operator -------------------------------------------------------------------------------


def test_every_operator_is_what_torch_wants():
    net = make()
    network = cloned(net)
    image = torch.from_numpy(noise(2, 16, 8, 3))
    x0 = net.downsample(image)
    features = net.extract(x0)
    opcheck(operators.infer, (torch.from_numpy(noise(2, 11, 5, 3)), *network, "labels"))
    opcheck(operators.infer, (normalised(2, 3, 8, 9), *network, "probabilities"))
    opcheck(operators.decide, (torch.from_numpy(noise(2, 11, 5, 3)), *network, [3, 0, 9, 4]))
    opcheck(operators.downsample, (image, *network))
    opcheck(operators.downsample, (normalised(2, 3, 8, 16), *network))
    opcheck(operators.extract, (x0, *network))
    opcheck(operators.fuse, (*features, *network))
    opcheck(operators.edges, (*features, *network))
    opcheck(operators.infer_edges, (torch.from_numpy(noise(2, 11, 5, 3)), *network))
    core = [3, 0, 9, 4]
    opcheck(operators.decide_with_edges, (torch.from_numpy(noise(2, 11, 5, 3)), *network, core))
    for output in ("labels", "logits"):
        opcheck(operators.segment, (net.fuse(*features), *network, output))


def test_operators_of_other_networks_in_low_precision():
    net = make(precision="bf16", in_channels=1, classes=3, upsampling="pixel_shuffle")
    network = cloned(net)
    image = torch.from_numpy(noise(1, 8, 8, 1))
    x0 = net.downsample(image)
    assert x0.dtype == torch.bfloat16
    opcheck(operators.infer, (normalised(1, 1, 9, 8), *network, "logits"))
    opcheck(operators.extract, (x0, *network))
    opcheck(operators.fuse, (*net.extract(x0), *network))
    opcheck(operators.edges, (*net.extract(x0), *network))


def test_operators_compute_what_the_network_does():
    net = make()
    network = net._operators()
    image = torch.from_numpy(noise(2, 11, 13, 3))
    for output in backends.OUTPUTS:
        assert torch.equal(network.infer(image, output), net.predict(image, output))
    core = Box(2, 3, 9, 8)
    for edges in (False, True):
        answers = network.decide(image, core, edges), net.decide(image, core, edges)
        for ours, wanted in zip(*answers, strict=True):
            assert torch.equal(ours, wanted)
    assert torch.equal(network.infer_edges(image), net.predict(image, "edges"))
    image = torch.from_numpy(noise(2, 16, 8, 3))
    x0 = net.downsample(image)
    shallow, deep = net.extract(x0)
    y = net.fuse(shallow, deep)
    assert torch.equal(network.downsample(image), x0)
    assert all(map(torch.equal, network.extract(x0), (shallow, deep)))
    assert torch.equal(network.fuse(shallow, deep), y)
    assert torch.equal(network.edges(shallow, deep), net.edges(shallow, deep))
    assert torch.equal(network.segment(y, "labels"), net.segment(y, "labels"))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 8, 1), (2, 3, 5, 8), (0, 3, 8, 9)])
def test_answers_lie_in_memory_as_promised(shape):
    network = make()._operators()
    image = normalised(*shape)
    for output in backends.OUTPUTS:
        answer = network.infer(image, output)
        assert answer.shape[:3] == (shape[0], *shape[2:])
        assert answer.stride() == torch.empty(answer.shape).stride()
    image = normalised(1, 3, 8, 8)
    for answer in network.extract(network.downsample(image)):
        assert answer.shape == (1, 1, 1, 8)
        assert answer.stride() == (8, 8, 8, 1)


def test_an_empty_batch_asks_no_backend():
    image = torch.empty(0, 3, 8, 9)
    for output, shape in (("labels", (0, 8, 9)), ("logits", (0, 8, 9, 2))):
        assert backends.infer(None, image, output, classes=2).shape == shape


def test_wrong_calls_of_operators_are_refused():
    network = cloned(make())
    image = normalised(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"the config has \d+ weights, got 3"):
        network._replace(weights=network.weights[:3]).infer(image, "labels")
    with pytest.raises(InputError, match="weights do not fit the config: wrong shape"):
        network._replace(weights=network.weights[::-1]).infer(image, "labels")
    with pytest.raises(BackendUnavailable, match="backend 'nothing' is unknown"):
        network._replace(backend="nothing").infer(image, "labels")
    with pytest.raises(ValueError, match=r"output must be one of .* got 'mask'"):
        network.infer(image, "mask")
    plain = cloned(make(edge=False))
    for call in (
        lambda: plain.infer_edges(image),
        lambda: plain.decide(image, Box(0, 0, 8, 8), edges=True),
        lambda: plain.edges(*plain.extract(plain.downsample(image))),
    ):
        with pytest.raises(InputError, match="no edge head"):
            call()
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="cuda: needs an NVIDIA GPU"):
            network._replace(backend="cuda").infer(image, "labels")


# --- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_networks_are_one_operator(name, graphs):
    net = make(**NETWORKS[name])
    compiled = torch.compile(net, fullgraph=True, backend=graphs, dynamic=False)
    for size in ((9, 17), (1, 1)):
        image = normalised(2, net.config.in_channels, *size)
        assert torch.equal(compiled(image), net(image))
    assert [calls(graph) for graph in graphs] == [["infer"]] * 2


def test_one_graph_serves_all_sizes(graphs):
    net = make()
    compiled = torch.compile(net, fullgraph=True, backend=graphs, dynamic=True)
    for shape in ((2, 3, 9, 17), (3, 3, 16, 8), (5, 3, 7, 24), (2, 3, 31, 32)):
        image = normalised(*shape)
        assert torch.equal(compiled(image), net(image))
    assert [calls(graph) for graph in graphs] == [["infer"]]


def test_inductor(graphs):
    net = make()

    def positive(image):
        return torch.relu(net(image * 0.5)) + 1

    compiled = torch.compile(positive, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 9, 17), (3, 3, 16, 8)):
        image = normalised(*shape)
        torch.testing.assert_close(compiled(image), positive(image), rtol=1e-5, atol=1e-6)


def test_predict_and_stages_compile(graphs):
    net = make()
    image = torch.from_numpy(noise(2, 16, 24, 3))

    def stages(image):
        y = net.fuse(*net.extract(net.downsample(image)))
        return net.segment(y, "probabilities")

    compiled = torch.compile(stages, fullgraph=True, backend=graphs)
    assert torch.equal(compiled(image), stages(image))
    assert [calls(graph) for graph in graphs] == [["downsample", "extract", "fuse", "segment"]]
    predict = torch.compile(net.predict, fullgraph=True, backend=graphs)
    assert torch.equal(predict(image[0, :11]), net.predict(image[0, :11]))
    assert calls(graphs[1]) == ["infer"]


def test_compiled_answers_follow_the_network(graphs, packed):
    net, other = make(), make(seed=5)
    compiled = torch.compile(net, fullgraph=True, backend=graphs)
    image = normalised(2, 3, 9, 17)
    before = compiled(image)
    net.load_state_dict(other.state_dict())
    assert torch.equal(compiled(image), other(image))
    assert not torch.equal(compiled(image), before)
    assert len(graphs) == 1
    net.bfloat16()
    low = compiled(image)
    assert torch.equal(low, net(image))
    assert not torch.equal(low, other(image))
    net.float()
    assert torch.equal(compiled(image), other(image))
    net.load_state_dict(make().state_dict(), assign=True)
    assert torch.equal(compiled(image), before)
    assert packed == []


def test_compiled_networks_have_no_gradient_either(graphs):
    net = make()
    image = normalised(1, 3, 8, 8).requires_grad_()
    assert not net(image).requires_grad
    assert not torch.compile(net, fullgraph=True, backend=graphs)(image).requires_grad


def test_wrong_images_are_refused_in_compiled_networks(graphs):
    compiled = torch.compile(make(), backend=graphs)
    with pytest.raises(TypeError, match="for uint8 images use predict"):
        compiled(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"must have shape \[B, 3, H, W\]"):
        compiled(torch.zeros(1, 4, 8, 8))


def test_copies_compile_with_weights_of_their_own(graphs, packed):
    net, other = make(), make(seed=5)
    image = normalised(1, 3, 8, 8)
    expected = net(image)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        compiled = torch.compile(twin, fullgraph=True, backend=graphs)
        assert torch.equal(compiled(image), expected)
        twin.load_state_dict(other.state_dict())
        assert torch.equal(compiled(image), other(image))
    assert torch.equal(torch.compile(net, fullgraph=True, backend=graphs)(image), expected)
    assert packed == []


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("name", backends.names())
def test_every_backend_compiles_on_a_gpu(name, mode, graphs):
    reference = random_network()
    try:
        net = FastDSSNet.from_reference(reference, "cuda", name)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    compiled = torch.compile(net, fullgraph=True, mode=mode)
    image = normalised(2, 3, 25, 40).cuda()
    for _ in range(4):
        torch.testing.assert_close(compiled(image), net(image), rtol=1e-2, atol=1e-2)
    for output in backends.OUTPUTS:
        arguments = (image.clone(), *cloned(net), output)
        opcheck(operators.infer, arguments, rtol=1e-2, atol=1e-2)


# --- torch.export --------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_exported_networks_are_one_operator(strict, packed):
    net = make()
    image = normalised(2, 3, 9, 17)
    static = torch.export.export(net, (image,), strict=strict)
    assert torch.equal(static.module()(image), net(image))
    dynamic = torch.export.export(net, (image,), dynamic_shapes=(ANY_SIZE,), strict=strict)
    for shape in ((2, 3, 9, 17), (1, 3, 1, 1), (3, 3, 16, 24), (2, 3, 7, 33)):
        image = normalised(*shape)
        assert torch.equal(dynamic.module()(image), net(image))
    for program in (static, dynamic):
        assert calls(program.graph) == ["infer"]
        assert calls(program.run_decompositions().graph) == ["infer"]
    assert packed == []


LOAD = """
import sys, torch
import dssnet_fast.operators
folder = sys.argv[1]
module = torch.export.load(folder + "/network.pt2").module()
images = torch.load(folder + "/images.pt")
torch.save([module(image) for image in images], folder + "/answers.pt")
print(len(dssnet_fast.operators._cache._entries))
"""


def test_exported_networks_run_in_another_process(tmp_path):
    net = make(classes=3)
    images = [normalised(2, 3, 9, 17), normalised(1, 3, 24, 8)]
    program = torch.export.export(net, (images[0],), dynamic_shapes=(ANY_SIZE,))
    torch.export.save(program, tmp_path / "network.pt2")
    torch.save(images, tmp_path / "images.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"]
    for image, answer in zip(images, torch.load(tmp_path / "answers.pt"), strict=True):
        torch.testing.assert_close(answer, net(image), rtol=1e-6, atol=1e-6)


# --- the cache -----------------------------------------------------------------------------------


def test_weights_are_packed_once(packed):
    net = make()
    image = normalised(1, 3, 8, 8)
    assert torch.equal(net._operators().infer(image, "logits"), net._backend.infer(image, "logits"))
    assert packed == []
    network = cloned(net)
    for _ in range(3):
        network.infer(image, "logits")
    assert packed == ["fp32"]
    low = network._replace(precision="bf16")
    assert not torch.equal(low.infer(image, "logits"), network.infer(image, "logits"))
    assert packed == ["fp32", "bf16"]


def test_changed_weights_are_packed_again(packed):
    net, other = make(), make(seed=5)
    image = normalised(1, 3, 8, 8)
    expected = other._operators().infer(image, "logits")
    for network in (net._operators(), cloned(net)):
        network.infer(image, "logits")
        for weight, new in zip(network.weights, other._operators().weights, strict=True):
            weight.copy_(new)
        assert torch.equal(network.infer(image, "logits"), expected)
    network = cloned(make())
    network.infer(image, "logits")
    for weight, new in zip(network.weights, other._operators().weights, strict=True):
        weight.data = new.clone()
    assert torch.equal(network.infer(image, "logits"), expected)


def test_a_single_changed_weight_counts(packed):
    network = cloned(make())
    image = normalised(1, 3, 8, 8)
    for weight in network.weights:
        before = network.infer(image, "logits"), network.infer_edges(image)
        weight.mul_(2)
        after = network.infer(image, "logits"), network.infer_edges(image)
        assert not all(map(torch.equal, after, before))
    assert len(packed) == 1 + len(network.weights)


def test_what_inference_mode_may_change_unseen_is_packed_each_time(packed):
    image = normalised(1, 3, 8, 8)
    net = make()
    with torch.inference_mode():
        network = cloned(net)
        before = network.infer(image, "logits")
        network.weights[0].add_(1)
        assert not torch.equal(network.infer(image, "logits"), before)
        assert len(packed) == 2
        # A network made there is packed anew by its own doing, as anywhere.
        twin = copy.deepcopy(net)
        assert torch.equal(
            twin._operators().infer(image, "logits"), twin(image).permute(0, 2, 3, 1)
        )
    assert len(packed) == 2


def test_freed_weights_take_what_was_packed_with_them(packed):
    image = normalised(1, 3, 8, 8)
    net = make()
    network = cloned(net)
    network.infer(image, "logits")
    entries = operators._cache._entries
    kept = [weakref.ref(entry.backend) for entry in entries.values()]
    assert len(kept) == 2
    assert {ref() for ref in kept} > {net._backend}
    network.weights.pop()
    gc.collect()
    assert len(entries) == 1
    del net, network
    gc.collect()
    assert len(entries) == 0
    assert [ref() for ref in kept] == [None, None]


@pytest.mark.parametrize("name", list(backends.available(torch.device("cpu"), make().config)))
def test_no_backend_keeps_its_network_alive(name):
    net = FastDSSNet.from_reference(random_network(), "cpu", name)
    weight = weakref.ref(net._operators().weights[0])
    del net
    gc.collect()
    assert weight() is None


def test_an_id_that_came_back_is_another_tensor(packed):
    """As if new weights had the ids, versions and memory of freed ones."""
    image = normalised(1, 3, 8, 8)
    old, new = cloned(make()), cloned(make(seed=5))
    expected = new.infer(image, "logits")
    stale = old.infer(image, "logits")
    entries = operators._cache._entries
    entry = entries[operators._key(old)]
    entries[operators._key(new)] = entry._replace(state=operators._state(new.weights))
    assert torch.equal(new.infer(image, "logits"), expected)
    assert not torch.equal(expected, stale)


def test_the_cache_is_bounded(packed, monkeypatch):
    monkeypatch.setattr(operators, "KEPT", 2)
    image = normalised(1, 3, 8, 8)
    net = make()
    networks = [cloned(net) for _ in range(4)]
    for network in networks:
        network.infer(image, "labels")
    assert len(operators._cache._entries) == 2
    networks[-1].infer(image, "labels")
    assert len(packed) == 4
    assert torch.equal(networks[0].infer(image, "logits"), networks[1].infer(image, "logits"))


def test_threads_pack_once_and_agree(packed):
    net = make()
    image = normalised(1, 3, 16, 8)
    expected = net._operators().infer(image, "logits")
    shared = cloned(net)
    start = threading.Barrier(6)
    wrong = []

    def work():
        start.wait()
        for _ in range(3):
            own = cloned(net)
            for network in (shared, own):
                if not torch.equal(network.infer(image, "logits"), expected):
                    wrong.append(network)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(packed) == 1 + 6 * 3


def test_eager_calls_use_no_operator(monkeypatch):
    net = make()
    monkeypatch.setattr(net, "_operators", None)
    assert net(normalised(1, 3, 8, 8)).shape == (1, 2, 8, 8)
    assert net.predict(noise(8, 8, 3)).shape == (8, 8)


def test_weights_come_in_the_order_of_their_names():
    net = make()
    names = sorted(weights.folded_shapes(net.config))
    tensors = net.folded_weights().tensors
    for name, weight in zip(names, net._operators().weights, strict=True):
        assert torch.equal(weight, tensors[name])
