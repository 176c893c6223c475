"""FastDSSNet against the reference, stage by stage and whole, and as a guest in people's code."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import torch

from dssnet_fast import DSSNetConfig, FastDSSNet, backends, parity, weights
from dssnet_fast.backends import BackendUnavailable, native
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.hardware import cpu_supports
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import released_state
from networks import CONFIGS, noise, random_network

TOLERANCE = 2e-5
# What `auto` takes on a CPU.
AUTO = "cpu" if native.problem() is None else "torch"
HALVES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def nhwc(x):
    return x.permute(0, 2, 3, 1).double().numpy()


@pytest.fixture(scope="module")
def pair():
    """A small reference network in float64 and its fast twin."""
    network = random_network()
    return network.double(), FastDSSNet.from_reference(network, device="cpu")


# --- parity --------------------------------------------------------------------------------------


EXACT = [
    name
    for name, precisions in backends.available(backends.find_device("auto"), DSSNetConfig()).items()
    if "fp32" in precisions
]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("backend", EXACT)
def test_whole_network_equals_reference(name, backend):
    network = random_network(CONFIGS[name]).double()
    net = FastDSSNet.from_reference(network, backend=backend, precision="fp32")
    found = parity.compare(net, network, parity.random_images(network.config))
    assert found.error <= TOLERANCE
    assert found.labels >= 0.9999


@pytest.mark.parametrize("name", CONFIGS)
def test_each_stage_equals_reference(name):
    network = random_network(CONFIGS[name]).double()
    net = FastDSSNet.from_reference(network, device="cpu", precision="fp32")
    image = torch.from_numpy(noise(2, 24, 40, network.config.in_channels))
    x = (image.permute(0, 3, 1, 2).double() - 128) / 128
    with torch.no_grad():
        x0 = network.downsample(x)
        shallow, deep = network.extract(x0)
        y = network.fuse(shallow, deep)
        logits = network.segment(y)
    mine = net.downsample(image)
    assert parity.relative_error(mine.double().numpy(), nhwc(x0)) <= TOLERANCE
    assert parity.relative_error(net.downsample(x).double().numpy(), nhwc(x0)) <= TOLERANCE
    x0 = x0.float().permute(0, 2, 3, 1)
    for actual, expected in zip(net.extract(x0), (shallow, deep), strict=True):
        assert parity.relative_error(actual.numpy(), nhwc(expected)) <= TOLERANCE
    features = [part.float().permute(0, 2, 3, 1) for part in (shallow, deep)]
    assert parity.relative_error(net.fuse(*features).numpy(), nhwc(y)) <= TOLERANCE
    y = y.float().permute(0, 2, 3, 1)
    assert parity.relative_error(net.segment(y, "logits").numpy(), nhwc(logits)) <= TOLERANCE
    probabilities = net.segment(y, "probabilities").numpy()
    assert parity.relative_error(probabilities, nhwc(logits.softmax(1))) <= TOLERANCE
    assert np.array_equal(net.segment(y, "labels").numpy(), logits.argmax(1).numpy())


@pytest.mark.parametrize("precision", HALVES)
def test_low_precision_is_no_worse_than_the_reference_in_it(precision):
    if precision == "fp16" and not cpu_supports("avx512_fp16"):
        pytest.skip("this CPU has no fp16")
    exact = random_network(CONFIGS["paper"]).double()
    rounded = random_network(CONFIGS["paper"]).to(HALVES[precision])
    net = FastDSSNet.from_reference(exact, device="cpu", precision=precision)
    for image in parity.random_images(exact.config):
        expected = parity.reference_logits(exact, image)
        theirs = parity.relative_error(parity.reference_logits(rounded, image), expected)
        ours = parity.relative_error(net.predict(image, output="logits"), expected)
        assert ours <= theirs
        assert ours > TOLERANCE, "this is not low precision at all"


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 8e-2)])
def test_gpu_parity_in_every_precision(precision, limit):
    exact = random_network(CONFIGS["paper"]).double()
    net = FastDSSNet.from_reference(exact, device="cuda", precision=precision)
    assert parity.compare(net, exact, parity.random_images(exact.config)).error <= limit


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 8), (8, 8), (9, 17), (33, 64)])
def test_any_size_is_padded_with_128_and_cropped(pair, size):
    network, net = pair
    image = noise(*size, 3)
    expected = parity.reference_logits(network, image)
    assert expected.shape == (*size, 2)
    assert parity.relative_error(net.predict(image, output="logits"), expected) <= TOLERANCE
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 128) / 128
    assert parity.relative_error(nhwc(net(x))[0], expected) <= TOLERANCE
    assert np.array_equal(net.predict(image), expected.argmax(-1))


def test_a_batch_equals_its_images_one_by_one(pair):
    _, net = pair
    batch = noise(3, 20, 28, 3)
    together = net.predict(batch, output="logits")
    alone = np.stack([net.predict(image, output="logits") for image in batch])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert np.array_equal(net.predict(batch), together.argmax(-1))


# --- kinds and layouts of images -----------------------------------------------------------------


def test_answers_are_of_the_kind_of_the_question(pair):
    _, net = pair
    image = noise(20, 28, 3)
    labels = net.predict(image)
    assert isinstance(labels, np.ndarray)
    assert labels.dtype == np.uint8
    assert labels.shape == (20, 28)
    tensor = net.predict(torch.from_numpy(image))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor.numpy(), labels)
    probabilities = net.predict(image[None], output="probabilities")
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (1, 20, 28, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    assert net.predict(noise(0, 20, 28, 3)).shape == (0, 20, 28)
    assert net.predict(noise(0, 20, 28, 3), output="logits").shape == (0, 20, 28, 2)
    assert net(torch.zeros(0, 3, 8, 8)).shape == (0, 2, 8, 8)


def test_layout_does_not_matter_and_input_is_left_alone(pair):
    _, net = pair
    image = noise(20, 28, 3)
    expected = net.predict(image)
    before = image.copy()
    views = {
        "reversed": np.ascontiguousarray(image[::-1])[::-1],
        "strided": np.repeat(image, 2, axis=1)[:, ::2],
        "column major": np.asfortranarray(image),
        "channels first": torch.from_numpy(image).permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }
    read_only = image.copy()
    read_only.flags.writeable = False
    views["read-only"] = read_only
    for name, view in views.items():
        assert np.array_equal(np.asarray(net.predict(view)), expected), name
    assert np.array_equal(image, before)
    x = torch.rand(2, 3, 24, 16) * 2 - 1
    kept = x.clone()
    logits = net(x)
    channels_last = net(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, kept)
    # The stages, too: PyTorch's in-place activations must not reach the caller's tensors.
    x0 = net.downsample(torch.from_numpy(image[None, :16, :24].copy()))
    kept = x0.clone()
    shallow, deep = net.extract(x0)
    copies = shallow.clone(), deep.clone()
    y = net.fuse(shallow, deep)
    y_kept = y.clone()
    net.segment(y)
    assert torch.equal(x0, kept)
    assert torch.equal(shallow, copies[0])
    assert torch.equal(deep, copies[1])
    assert torch.equal(y, y_kept)


def test_gray_networks_take_gray_images():
    net = FastDSSNet.from_reference(random_network(in_channels=1))
    image = noise(12, 20)
    labels = net.predict(image)
    assert labels.shape == (12, 20)
    assert np.array_equal(net.predict(image[..., None]), labels)
    assert np.array_equal(net.predict(image[None, ..., None])[0], labels)
    with pytest.raises(ValueError, match=r"shape \[H, W, 1\] or \[B, H, W, 1\], got \[12, 20, 3\]"):
        net.predict(noise(12, 20, 3))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (noise(8, 8, 3) / 255, TypeError, r"uint8 with values 0 to 255, got ndarray of float64"),
        (torch.zeros(8, 8, 3), TypeError, r"got Tensor of torch.float32; for values in \[0, 1\]"),
        (noise(8, 8, 4), ValueError, r"got \[8, 8, 4\]; drop the alpha channel"),
        (noise(8, 8), ValueError, r"repeat a gray image three times"),
        (noise(3, 8, 8), ValueError, r"channels come last"),
        (noise(0, 8, 3), ValueError, r"at least one pixel, got shape \[0, 8, 3\]"),
        (noise(8, 0, 3), ValueError, r"at least one pixel"),
        (noise(1, 1, 8, 8, 3), ValueError, r"must have shape"),
        ([[1, 2]], TypeError, r"NumPy array or torch tensor, got list"),
        (noise(8, 8, 3).astype(np.uint16), TypeError, r"got ndarray of uint16"),
    ],
)
def test_wrong_images_are_refused_with_advice(pair, image, error, message):
    with pytest.raises(error, match=message):
        pair[1].predict(image)


def test_wrong_calls_are_refused(pair):
    _, net = pair
    with pytest.raises(ValueError, match=r"output must be one of .*, got 'mask'"):
        net.predict(noise(8, 8, 3), output="mask")
    with pytest.raises(TypeError, match="for uint8 images use predict"):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    for shape in ((3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)):
        with pytest.raises(ValueError, match=r"must have shape \[B, 3, H, W\]"):
            net(torch.zeros(shape))


# --- choosing a backend --------------------------------------------------------------------------


def test_named_backends_run_or_raise(pair):
    network, _ = pair
    with pytest.raises(BackendUnavailable, match=r"'onnx' is unknown; this version has: .*torch"):
        FastDSSNet.from_reference(network, backend="onnx")
    with pytest.raises(BackendUnavailable, match="precision 'int4' is unknown"):
        FastDSSNet.from_reference(network, precision="int4")
    with pytest.raises(BackendUnavailable, match="device 'tpu9' is unknown"):
        FastDSSNet.from_reference(network, device="tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match=r"'cuda' is not available: .* 0 CUDA"):
            FastDSSNet.from_reference(network, device="cuda")


def test_fp16_needs_a_cpu_that_has_it(pair, monkeypatch):
    from dssnet_fast.backends import torch_backend

    monkeypatch.setattr(torch_backend, "cpu_supports", lambda feature: False)
    with pytest.raises(BackendUnavailable, match=r"fp16 needs a CPU .*available on cpu: .*torch"):
        FastDSSNet.from_reference(pair[0], device="cpu", precision="fp16")


def test_auto_says_what_it_chose(pair, caplog):
    with caplog.at_level("INFO", logger="dssnet_fast"):
        net = FastDSSNet.from_reference(pair[0], device="cpu")
    assert net.backend_name == AUTO
    assert net.precision == "fp32"
    assert repr(net) in caplog.text
    assert f"backend={AUTO}" in repr(net)


class Flawed:
    """A backend that finds nothing in its way and then cannot be made."""

    PRECISIONS = ("fp32", "bf16")
    made = 0

    def why_not(self, device, precision, config):
        return None

    def why_not_automatic(self, device):
        return None

    def why_no_gain(self, device, precision):
        return None

    def unmet(self, device):
        return None

    def best_precision(self, device):
        return "bf16"

    def make(self, weights, device, precision):
        self.made += 1
        raise BackendUnavailable("the driver takes none of the kernels")


def test_auto_goes_on_where_a_backend_turns_out_not_to_run(pair, monkeypatch):
    network, _ = pair
    flawed, modules = Flawed(), backends.module
    monkeypatch.setattr(backends, "module", lambda n: flawed if n == "cuda" else modules(n))
    net = FastDSSNet.from_reference(network, device="cpu")
    assert (net.backend_name, net.precision, flawed.made) == (AUTO, "bf16", 1)
    assert "cuda: the driver takes none of the kernels" in repr(net)
    net.float()
    assert (net.backend_name, net.precision, flawed.made) == (AUTO, "fp32", 2)
    with pytest.raises(BackendUnavailable, match=r"none of the kernels; available on cpu: .*torch"):
        FastDSSNet.from_reference(network, device="cpu", backend="cuda")


def test_a_saved_network_chooses_again_where_its_backend_is_not(pair, monkeypatch):
    network, _ = pair
    modules = backends.module

    class Able(Flawed):
        def make(self, weights, device, precision):
            return modules(AUTO).make(weights, device, precision)

    monkeypatch.setattr(backends, "module", lambda n: Able() if n == "cuda" else modules(n))
    net = FastDSSNet.from_reference(network, device="cpu")
    assert net.backend_name == "cuda"
    saved = pickle.dumps(net)
    named = pickle.dumps(FastDSSNet.from_reference(network, device="cpu", backend="cuda"))
    monkeypatch.undo()
    image = noise(16, 24, 3)
    again = pickle.loads(saved)
    assert (again.backend_name, again.precision) == (AUTO, "bf16")
    assert np.array_equal(again.predict(image), net.predict(image))
    with pytest.raises(BackendUnavailable, match="cuda: needs an NVIDIA GPU"):
        pickle.loads(named)


def test_a_backend_that_cannot_be_copied_does_not_keep_networks_from_it(pair):
    net = FastDSSNet.from_reference(pair[0], device="cpu")
    net._backend.lock = threading.Lock()
    image = noise(16, 24, 3)
    expected = net.predict(image, output="logits")
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin._backend is not net._backend
        assert np.array_equal(twin.predict(image, output="logits"), expected)


# --- as a module ---------------------------------------------------------------------------------


def test_it_is_a_module_without_parameters(pair):
    _, net = pair
    assert isinstance(net, torch.nn.Module)
    assert list(net.parameters()) == []
    assert not net.training
    assert not net(torch.zeros(1, 3, 8, 8)).requires_grad
    assert set(net.state_dict()) == {f"folded.{name}" for name in weights.folded_shapes(net.config)}


def test_precision_changes_and_comes_back_exactly(pair):
    network, _ = pair
    net = FastDSSNet.from_reference(network, device="cpu")
    image = noise(16, 24, 3)
    expected = net.predict(image, output="logits")
    assert net.bfloat16() is net
    assert net.precision == "bf16"
    low = net.predict(image, output="logits")
    assert low.dtype == np.float32
    assert not np.array_equal(low, expected)
    assert net.float().precision == "fp32"
    assert np.array_equal(net.predict(image, output="logits"), expected)
    assert net.to("cpu").to(torch.float32).eval().precision == "fp32"
    with pytest.raises(BackendUnavailable, match=r"no torch\.float64"):
        net.double()


def test_copies_and_saved_states_are_independent(pair):
    _, net = pair
    image = noise(16, 24, 3)
    expected = net.predict(image, output="logits")
    twin = copy.deepcopy(net)
    again = pickle.loads(pickle.dumps(net))
    other = FastDSSNet.from_reference(random_network(seed=5), device="cpu")
    assert not np.array_equal(other.predict(image, output="logits"), expected)
    assert other.digest != net.digest == twin.digest == again.digest
    other.load_state_dict(net.state_dict())
    for copied in (twin, again, other):
        assert np.array_equal(copied.predict(image, output="logits"), expected)
    twin.load_state_dict(FastDSSNet.from_reference(random_network(seed=5)).state_dict())
    assert not np.array_equal(twin.predict(image, output="logits"), expected)
    assert np.array_equal(net.predict(image, output="logits"), expected)


def test_predict_from_many_threads(pair):
    _, net = pair
    images = [noise(16 + 8 * i, 24, 3, seed=i) for i in range(6)]
    expected = [net.predict(image, output="logits") for image in images]
    wrong = []

    def work(image, answer):
        for _ in range(5):
            if not np.allclose(net.predict(image, output="logits"), answer, rtol=1e-5, atol=1e-6):
                wrong.append(image.shape)

    threads = [
        threading.Thread(target=work, args=arguments)
        for arguments in zip(images, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_where_networks_come_from(tmp_path):
    network = random_network()
    state = released_state(network)
    torch.save(state, tmp_path / "ckpt.pt")
    weights.save(weights.fold_checkpoint(from_state(state)), tmp_path / "w.safetensors")
    image = noise(16, 24, 3)
    nets = [
        FastDSSNet.from_checkpoint(tmp_path / "ckpt.pt"),
        FastDSSNet.from_checkpoint(state),
        FastDSSNet.from_checkpoint(from_state(state)),
        FastDSSNet.from_reference(network),
        FastDSSNet.load(tmp_path / "w.safetensors"),
    ]
    answers = [net.predict(image, output="logits") for net in nets]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert nets[0].source_digest != nets[1].source_digest  # of the file, of the tensors
    with pytest.raises(InputError, match=r"python -m dssnet_fast\.convert"):
        FastDSSNet.load(tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="no pretrained model 'nope'"):
        FastDSSNet.pretrained("nope")


def test_context_is_the_configs(pair):
    assert pair[1].context_px == DSSNetConfig(width=9, features=8, blocks=2).context_px
    assert DSSNet(DSSNetConfig()).config.context_px == 264
