"""The network as operators of torch: what `torch.compile` and `torch.export` see of it.

`dssnet_fast::infer` is the whole network, `infer_edges` gives its edge map; `decide` is its labels
and their probabilities for a part of the images, `decide_with_edges` these and the edge map; and
`downsample`, `extract`, `fuse`, `edges` and `segment` are its stages. They take what
`dssnet_fast.backends.Backend` takes, the first five images of any size, and return new, contiguous
tensors; edges of whole images are at full resolution. An operator knows of no network: the folded
weights are among its arguments, in the order of their names, and config, backend and precision are
strings. So an exported program is whole: in another process it runs after
`import dssnet_fast.operators` and `torch.export.load`, nothing else. None has a gradient.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from dssnet_fast import backends
from dssnet_fast.backends import (
    PRECISIONS,
    Backend,
    check_edges,
    check_output,
    image_size,
    new_answer,
)
from dssnet_fast.checkpoint import problems_with_keys
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import HEAD_CHANNELS, SCALE, UPSAMPLING
from dssnet_fast.quantisation import Quantisation
from dssnet_fast.tiling import Box
from dssnet_fast.weights import FoldedWeights, folded_shapes

_INT8 = "int8"  # beside the config, what int8 needs
KEPT = 64  # packed networks; they go with their weights, so this bounds neglect, not use


class Operators(NamedTuple):
    """A network's stages as operators: a `dssnet_fast.backends.Backend` for code that is traced.

    Attributes:
        weights: The folded weights, float32, in the order of their names.
        config: The config as JSON, and what int8 needs; see `describe`.
        backend: A backend's name; where it cannot run, calls raise BackendUnavailable.
        precision: `fp32`, `bf16`, `fp16` or `int8`.
    """

    weights: list[Tensor]
    config: str
    backend: str
    precision: str

    def infer(self, image: Tensor, output: str) -> Tensor:
        """All stages but the edge head."""
        return infer(image, *self, output)

    def infer_edges(self, image: Tensor) -> Tensor:
        """The edge map at full resolution."""
        return infer_edges(image, *self)

    def decide(self, image: Tensor, core: Box, edges: bool = False) -> tuple[Tensor, ...]:
        """All stages for a part of the images, any box in them; edges at full resolution."""
        operator = decide_with_edges if edges else decide
        return operator(image, *self, list(astuple(core)))

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1."""
        return downsample(image, *self)

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2."""
        return extract(x0, *self)

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        return fuse(shallow, deep, *self)

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head."""
        return edges(shallow, deep, *self)

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        return segment(y, *self, output)


# --- packed weights ------------------------------------------------------------------------------


class _Packed(NamedTuple):
    backend: Backend
    weights: tuple[weakref.ref[Tensor], ...]
    state: tuple[list[int] | None, list[int]]


