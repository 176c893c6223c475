"""Measuring contestants side by side: who they are, that their answers are right, how fast.

Nothing here knows absolute times. Contestants take turns round by round, so that whatever slows the
machine slows all of them, and speed is told as a ratio to the reference of the same rounds.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from dssnet_fast import (
    backends,
    macs,
    onnxruntime_peer,
    openvino_peer,
    parity,
    peers,
    tensorrt_peer,
)
from dssnet_fast.checkpoint import from_state
from dssnet_fast.model import FastDSSNet
from dssnet_fast.peers import Unavailable
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.hardware import why_no_fast_bf16
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.python_ref.unet import UNet
from dssnet_fast.weights import FoldedWeights, fold_checkpoint

if TYPE_CHECKING:
    import onnx

BASELINE = "reference"
FP32_TOLERANCE = 2e-5  # relative error of the logits, ||difference|| / ||expected||
# Of logits that other compilers give in low precision, in errors of PyTorch's own: they may round
# elsewhere, but must compute the same network.
PEER_TOLERANCE = 10
# PyTorch has no int8 run to compare with. The error is a share of how much the logits vary over
# pixels: in random networks most of a logit is bias, which any answer has.
INT8_TOLERANCE = 0.3
INT8_LABELS = 0.97  # share of pixels that keep their label
QUEUE_SECONDS = 0.02  # of calls queued on a GPU for one time
_QUEUE_LIMIT = 500
_SEED = 20220822
_SAMPLES, _SAMPLE_SIZE = 4, 256  # images that int8 is calibrated on, and their side
_CPU_PEERS = {"onnxruntime": onnxruntime_peer, "openvino": openvino_peer}

Kind = Literal["reference", "compile", "tensorrt", "onnxruntime", "openvino", "unet", "fast"]


class WrongAnswer(Exception):
    """A contestant's logits differ too much from the reference's; the message says how much."""


@dataclass(frozen=True)
class Contestant:
    """A network in one way of running it.

    Attributes:
        name: What tables and options call it.
        kind: What it is; `unet` is another network and not compared with the reference.
        precision: `fp32`, `bf16`, `fp16` or `int8`.
        backend: Of a `fast` one.
        channels_last: Memory layout of a `reference` or `compile` one's weights and images.
        variant: Of a `compile` one torch.compile's mode; of `tensorrt`, `onnxruntime` and
            `openvino` the graph, `original` or `folded`.
        reduced: Of `onnxruntime` and `openvino` in int8: the weights have 7 bits, which is right
            without VNNI, too.
    """

    name: str
    kind: Kind
    precision: str = "fp32"
    backend: str = ""
    channels_last: bool = False
    variant: str = ""
    reduced: bool = False


def contestants(device: torch.device, config: DSSNetConfig) -> list[Contestant]:
    """All that may run on `device`, the baseline first.

    The reference runs in every precision that some backend has here, in channels-last memory too:
    a fused network ought to beat PyTorch at its best, not only as it comes.

    Raises:
        BackendUnavailable: See `backends.check_environment`: it would be missed among these.
    """
    backends.check_environment(device)
    able = backends.available(device, config)
    offered = [p for p in backends.PRECISIONS if any(p in row for row in able.values())]
    found = [
        Contestant(BASELINE, "reference"),
        Contestant("reference-channels-last", "reference", channels_last=True),
    ]
    found += [
        Contestant(f"reference-{precision}", "reference", precision, channels_last=True)
        for precision in offered
        if precision not in ("fp32", "int8")
    ]
    found += [Contestant("reference-compile", "compile")]
    if device.type == "cuda":
        mode = "max-autotune"
        found += [Contestant(f"reference-{mode}-fp16", "compile", "fp16", "", True, mode)]
        found += [
            Contestant(f"tensorrt-{graph}-fp16", "tensorrt", "fp16", variant=graph)
            for graph in peers.GRAPHS
        ]
    if device.type == "cpu":
        found += [
            Contestant(
                f"{kind}-{graph}-{precision}{'-reduced' * reduced}",
                kind,
                precision,
                variant=graph,
                reduced=reduced,
            )
            for kind, peer in _CPU_PEERS.items()
            for graph in peers.GRAPHS
            for precision in peer.PRECISIONS
            for reduced in (False, True)[: 2 if precision == "int8" else 1]
        ]
    found += [Contestant("unet", "unet")]
    found += [
        Contestant(f"fast-{backend}-{precision}", "fast", precision, backend)
        for backend, precisions in able.items()
        for precision in precisions
    ]
    return found


def why_left_out(contestant: Contestant, device: torch.device) -> str | None:
    """Why a contestant takes part only where it is named; None where it always does."""
    by_pytorch = contestant.kind in ("reference", "compile") or contestant.backend == "torch"
    return why_no_fast_bf16(device) if by_pytorch and contestant.precision == "bf16" else None


class Arena:
    """One network, one device, and whoever runs the network there.

    Args:
        reference: The network, or None for one with the paper's sizes and random weights, biases
            and slopes; speed does not depend on them.
        device: Where to run.
    """

    def __init__(self, reference: DSSNet | None, device: torch.device) -> None:
        self.device = device
        network = deepcopy(reference) if reference else random_network(DSSNetConfig())
        self.reference = network.float().to(device).eval().requires_grad_(False)
        self.config = network.config
        self.contestants = contestants(device, network.config)
        self._expected: tuple[tuple[int, int], Tensor] | None = None
        self._compiled_shape: torch.Size | None = None
        self._own_errors: dict[tuple[str, int, int], float] = {}
        self._models: dict[str, onnx.ModelProto] = {}
        # TensorRT waits for the device in each call on the default stream.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def image(self, size: int, batch: int, seed: int = _SEED) -> Tensor:
        """Smooth spots and noise, [batch, in_channels, size, size] float32 in [-1, 1)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, self.config.in_channels, size // 8, size // 8)
        spots = torch.rand(shape, generator=generator)
        spots = nn.functional.interpolate(spots, scale_factor=8, mode="bilinear")
        noise = torch.rand(spots.shape, generator=generator)
        pixels = ((0.8 * spots + 0.2 * noise) * 255).floor()
        return ((pixels - 128) / 128).to(self.device)

    def prepare(self, contestant: Contestant, image: Tensor) -> Callable[[], Tensor]:
        """A call that computes the contestant's logits of `image`.

        On a GPU calls take turns with copies of the image, more than fit into the L2 cache.

        Args:
            contestant: One of `contestants`.
            image: Normalised, float32 [B, in_channels, H, W] on the device.

        Raises:
            Unavailable: It cannot run here.
        """
        if contestant.kind == "fast":
            folded = self._calibrated if contestant.precision == "int8" else self._folded
            net = FastDSSNet(folded, self.device, contestant.backend, contestant.precision)
            return self._in_turn(net, image)
        if contestant.kind == "unet":
            torch.manual_seed(_SEED)
            unet = UNet(self.config.in_channels, self.config.classes).to(self.device).eval()
            return self._in_turn(unet, image)
        if contestant.kind == "tensorrt":
            return self._tensorrt(contestant, image)
        if contestant.kind in _CPU_PEERS:
            return self._cpu_peer(contestant, image)
        layout = torch.channels_last if contestant.channels_last else torch.contiguous_format
        dtype = backends.PRECISIONS[contestant.precision]
        network = deepcopy(self.reference).to(dtype=dtype, memory_format=layout)
        x = image.to(dtype).contiguous(memory_format=layout)
        if contestant.kind == "compile":
            return self._compiled(network, x, contestant.variant)
        return self._in_turn(network.logits, x)

    def _copies(self, x: Tensor) -> list[Tensor]:
        """`x`, and on a GPU as many copies of it as make twice the L2 cache, at least one."""
        if self.device.type != "cuda":
            return [x]
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return [x, *(x.clone() for _ in range(max(1, math.ceil(2 * cache / x.nbytes))))]

    def _in_turn(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
        images = itertools.cycle(self._copies(x))
        return _without_gradients(lambda: run(next(images)))

    def _compiled(self, network: DSSNet, x: Tensor, mode: str) -> Callable[[], Tensor]:
        # Without this, the compiler gives up silently after its eighth shape.
        if self._compiled_shape != x.shape:
            torch.compiler.reset()
            self._compiled_shape = x.shape
        compiled = torch.compile(network.logits, dynamic=False, mode=mode or None)
        run = self._in_turn(compiled, x)
        with _failures("torch.compile"):
            run()
        return run

    def _tensorrt(self, contestant: Contestant, image: Tensor) -> Callable[[], Tensor]:
        with _failures("TensorRT"):
            engine = tensorrt_peer.Engine(self.reference, contestant.variant, image)
            replays = itertools.cycle([engine.recorded(x) for x in self._copies(image)])
        return lambda: next(replays)()

    def _cpu_peer(self, contestant: Contestant, image: Tensor) -> Callable[[], Tensor]:
        peer, graph = _CPU_PEERS[contestant.kind], contestant.variant
        with _failures(contestant.kind):
            peer.require(contestant.precision)
            if graph not in self._models:
                self._models[graph] = peers.onnx_model(self.reference, graph)
            engine = peer.Engine(
                self._models[graph],
                contestant.precision,
                self.samples,
                image,
                contestant.reduced,
            )
            engine.run()  # what it lacks some find only now
        return engine.run

    @cached_property
    def samples(self) -> Tensor:
        """What int8 is calibrated on: [N, in_channels, H, W] like `image`, but other images."""
        return self.image(_SAMPLE_SIZE, _SAMPLES, _SEED + 1)

    @cached_property
    def _folded(self) -> FoldedWeights:
        return fold_checkpoint(from_state(released_state(self.reference)))

    @cached_property
    def _calibrated(self) -> FoldedWeights:
        from dssnet_fast.calibrate import calibrate

        images = (self.samples * 128 + 128).byte().permute(0, 2, 3, 1).cpu().numpy()
        return replace(self._folded, quantisation=calibrate(self._folded, images))

    def expected(self, size: int, batch: int) -> Tensor:
        """The reference's logits of `image(size, batch)` in float32, without TF32."""
        if self._expected is None or self._expected[0] != (size, batch):
            image = self.image(size, batch)
            with torch.no_grad(), self._exact_float32():
                self._expected = ((size, batch), self.reference.logits(image))
        return self._expected[1]

    def check(
        self, contestant: Contestant, run: Callable[[], Tensor], size: int, batch: int
    ) -> float:
        """Compare a contestant's answer with the reference's.

        In float32 the relative error may be `FP32_TOLERANCE`; in a low precision, that of the
        reference when PyTorch runs it in that precision, and `PEER_TOLERANCE` times that for other
        compilers. In int8 the difference may be `INT8_TOLERANCE` of how much the logits vary over
        pixels, and `INT8_LABELS` of all pixels must have the same label. The low-precision
        reference itself and UNet only have to be finite.

        Returns:
            The relative error of the logits; 0 for UNet.

        Raises:
            WrongAnswer: It is larger, labels differ more, or the shape is another.
        """
        with self._exact_float32():
            answer = run()
        expected = self.expected(size, batch)
        if answer.shape != expected.shape:
            raise WrongAnswer(
                f"{contestant.name}: logits must be of shape {list(expected.shape)}, "
                f"got {list(answer.shape)}"
            )
        if not (finite := torch.isfinite(answer)).all():
            share = 1 - float(finite.float().mean())
            raise WrongAnswer(f"{contestant.name}: {share:.2%} of the logits are not finite")
        if contestant.kind == "unet":
            return 0.0
        error = relative_error(answer, expected)
        allowed = FP32_TOLERANCE
        if contestant.precision == "int8":
            varying = expected - expected.mean((0, 2, 3), keepdim=True)
            allowed = INT8_TOLERANCE * float(varying.norm() / expected.norm())
            same = float((answer.argmax(1) == expected.argmax(1)).float().mean())
            if same < INT8_LABELS:
                raise WrongAnswer(
                    f"{contestant.name}: {same:.2%} of pixels have the reference's label, "
                    f"required {INT8_LABELS:.0%}{_remedy(contestant)}"
                )
        elif contestant.precision != "fp32":
            allowed = float("inf")
            if contestant.kind != "reference":
                times = 1 if contestant.kind == "fast" else PEER_TOLERANCE
                allowed = times * self._own_error(contestant.precision, size, batch)
        if not error <= allowed:
            raise WrongAnswer(
                f"{contestant.name}: relative error of the logits is {error:.2e}, "
                f"allowed {allowed:.2e}{_remedy(contestant)}"
            )
        return error

    def _own_error(self, precision: str, size: int, batch: int) -> float:
        """The relative error of the reference's logits when PyTorch runs it in a precision."""
        key = precision, size, batch
        if key not in self._own_errors:  # runs once: bf16 may be very slow here
            twin = Contestant("", "reference", precision, channels_last=True)
            own = self.prepare(twin, self.image(size, batch))()
            self._own_errors[key] = relative_error(own, self.expected(size, batch))
        return self._own_errors[key]

    def macs(self, contestant: Contestant, size: int, batch: int) -> int:
        """Multiply-accumulates of the network that the contestant runs, as released.

        The same number for each way of running DSSNet, also for those that need fewer: rates tell
        how fast the answer comes, not how busy the device is.
        """
        if contestant.kind != "unet":
            return batch * macs.reference(self.config, size, size)
        with torch.device("meta"):
            unet = UNet(self.config.in_channels, self.config.classes)
            image = torch.empty(batch, self.config.in_channels, size, size)
        return macs.count(lambda: unet(image))

    def _exact_float32(self) -> contextlib.AbstractContextManager:
        """TF32, the default of PyTorch's convolutions on GPUs, off: for checks, not for timing."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

    def synchronise(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one call, to the end of its work on the device.

        On a GPU, the mean over a queue of calls between two CUDA events, after one call alone.
        """
        if self._stream is not None:
            return self._timed_by_events(run)
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    def _timed_by_events(self, run: Callable[[], object]) -> float:
        def queued(calls: int) -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3 / calls

        self.synchronise()
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            alone = queued(1)
            return queued(max(1, min(_QUEUE_LIMIT, round(QUEUE_SECONDS / alone))))

    def alone(self, run: Callable[[], object], calls: int = 30) -> float:
        """Median seconds from a call to its answer, with nothing else under way."""
        taken = []
        for _ in range(calls):
            self.synchronise()
            started = time.perf_counter()
            run()
            self.synchronise()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over all rounds.

    Attributes:
        seconds: One number a round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    def speed_up(self, baseline: Timing) -> float:
        """Median over rounds of how many times faster than `baseline` in the same round."""
        pairs = zip(baseline.seconds, self.seconds, strict=True)
        return statistics.median(base / own for base, own in pairs)


def race(
    runs: Mapping[str, Callable[[], object]],
    timed: Callable[[Callable[[], object]], float],
    rounds: int,
    seconds: float,
) -> dict[str, Timing]:
    """Time all `runs` in turn, round by round.

    Calls that are much faster than the slowest are repeated within a round, so that a round's
    number is not that of a single short call.

    Args:
        runs: Name -> what to time.
        timed: Seconds of one call; see `Arena.timed`.
        rounds: At least this many, after one that warms up.
        seconds: More rounds until this much time has passed, up to ten times `rounds`.

    Raises:
        InputError: `rounds` is less than 1.
    """
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")
    warm = {name: timed(run) for name, run in runs.items()}
    slowest = max(warm.values())
    repeats = {name: max(1, min(10, int(slowest / (4 * time)))) for name, time in warm.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    started = time.monotonic()
    for number in range(10 * rounds):
        if number >= rounds and time.monotonic() - started >= seconds:
            break
        for name, run in runs.items():
            each = [timed(run) for _ in range(repeats[name])]
            taken[name].append(statistics.median(each))
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def random_network(config: DSSNetConfig) -> DSSNet:
    """A DSSNet whose weights, biases and slopes are random; the same one in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = DSSNet(config)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def relative_error(answer: Tensor, expected: Tensor) -> float:
    """||answer - expected|| / ||expected||; NaN if either holds one."""
    return parity.relative_error(*(x.double().cpu().numpy() for x in (answer, expected)))


def _remedy(contestant: Contestant) -> str:
    """What a message on a wrong answer ends with."""
    eight_bits = contestant.kind in _CPU_PEERS and contestant.precision == "int8"
    if not eight_bits or contestant.reduced:
        return ""
    return f" (without VNNI sums saturate, but not those of {contestant.name}-reduced)"


@contextlib.contextmanager
def _failures(engine: str) -> Iterator[None]:
    """Whatever is raised within, as `Unavailable`: compilers raise exceptions of every kind."""
    try:
        yield
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"{engine} failed: {_gist(error)}") from error


def _gist(error: Exception) -> str:
    """The first line of a compiler's message that says more than where in its source it arose."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = (line for line in lines if line and not line.startswith("Exception from"))
    return next(telling, type(error).__name__)


def _without_gradients(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.no_grad()(run)