class _Cache:
    """Backends by the very tensors whose values they have packed.

    An entry holds while all its tensors live and none has been written to, as autograd counts it:
    writes through `.data` go unseen, and tensors of inference mode, whose writes nobody counts,
    are found only if `add` was told of them. Finding takes no lock.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple, _Packed] = {}
        self._lock = threading.Lock()

    def add(self, network: Operators, backend: Backend, state: tuple) -> None:
        """Remember that `backend` has packed the weights as they were in `state`."""
        key, entries = _key(network), self._entries

        def forget(_: weakref.ref) -> None:
            # Runs wherever a tensor happens to be freed, so it must not wait for the lock.
            entries.pop(key, None)

        references = tuple(weakref.ref(weight, forget) for weight in network.weights)
        entries.pop(key, None)
        entries[key] = _Packed(backend, references, state)
        for oldest in list(entries)[:-KEPT]:
            entries.pop(oldest, None)

    def get(self, network: Operators) -> Backend:
        """The backend that has packed these weights; packs them if there is none."""
        if backend := self._find(network):
            return backend
        with self._lock:
            if backend := self._find(network):
                return backend
            state = _state(network.weights)
            backend = _pack(network)
            if state[0] is not None:
                self.add(network, backend, state)
            return backend

    def _find(self, network: Operators) -> Backend | None:
        entry = self._entries.get(_key(network))
        if entry is None or entry.state != _state(network.weights):
            return None
        # An id comes back when its tensor is gone; a reference to the tensor does not.
        pairs = zip(entry.weights, network.weights, strict=True)
        return entry.backend if all(known() is weight for known, weight in pairs) else None


def _key(network: Operators) -> tuple:
    return (*network[1:], *map(id, network.weights))


def _state(weights: Sequence[Tensor]) -> tuple[list[int] | None, list[int]]:
    """What changes when a tensor is written to, and when it is given other memory."""
    try:
        versions = [weight._version for weight in weights]
    except RuntimeError:  # of inference mode: its tensors do not count
        versions = None
    return versions, [weight.data_ptr() for weight in weights]


def _pack(network: Operators) -> Backend:
    config = _config(network.config)
    shapes = folded_shapes(config)
    if len(network.weights) != len(shapes):
        raise InputError(f"the config has {len(shapes)} weights, got {len(network.weights)}")
    # Copies, lest a backend keep alive the tensors whose end is awaited.
    values = [w.detach().to("cpu", torch.float32, copy=True) for w in network.weights]
    tensors = dict(zip(sorted(shapes), values, strict=True))
    if problems := problems_with_keys({k: v.shape for k, v in tensors.items()}, shapes):
        raise InputError(f"weights do not fit the config: {'; '.join(problems)}")
    choice = backends.choose(network.backend, network.weights[0].device, network.precision, config)
    steps = json.loads(network.config).get(_INT8)
    quantisation = None if steps is None else Quantisation.from_json(steps, config)
    folded = FoldedWeights(config, tensors, (), "", quantisation)
    return backends.start(choice, network.backend, folded)[1]


def describe(config: DSSNetConfig, quantisation: Quantisation | None) -> str:
    """A network but for its weights, as `Operators.config`."""
    values = config.to_dict()
    if quantisation is not None:
        values[_INT8] = quantisation.to_json()
    return json.dumps(values)


@lru_cache
def _config(text: str) -> DSSNetConfig:
    values = json.loads(text)
    values.pop(_INT8, None)
    return DSSNetConfig.from_dict(values)


_cache = _Cache()


def remember(network: Operators, backend: Backend) -> None:
    """Let calls with the weights of `network` find `backend`, which was made from them."""
    _cache.add(network, backend, _state(network.weights))


# --- operators -----------------------------------------------------------------------------------


def _operator(name: str, takes: str, gives: str) -> Callable[[Callable], torch.library.CustomOpDef]:
    # Schemas stand for type hints below: not every torch could read those of this file.
    network = "Tensor[] weights, str config, str backend, str precision"
    schema = f"({takes.replace('network', network)}) -> {gives}"
    return custom_op(f"dssnet_fast::{name}", mutates_args=(), schema=schema)


def _new(x: Tensor) -> Tensor:
    # `contiguous` would leave any stride of a dimension of length 1 as it is.
    promised = torch.empty(x.shape, device="meta").stride()
    return x if x.stride() == promised else x.clone(memory_format=torch.contiguous_format)


def _of_edges(weights, config, backend, precision) -> Backend:
    """The backend of a network with an edge head.

    Raises:
        InputError: It has none.
    """
    check_edges(_config(config))
    return _cache.get(Operators(weights, config, backend, precision))


@_operator("infer", "Tensor image, network, str output", "Tensor")
def infer(image, weights, config, backend, precision, output):
    """All stages but the edge head, on images of any size."""
    check_output(output)
    packed = _cache.get(Operators(weights, config, backend, precision))
    return _new(backends.infer(packed, image, output, _config(config).classes))


@infer.register_fake
def _(image, weights, config, backend, precision, output):
    return new_answer(image, image_size(image), output, _config(config).classes)


@_operator("infer_edges", "Tensor image, network", "Tensor")
def infer_edges(image, weights, config, backend, precision):
    """The edge map of images of any size."""
    packed = _of_edges(weights, config, backend, precision)
    return _new(backends.infer_edges(packed, image))


@infer_edges.register_fake
def _(image, weights, config, backend, precision):
    return image.new_empty(image_size(image), dtype=torch.float32)


@_operator("decide", "Tensor image, network, int[] core", "(Tensor, Tensor)")
def decide(image, weights, config, backend, precision, core):
    """All stages for a part of the images, of any size: top, left, bottom, right, px."""
    packed = _cache.get(Operators(weights, config, backend, precision))
    return tuple(map(_new, backends.decide(packed, image, Box(*core))))


@decide.register_fake
def _(image, weights, config, backend, precision, core):
    return _decisions(image, core, torch.uint8, torch.float32)


@_operator("decide_with_edges", "Tensor image, network, int[] core", "(Tensor, Tensor, Tensor)")
def decide_with_edges(image, weights, config, backend, precision, core):
    """As `decide`, and the edge map."""
    packed = _of_edges(weights, config, backend, precision)
    return tuple(map(_new, backends.decide(packed, image, Box(*core), edges=True)))


@decide_with_edges.register_fake
def _(image, weights, config, backend, precision, core):
    return _decisions(image, core, torch.uint8, torch.float32, torch.float32)


def _decisions(image: Tensor, core: Sequence[int], *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    """Memory for answers to a part of the images."""
    top, left, bottom, right = core
    size = (image_size(image)[0], bottom - top, right - left)
    return tuple(image.new_empty(size, dtype=dtype) for dtype in dtypes)


@_operator("downsample", "Tensor image, network", "Tensor")
def downsample(image, weights, config, backend, precision):
    """Stage 1."""
    packed = _cache.get(Operators(weights, config, backend, precision))
    return _new(packed.downsample(image))


@downsample.register_fake
def _(image, weights, config, backend, precision):
    batch, height, width = image_size(image)
    shape = (batch, height // SCALE, width // SCALE, _config(config).width)
    return image.new_empty(shape, dtype=PRECISIONS[precision])


@_operator("extract", "Tensor x0, network", "(Tensor, Tensor)")
def extract(x0, weights, config, backend, precision):
    """Stage 2."""
    packed = _cache.get(Operators(weights, config, backend, precision))
    return tuple(map(_new, packed.extract(x0)))


@extract.register_fake
def _(x0, weights, config, backend, precision):
    shape = (*x0.shape[:3], _config(config).features)
    return tuple(x0.new_empty(shape, dtype=PRECISIONS[precision]) for _ in range(2))


@_operator("fuse", "Tensor shallow, Tensor deep, network", "Tensor")
def fuse(shallow, deep, weights, config, backend, precision):
    """Stage 3."""
    packed = _cache.get(Operators(weights, config, backend, precision))
    return _new(packed.fuse(shallow, deep))


@fuse.register_fake
def _(shallow, deep, weights, config, backend, precision):
    batch, height, width, _ = shallow.shape
    shape = (batch, UPSAMPLING * height, UPSAMPLING * width, HEAD_CHANNELS)
    return shallow.new_empty(shape, dtype=PRECISIONS[precision])


@_operator("edges", "Tensor shallow, Tensor deep, network", "Tensor")
def edges(shallow, deep, weights, config, backend, precision):
    """The edge head."""
    packed = _of_edges(weights, config, backend, precision)
    return _new(packed.edges(shallow, deep))


@edges.register_fake
def _(shallow, deep, weights, config, backend, precision):
    batch, height, width, _ = shallow.shape
    size = (batch, UPSAMPLING * height, UPSAMPLING * width)
    return shallow.new_empty(size, dtype=torch.float32)


@_operator("segment", "Tensor y, network, str output", "Tensor")
def segment(y, weights, config, backend, precision, output):
    """Stage 4."""
    check_output(output)
    packed = _cache.get(Operators(weights, config, backend, precision))
    return _new(packed.segment(y, output))


@segment.register_fake
def _(y, weights, config, backend, precision, output):
    batch, height, width, _ = y.shape
    return new_answer(y, (batch, 2 * height, 2 * width), output, _config(config).classes)
